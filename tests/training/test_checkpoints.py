import json
import random
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from biflow.config import FitConfig
from biflow.errors import Interrupted
from biflow.files import remove_leftovers
from biflow.training.checkpoints import Damaged, newest, read, render_manifest, save, tidy
from biflow.training.loop import Trainer
from biflow.training.objectives import FitFlow
from tests.builders import tiny_model, tiny_run
from tests.training.test_training import ALONE, tiny_batch, train_in, weights


def state(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "model": {"weight": torch.randn(8, 8, generator=generator)}}


def write(folder, *steps: int, **metrics: list[float]) -> None:
    for i, step in enumerate(steps):
        save(folder, state(step), step=step, metrics={name: values[i] for name, values in metrics.items()})


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_state_is_loaded_with_its_step_and_metrics(tmp_path):
    write(tmp_path, 7, loss=[0.5])
    found, faults = newest(tmp_path)
    assert (found.step, found.metrics, faults) == (7, {"loss": 0.5}, [])
    loaded = found.load(torch.device("cpu"))
    assert torch.equal(loaded["model"]["weight"], state(7)["model"]["weight"])


def test_nothing_is_found_where_nothing_was_saved(tmp_path):
    assert newest(tmp_path / "nowhere") == (None, [])
    assert newest(tmp_path) == (None, [])


def test_the_newest_is_found_by_its_recorded_step_not_by_its_name(tmp_path):
    write(tmp_path, 5, 10)
    (tmp_path / "step_00000005").rename(tmp_path / "z")
    assert newest(tmp_path)[0].step == 10
    shutil.rmtree(tmp_path / "step_00000010")
    assert newest(tmp_path)[0].folder == tmp_path / "z"


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_any_flipped_bit_is_detected(tmp_path, name):
    write(tmp_path, 3)
    path, draw = tmp_path / "step_00000003" / name, random.Random(0)
    intact = path.read_bytes()
    for _ in range(200):
        flipped = bytearray(intact)
        flipped[draw.randrange(len(intact))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(Damaged, match="has changed"):
            read(path.parent)
    path.write_bytes(intact)
    assert read(path.parent).step == 3


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_an_older_one_found(tmp_path, damage):
    write(tmp_path, 1, 2)
    path = tmp_path / "step_00000002" / ("manifest.json" if damage == "no manifest" else "state.pt")
    if damage in {"missing", "no manifest"}:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 100 if damage == "truncated" else 0])
    found, faults = newest(tmp_path)
    assert found.step == 1
    assert len(faults) == 1
    assert str(path) in faults[0]


def test_a_manifest_of_another_format_is_not_read(tmp_path):
    write(tmp_path, 3)
    path = tmp_path / "step_00000003" / "manifest.json"
    content = {**json.loads(path.read_text()), "format_version": 99}
    del content["sha256"]
    path.write_text(render_manifest(content))
    with pytest.raises(Damaged, match="has changed"):
        read(path.parent)


def test_the_newest_the_best_and_every_nth_are_kept(tmp_path):
    write(tmp_path, *range(1, 11), loss=[5, 4, 1, 4, 5, 6, 7, 8, 9, 9])
    tidy(tmp_path, FitConfig(keep_last=2, keep_every=4, best_by="loss"))
    assert names(tmp_path) == [f"step_{step:08d}" for step in (3, 4, 8, 9, 10)]
    tidy(tmp_path, FitConfig(keep_last=1))
    assert names(tmp_path) == ["step_00000010"]


def test_unfinished_checkpoints_of_a_killed_process_are_ignored_and_removed(tmp_path):
    write(tmp_path, 4)
    shutil.copytree(tmp_path / "step_00000004", tmp_path / ".step_00000009.123.part")
    assert newest(tmp_path)[0].step == 4
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step_00000004"]


def tiny_trainer(**changes) -> Trainer:
    return Trainer(FitFlow(tiny_model().flow), tiny_run().fit_flow.model_copy(update=changes), ALONE)


def test_a_checkpoint_restores_what_reports_and_later_checkpoints_tell(tmp_path):
    saved, loaded = tiny_trainer(), tiny_trainer()
    saved.step, saved.seconds, saved.skipped, saved.metrics = 3, 1.5, 2, {"loss": 0.5}
    saved.save(tmp_path)
    loaded.load(newest(tmp_path)[0])
    assert (loaded.step, loaded.seconds, loaded.skipped, loaded.metrics) == (3, 1.5, 2, {"loss": 0.5})


def test_no_checkpoint_is_due_after_a_skipped_step(tmp_path):
    sound = tiny_batch()
    broken = sound._replace(noisy=sound.noisy * torch.nan)
    trainer = tiny_trainer(steps=4, save_every=1, keep_last=4)
    trainer.train(lambda step: broken if step == 1 else sound, save_to=tmp_path)
    assert names(tmp_path) == [f"step_{step:08d}" for step in (1, 3, 4)]


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    from tests.training.test_training import train_in
    from biflow.errors import InputError

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        train_in(Path(sys.argv[1]), resume=True)
    except InputError as error:
        print(error)
"""


def test_a_full_disk_is_reported_and_leaves_the_run_and_older_checkpoints_intact(tmp_path):
    """A file-size limit below a checkpoint's size makes writes fail half way, as a full disk does."""
    with pytest.raises(Interrupted):
        train_in(tmp_path / "full", stop_at=3)
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), tmp_path / "full"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Training continues, but cannot save step 4 in" in done.stderr
    assert "cannot save step 6 in" in done.stdout
    assert "older checkpoints are intact. Free some space, and resume." in done.stdout
    assert names(tmp_path / "full" / "states" / "flow") == ["step_00000002", "step_00000003"]
    resumed, unbroken = train_in(tmp_path / "full", resume=True), train_in(tmp_path / "unbroken")
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(unbroken), strict=True))
