"""Run folders: what they take up again, and what they refuse."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from biflow.config import WatchConfig
from biflow.data.datasets import ImageSet
from biflow.errors import InputError, Interrupted
from biflow.files import CannotWrite, hold_folder
from biflow.training.hooks import History, append_whole, read_history
from biflow.training.loop import Trainer
from biflow.training.objectives import FitFlow
from biflow.training.provenance import describe_change, describe_data
from biflow.training.run import open_run
from biflow.training.stages import train_model
from tests.builders import full_disk, tiny_config, tiny_images, tiny_model, tiny_run
from tests.training.test_training import ALONE, train_in, weights

STEPS = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        train_in(folder, stop_at=4)
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of a run that was stopped after step 4 of 6."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def open_on(folder, data, *, resume=True, **changes):
    with open_run(tiny_run(**changes), data, folder, resume=resume, console=Console(quiet=True)):
        pass


DAMAGES = {
    "a cut line": lambda log: log[:-20],
    "a byte": lambda log: log + b"\xff",
    "zeros": lambda log: log + bytes(100),
    "a number": lambda log: log + b"3\n",
    "a list": lambda log: log + b"[1]\n",
    "another record": lambda log: log + b'{"stage": "flow"}\n',
    "a step in words": lambda log: log + b'{"stage": "flow", "step": "5"}\n',
    "a loss in words": lambda log: log + b'{"stage": "flow", "step": 4, "loss": "low"}\n',
    "depth": lambda log: log + b"[" * 100_000 + b"\n",
    "a line in the middle": lambda log: log.replace(b"\n", b"\n{\n", 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lines_of_the_log_are_dropped_and_said(run, damage):
    log = run / "metrics.jsonl"
    log.write_bytes(DAMAGES[damage](log.read_bytes()))
    with pytest.warns(UserWarning, match=r"Dropped 1 damaged line of .*metrics\.jsonl"):
        train_in(run, resume=True)
    lost = {3} if damage == "a cut line" else set()  # the line of step 4
    assert [line["step"] for line in read_history(log)] == [step for i, step in enumerate(STEPS) if i not in lost]
    assert len(log.read_text().splitlines()) == len(read_history(log))


def test_a_session_log_of_another_kind_is_begun_anew(run):
    (run / "about.json").write_text("5")
    train_in(run, resume=True)
    assert len(json.loads((run / "about.json").read_text())) == 1


def test_a_run_killed_before_its_settings_were_written_starts_either_way(tmp_path):
    for resume in (False, True):
        folder = tmp_path / str(resume)
        folder.mkdir()
        for name in (".lock", ".config.yaml.0123abcd.part"):
            (folder / name).write_text("")
        open_on(folder, tiny_images(), resume=resume)
        assert sorted(each.name for each in folder.iterdir()) == [".lock", "about.json", "config.yaml", "data.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    for name in ("nowhere", "other"):
        with pytest.raises(InputError, match="Start it without --resume"):
            open_on(tmp_path / name, tiny_images())
    assert not (tmp_path / "nowhere").exists()


def test_a_run_killed_between_any_two_of_its_first_files_resumes(stopped, tmp_path):
    for kept in (["config.yaml"], ["config.yaml", "data.json"], ["config.yaml", "data.json", "about.json"]):
        folder = tmp_path / str(len(kept))
        folder.mkdir()
        for name in kept:
            shutil.copy(stopped / name, folder)
        open_on(folder, tiny_images())
        assert len(json.loads((folder / "about.json").read_text())) == (2 if "about.json" in kept else 1)


def test_a_run_killed_while_it_saved_or_deleted_checkpoints_deletes_what_is_left_when_resumed(stopped, run):
    folder = run / "states" / "flow"
    (folder / ".step_00000099.0123abcd.part").mkdir()
    train_in(run, resume=True)
    kept, older = sorted(folder.iterdir()), folder / "step_00000002"
    assert [each.name for each in kept] == ["step_00000004", "step_00000006"]
    shutil.copytree(stopped / "states" / "flow" / older.name, older)
    train_in(run, resume=True)
    assert sorted(folder.iterdir()) == kept


def test_a_folder_takes_one_run_at_a_time(run):
    with hold_folder(run), pytest.raises(InputError, match=r"in use by process \d+ on"):
        open_on(run, tiny_images())
    open_on(run, tiny_images())


def test_the_timeout_of_processes_may_change_and_is_recorded(run):
    open_on(run, tiny_images(), process_timeout=60)
    assert "process_timeout: 60" in (run / "config.yaml").read_text()


def change(data: ImageSet, **parts) -> ImageSet:
    return replace(data, **parts)


CHANGES = {
    "class 0 was a and is wasp": lambda data: change(data, class_names=("wasp", "b", "c")),
    "class 0 was a and is b, class 1 was b and is a": lambda data: change(data, class_names=("b", "a", "c")),
    "there are 3 train images of c instead of 4": lambda data: data.take(slice(11)),
    "there are 3 train images of a instead of 4, 5 train images of b instead of 4": lambda data: change(
        data, labels=data.labels.index_fill(0, torch.tensor(0), 1)
    ),
    "the train images differ in names, sizes, classes or order": lambda data: data.take(torch.arange(12).roll(3)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_data_are_refused_with_what_changed_and_a_way_to_continue(run, what):
    changed = CHANGES[what](tiny_images())
    message = f"Expected the data that .*; {what}\\. Restore .* delete .*data\\.json"
    with pytest.raises(InputError, match=message):
        open_on(run, changed)
    (run / "data.json").unlink()
    open_on(run, changed)
    open_on(run, changed)


def test_the_same_data_are_the_same_and_damage_of_the_record_is_said(run):
    record = {"train": describe_data(tiny_images())}
    assert json.loads((run / "data.json").read_text()) == record
    assert describe_change(record, {"train": describe_data(tiny_images())}, "train") is None
    for damage in ("", "[]", "{}", '{"train": {"class_names": 3}}', '{"train": {"class_names": [], "images": 3}}'):
        (run / "data.json").write_text(damage)
        with pytest.raises(InputError, match=r"damaged.*delete"):
            open_on(run, tiny_images())


def test_an_unconditional_model_may_see_its_classes_renamed(tmp_path):
    folder, model = tmp_path / "run", tiny_config(num_classes=0)
    open_on(folder, tiny_images(), resume=False, model=model)
    open_on(folder, change(tiny_images(), class_names=("x", "y", "z")), model=model)


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    log = tmp_path / "log"
    append_whole(log, "x" * 60)
    with full_disk(100), pytest.raises(CannotWrite, match=r"Expected to write .*log; got: No space left on device"):
        append_whole(log, "y" * 60)
    assert log.read_text() == "x" * 60


def test_lines_that_found_no_space_are_written_once_there_is(tmp_path):
    history = History(tmp_path / "log", "flow", Trainer(FitFlow(tiny_model().flow), tiny_run().fit_flow, ALONE))
    history.record({"loss": 1.0}, 1)
    for step in (2, 3):
        with full_disk(60), pytest.warns(UserWarning, match="Training continues without writing its logs"):
            history.record({"loss": 1.0}, step)
    history.record({"loss": 1.0}, 4)
    assert [line["step"] for line in read_history(tmp_path / "log")] == [1, 2, 3, 4]


def test_a_disk_that_is_full_for_a_while_changes_neither_the_training_nor_its_log(tmp_path):
    config = tiny_run(stage="flow", watch=WatchConfig(preview_every=3))
    with ExitStack() as full:
        taken = iter(range(1, 7))

        def fill_the_disk() -> bool:
            step = next(taken)
            if step == 2:
                full.enter_context(full_disk(300))
            elif step == 6:
                full.close()
            return False

        with (
            open_run(config, tiny_images(), tmp_path / "full", resume=False, console=Console(quiet=True)) as run,
            pytest.warns(UserWarning, match="Training continues") as warned,
        ):
            model = train_model(replace(run, should_stop=fill_the_disk)).model
    texts = {str(each.message) for each in warned}
    assert any("without writing its logs or previews: File too large" in text for text in texts), texts
    assert any("cannot save step 4" in text for text in texts), texts
    unbroken = train_in(tmp_path / "unbroken", stage="flow")
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(unbroken), strict=True))
    assert [line["step"] for line in read_history(tmp_path / "full" / "metrics.jsonl")] == STEPS[:6]
    assert [each.name for each in (tmp_path / "full" / "previews").iterdir()] == ["flow_00000006.png"]


def test_a_stream_of_other_shards_is_other_data():
    then, now = ({"train": {"class_names": ["a"], "shards": count}} for count in (3, 4))
    assert describe_change(then, now, "train") == "there are 4 shards instead of 3"
