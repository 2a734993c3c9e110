"""Models on the hub and their cards, with a fake hub in place of the network."""

import json

import huggingface_hub
import pytest
import yaml

from biflow.checkpoint import TRAINING_FILE, save_model
from biflow.config.records import EvaluationRecord
from biflow.errors import InputError
from biflow.evaluation.compare import METRICS
from biflow.evaluation.report import cost_rows, quality_rows
from biflow.hub.card import render_card
from biflow.pipeline import Pipeline
from tests.builders import tiny_config, tiny_model

TRAINING = {
    "data": "digits",
    "seed": 7,
    "stages": {
        "flow": {"steps": 6, "batch_size": 4, "seconds": 12.3, "last": {"loss": -0.25}},
        "judge": {"steps": 3, "batch_size": None, "seconds": 1.0, "last": {}},
    },
    "device": "cpu",
    "processes": 1,
    "biflow": "0.1.0",
    "git": None,
}
EVALUATION = {
    "metrics": {
        "judge": {
            "frechet_distance": 8.69,
            "reliable": True,
            "spatial_frechet_distance": None,
            "kernel_distance": 1.0,
            "kernel_distance_std": 0.1,
            "precision": 0.9,
            "recall": 0.7,
            "inception_score": None,
            "class_accuracy": 0.994,
        }
    },
    "data": {"name": "digits", "split": "train", "images": 1437},
    "samples": {"num": 5000, "method": "reverse", "guidance": "0.25"},
    "machine": {"device": "a processor"},
    "metric_titles": {metric.key: dict(metric.titles) for metric in METRICS},
}
EVALUATION["tables"] = {"quality": quality_rows(EVALUATION), "cost": cost_rows(EVALUATION)}


@pytest.fixture
def made():
    """Repository -> (private, token) of the requests to create it."""
    return {}


@pytest.fixture
def hub(monkeypatch, tmp_path, made):
    """A fake hub that stores uploads in a folder and serves them."""
    store = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repository, *, private, exist_ok):
            assert exist_ok
            made[repository] = private, self.token
            (store / repository).mkdir(parents=True, exist_ok=True)
            return f"https://hub/{repository}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            assert commit_message
            for path in folder_path.iterdir():
                (store / repo_id / path.name).write_bytes(path.read_bytes())

    def download(repository, **_):
        if not (store / repository).is_dir():
            raise huggingface_hub.errors.HfHubHTTPError("404")
        return str(store / repository)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return store


def test_a_pushed_model_loads_by_name(hub, tmp_path):
    pipe = Pipeline(tiny_model(), TRAINING)
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    assert pipe.push_to_hub("me/tiny", evaluation=tmp_path / "evaluation.json") == "https://hub/me/tiny"
    assert {path.name for path in (hub / "me" / "tiny").iterdir()} == {
        "README.md",
        "samples.png",
        "config.json",
        "model.safetensors",
        TRAINING_FILE,
    }
    again = Pipeline.from_pretrained("me/tiny", revision="main")
    assert again.sample([0, 1]) == pipe.sample([0, 1])
    assert again.training == TRAINING


@pytest.mark.usefixtures("hub")
def test_a_repository_is_private_on_request(biflow, made, tmp_path):
    save_model(tiny_model(), tmp_path / "model")
    pipe = Pipeline.from_pretrained(tmp_path / "model")
    pipe.push_to_hub("me/hidden", private=True, token="mine")
    pipe.push_to_hub("me/shown", private=False)
    pipe.push_to_hub("me/usual")
    assert biflow("push", tmp_path / "model", "me/alone", "--private")[:2] == (0, "Uploaded to https://hub/me/alone\n")
    assert biflow("push", tmp_path / "model", "me/plain")[0] == 0
    assert made == {
        "me/hidden": (True, "mine"),
        "me/shown": (False, None),
        "me/usual": (None, None),
        "me/alone": (True, None),
        "me/plain": (None, None),
    }


