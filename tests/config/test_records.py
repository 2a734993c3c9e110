"""Records in JSON that others may have changed: a value of another type is one sentence, wherever it stands."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from biflow.checkpoint import TRAINING_FILE, load_training, save_model
from biflow.config.records import EvaluationRecord, JudgeRecord, TrainingRecord, read_record
from biflow.errors import InputError
from biflow.features.judge import Judge, load_judge, save_judge
from biflow.hub.card import read_evaluation, render_card
from biflow.pipeline import Pipeline
from tests.builders import tiny_config, tiny_model

OTHERS = [None, True, -1, 0, 1.5, 10**30, float("nan"), "", "text", [], [[]], [1], {}, {"a": {}}]
TRAINING = {
    "data": "folder:x",
    "seed": 0,
    "stages": {"flow": {"steps": 6, "batch_size": 4, "seconds": 1.5, "last": {"loss": -0.25}}},
    "device": "cpu",
    "processes": 1,
    "biflow": "1.0",
    "git": None,
    "config": {"data": "folder:x", "reading": {"crop": "adm", "background": "black", "test_share": 0.1, "flip": True}},
}
METRICS = {"inception": {"frechet_distance": 1.5, "precision": None, "reliable": True}}
EVALUATION = {
    "data": {"name": "digits", "split": "train", "images": 8},
    "samples": {"num": 8, "method": "reverse", "guidance": "0"},
    "machine": {"device": "cpu"},
    "metrics": METRICS,
    "metric_titles": {"frechet_distance": {"inception": "FID"}},
    "tables": {"quality": [["metric", "value"], ["FID", "1.5"]], "cost": [["cost", "value"], ["calls", "1"]]},
}


def changed(value):
    """Every copy of a record in which one value, at any depth, is another or missing."""
    if isinstance(value, dict):
        for key in value:
            yield {name: each for name, each in value.items() if name != key}
            for other in changed(value[key]):
                yield {**value, key: other}
    if isinstance(value, list):
        for i in range(len(value)):
            for other in changed(value[i]):
                yield [*value[:i], other, *value[i + 1 :]]
    yield from OTHERS


def refusals(records, use):
    """What `use` says of the records that it refuses; any other fault is one of the test."""
    found = []
    for record in records:
        try:
            use(record)
        except InputError as error:
            found.append(str(error))
    return found


def test_a_record_of_training_is_read_or_refused_in_one_sentence(tmp_path):
    model = tiny_model(tiny_config(reverse=None))

    def use(record):
        (tmp_path / TRAINING_FILE).write_text(json.dumps(record))
        pipe = Pipeline(model, load_training(tmp_path))
        assert pipe.reading.background in {"white", "black", "grey"}
        render_card(model, "me/tiny", pipe.training)

    found = refusals(changed(TRAINING), use)
    assert len(found) > 100
    assert all("Remove it to load the model." in each and len(each) < 500 for each in found)


def test_an_evaluation_is_read_or_refused_in_one_sentence(tmp_path):
    model, path = tiny_model(tiny_config(reverse=None)), tmp_path / "evaluation.json"

    def use(record):
        path.write_text(json.dumps(record))
        render_card(model, "me/tiny", evaluation=read_evaluation(path))

    found = refusals(changed(EVALUATION), use)
    assert len(found) > 100
    assert all("Give the one in its --out folder." in each for each in found)


def test_a_folder_of_a_judge_is_read_or_refused_in_one_sentence(tmp_path):
    save_judge(Judge(1, 3), tmp_path / "judge", trained_on={"images": 12})
    path = tmp_path / "judge" / "judge.json"
    whole = json.loads(path.read_text())
    assert whole["trained_on"] == {"images": 12}
    for record in changed(whole):
        path.write_text(json.dumps(record))
        try:
            load_judge(tmp_path / "judge")
        except InputError:
            continue
        assert (record["channels"], record["num_classes"]) == (1, 3)


def test_a_judge_whose_weights_have_changed_is_refused(tmp_path):
    save_judge(Judge(1, 3), tmp_path / "judge")
    path = tmp_path / "judge" / "judge.safetensors"
    content, weights = path.read_bytes(), load_file(path)
    bits = torch.randint(0, 8 * len(content), (100,), generator=torch.Generator().manual_seed(0)).tolist()
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"Expected .* Copy "):
            load_judge(tmp_path / "judge")
    for dtype in (torch.int8, torch.bool, torch.bfloat16):
        save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, path)
        with pytest.raises(
            InputError, match=r"Expected (intact weights .* Copy the folder again|dense tensors of floating)"
        ):
            load_judge(tmp_path / "judge")


@pytest.mark.parametrize("kind", [TrainingRecord, EvaluationRecord, JudgeRecord])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"", b"[]", b'"text"', b"nul"])
def test_what_is_no_record_is_refused(tmp_path, kind, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"Expected (a record|JSON).* Copy it again\."):
        read_record(tmp_path / "x.json", kind, what="a record", repair="Copy it again.")


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    for path in (tmp_path / "x.json", tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="cannot read it"):
            read_record(path, JudgeRecord, what="a record", repair="Copy it again.")
    save_model(tiny_model(), tmp_path / "model")
    os.mkfifo(tmp_path / "model" / TRAINING_FILE)
    with pytest.raises(InputError, match=r"a device or a pipe\)\. Remove it to load the model"):
        Pipeline.from_pretrained(tmp_path / "model")


def test_what_a_record_does_not_name_is_kept(tmp_path):
    (tmp_path / TRAINING_FILE).write_text(json.dumps({**TRAINING, "note": {"by": "me"}}))
    assert load_training(tmp_path) == {**TRAINING, "note": {"by": "me"}}
