"""Hooks monitor training and never change it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from biflow.config import WatchConfig
from biflow.errors import InputError
from biflow.training.hooks import read_history
from biflow.training.run import open_run
from biflow.training.stages import train_model
from tests.builders import tiny_images, tiny_run
from tests.training.test_training import weights


def train_watched(folder, held_out=None, **watch):
    config = tiny_run(watch=WatchConfig(**watch))
    with open_run(config, tiny_images(), folder, resume=False, console=Console(quiet=True), held_out=held_out) as run:
        return train_model(run).model


EVERYTHING = {"preview_every": 3, "validate_every": 2, "validate_batches": 2, "trackers": ("tensorboard",)}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("watched") / "run"
    return folder, train_watched(folder, tiny_images(8, seed=3), **EVERYTHING)


def test_monitoring_never_changes_the_training(watched, tmp_path):
    plain = train_watched(tmp_path / "plain")
    assert all(torch.equal(a, b) for a, b in zip(weights(watched[1]), weights(plain), strict=True))
    histories = [read_history(folder / "metrics.jsonl") for folder in (watched[0], tmp_path / "plain")]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in histories]
    assert losses[0] == losses[1]


def test_every_stage_writes_previews(watched):
    names = sorted(path.name for path in (watched[0] / "previews").iterdir())
    assert names == [f"{stage}_{step:08d}.png" for stage in ("flow", "reverse") for step in (3, 6)]
    with Image.open(watched[0] / "previews" / "reverse_00000006.png") as image:
        assert np.array(image).std() > 0


def test_the_validation_loss_is_logged_with_its_terms(watched):
    lines = [line for line in read_history(watched[0] / "metrics.jsonl") if "test_loss" in line]
    assert [(line["stage"], line["step"]) for line in lines] == [
        (stage, step) for stage in ("flow", "reverse") for step in (2, 4, 6)
    ]
    assert "test_nats_per_dim" in lines[0]
    assert {"test_alignment", "test_mse"} <= lines[-1].keys()


def test_validation_may_read_more_batches_than_training_has_steps(tmp_path):
    train_watched(tmp_path / "run", tiny_images(8, seed=3), validate_every=6, validate_batches=9)
    assert sum("test_loss" in line for line in read_history(tmp_path / "run" / "metrics.jsonl")) == 2


def test_tensorboard_gets_the_metrics_and_the_previews(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched[0] / "tensorboard")).Reload()
    logged = [
        line["loss"]
        for line in read_history(watched[0] / "metrics.jsonl")
        if line["stage"] == "flow" and "loss" in line
    ]
    assert [event.value for event in events.Scalars("flow/loss")] == pytest.approx(logged)
    assert [event.step for event in events.Images("reverse/samples")] == [3, 6]


def test_every_session_is_recorded(watched):
    (session,) = json.loads((watched[0] / "about.json").read_text())
    assert session["packages"]["torch"] == torch.__version__
    assert session["processes"] == 1
    assert {"started", "biflow", "git", "python", "device"} <= session.keys()


def test_validation_without_held_out_images_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match=r"Set reading\.test_share, or watch\.validate_every=0"):
        train_watched(tmp_path / "run", validate_every=2)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match=r"the package wandb .* pip install 'biflow\[log\]'"):
        train_watched(tmp_path / "run", trackers=("wandb",))


def test_the_best_checkpoint_by_a_logged_metric_is_kept(tmp_path):
    fit = tiny_run().fit_flow.model_copy(update={"save_every": 1, "keep_last": 1, "best_by": "test_loss"})
    config = tiny_run(fit_flow=fit, watch=WatchConfig(validate_every=1), stage="flow")
    with open_run(
        config, tiny_images(), tmp_path, resume=False, console=Console(quiet=True), held_out=tiny_images(8, seed=3)
    ) as run:
        train_model(run)
    losses = {
        line["step"]: line["test_loss"] for line in read_history(tmp_path / "metrics.jsonl") if "test_loss" in line
    }
    kept = {int(path.name[5:]) for path in (tmp_path / "states" / "flow").iterdir()}
    assert kept == {6, min(losses, key=losses.get)}