def test_a_preview_writes_the_same_files_and_uploads_nothing(biflow, hub, made, tmp_path):
    Pipeline(tiny_model(), TRAINING).save_pretrained(tmp_path / "model")
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    out, facts = tmp_path / "new", ("--license", "cc0-1.0", "--evaluation", tmp_path / "evaluation.json")
    code, said, _ = biflow("push", tmp_path / "model", "me/tiny", *facts, "--preview", out)
    assert (code, said) == (0, f"Wrote {out}; nothing was uploaded.\n")
    assert not made
    assert not hub.exists()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "license: cc0-1.0" in card
    assert "| Fréchet distance, reference classifier | 8.690 |" in card
    assert biflow("push", tmp_path / "model", "me/tiny", *facts)[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (hub / "me" / "tiny").iterdir()
    }
    code, _, said = biflow("push", tmp_path / "model", "me/tiny", "--preview", out)
    assert (code, "new or empty folder" in said) == (2, True)


def test_missing_models_and_bad_names_are_rejected(hub, tmp_path):
    with pytest.raises(InputError, match="no folder me/none, and the hub is not used"):
        Pipeline.from_pretrained("me/none")
    with pytest.raises(InputError, match="does not exist"):
        Pipeline.from_pretrained(tmp_path / "a" / "b" / "c")
    save_model(tiny_model(), tmp_path / "model")
    with pytest.raises(InputError, match="Expected a name on the hub for revision 'v1'"):
        Pipeline.from_pretrained(tmp_path / "model", revision="v1")
    with pytest.raises(InputError, match="form owner/name"):
        Pipeline(tiny_model()).push_to_hub("tiny")
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(InputError, match=r"Expected an evaluation\.json"):
        Pipeline(tiny_model()).push_to_hub("me/tiny", evaluation=tmp_path / "evaluation.json")
    assert not hub.exists()


def test_a_card_has_the_numbers_of_the_run():
    card = render_card(
        tiny_model(), "me/tiny", TRAINING, EvaluationRecord(**EVALUATION), licence="cc0-1.0", picture="samples.png"
    )
    _, head, text = card.split("---\n", 2)
    facts = yaml.safe_load(head)
    assert facts["library_name"] == "biflow"
    assert facts["license"] == "cc0-1.0"
    metrics = {each["name"]: each["value"] for each in facts["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {
        "Fréchet distance, reference classifier": 8.69,
        "precision, reference classifier": 0.9,
        "recall, reference classifier": 0.7,
        "classification accuracy, reference classifier": 0.994,
    }
    assert "(samples.png)" in text
    assert "Pipeline.from_pretrained('me/tiny')" in text
    assert "6 steps at batch size 4, 12 s; loss -0.25" in text
    assert "| reference classifier | 3 steps, 1 s |" in text
    assert "3 classes: a, b, c" in text
    assert "| Fréchet distance, reference classifier | 8.690 |" in text
    assert "5,000 samples, method reverse, guidance 0.25" in text


def test_a_card_leaves_out_missing_facts():
    card = render_card(tiny_model(tiny_config(reverse=None)), "tiny")
    assert "Training" not in card
    assert "Evaluation" not in card
    assert "method='sequential'" in card
    assert "model-index" not in card
    assert "license" not in card
    assert "samples.png" not in card


def test_a_card_of_partial_training_facts():
    assert "| data | digits |" in render_card(tiny_model(), "me/tiny", {"data": "digits"})


def test_an_invalid_evaluation_is_rejected_before_anything_is_written(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"metrics": {"inception": {"frechet_distance": 1}}}))
    with pytest.raises(InputError, match=r"Expected an evaluation\.json"):
        Pipeline(tiny_model()).save_for_hub(tmp_path / "new", "me/tiny", evaluation=tmp_path / "evaluation.json")
    assert not (tmp_path / "new").exists()


def test_a_model_with_a_local_autoencoder_is_rejected(autoencoder, tmp_path):
    pipe = Pipeline(tiny_model(tiny_config(codec=f"vae:{autoencoder}", channels=4)))
    with pytest.raises(InputError, match="Expected an autoencoder on the hub"):
        pipe.save_for_hub(tmp_path / "new", "me/tiny")
    assert not (tmp_path / "new").exists()
