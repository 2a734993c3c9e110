"""Statistics, classifiers and samples that are kept on disk know what they are of."""

import json
import os
from io import StringIO

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from biflow.checkpoint import save_model
from biflow.config import ReadingConfig
from biflow.errors import InputError
from biflow.evaluation.evaluate import evaluate
from biflow.features.metric_networks import JudgeFeatures
from biflow.files import hold_folder
from tests.builders import tiny_model
from tests.evaluation.test_evaluate import config_in, measured, short_fit, world

__all__ = ["world"]  # the fixture


def overwrite(folder):
    """Write other images under the same names, as after a correction; of the same size in bytes where that happens."""
    for i, path in enumerate(sorted((folder / "images").rglob("*.png"))):
        Image.new("L", (4, 4), i % 60).save(path)
        os.utime(path, ns=(i, i))


def told(folder, out, **changes):
    """The result of an evaluation, and what it printed."""
    text = StringIO()
    result = evaluate(folder / "model", config_in(folder, **changes), folder / out, Console(file=text, width=1000))
    return result, text.getvalue()


def test_statistics_of_images_that_have_changed_are_computed_anew(world):
    before = measured(world, "out")
    overwrite(world)
    after, text = told(world, "out")
    assert "reference/judge.safetensors anew: expected statistics with fingerprint = " in text
    afresh = measured(world, "afresh")
    assert after["metrics"] == afresh["metrics"]
    assert after["metrics"] != before["metrics"]
    assert "anew" not in told(world, "out")[1]


def test_statistics_that_the_user_named_are_refused_if_the_images_have_changed(world):
    path = world / "stats.safetensors"
    measured(world, "out", references=(str(path),))
    content = path.read_bytes()
    overwrite(world)
    with pytest.raises(InputError, match=r"with fingerprint = .* made with .* delete the file to compute them again"):
        measured(world, "out", references=(str(path),))
    assert path.read_bytes() == content


def test_statistics_hold_for_another_spelling_of_the_same_folder(world):
    path = world / "stats.safetensors"
    first = measured(world, "out", references=(str(path),))
    again = measured(world, "other", references=(str(path),), data=f"folder:{world}/./images/")
    assert again["metrics"] == first["metrics"]


def test_a_judge_of_images_that_have_changed_is_trained_anew(world, monkeypatch):
    monkeypatch.setattr("biflow.evaluation.real_images.CLASSIFIER_FIT", short_fit())
    measured(world, "out", features=("judge",))
    kept = load_file(world / "out" / "judge" / "judge.safetensors")
    assert "anew" not in told(world, "out", features=("judge",))[1]
    overwrite(world)
    result, text = told(world, "out", features=("judge",))
    assert "judge anew: it was trained on other images" in text
    found = load_file(world / "out" / "judge" / "judge.safetensors")
    assert not torch.equal(found["readout.weight"], kept["readout.weight"])
    assert result["metrics"] == measured(world, "afresh", features=("judge",))["metrics"]
    assert not list((world / "out").glob("judge_*"))


def test_samples_of_the_same_weights_with_other_sizes_are_not_taken_up(world):
    measured(world, "out")
    config = json.loads((world / "model" / "config.json").read_text())
    config["model"]["noise_std"], config["digests"] = 0.3, None
    (world / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"Expected model=.* Evaluate the same model"):
        measured(world, "out")


def test_features_of_another_preprocessing_are_not_taken_up(world, monkeypatch):
    before = measured(world, "out")
    monkeypatch.setattr(JudgeFeatures, "preprocessing", "another")
    monkeypatch.setattr(JudgeFeatures, "extract", lambda self, pixels: measured_as(self, pixels / 255))
    assert measured(world, "out")["metrics"] == measured(world, "afresh")["metrics"] != before["metrics"]


def measured_as(net, pixels):
    from biflow.features.metric_networks import Features

    return Features(net.network.features(pixels), logits=net.network(pixels))


# How the real images are read

TRAINED = {"crop": "tarflow", "background": "black", "test_share": 0.2}


@pytest.fixture
def trained(world, monkeypatch):
    """The world, whose model says how its images were read; they are larger than the model's and wide."""
    monkeypatch.chdir(world)
    for i, path in enumerate(sorted((world / "images").rglob("*.png"))):
        picture = Image.effect_noise((9, 6), 80)
        picture.putalpha(Image.new("L", (9, 6), 4 * i))
        picture.save(path)
    reading = ReadingConfig(**TRAINED).model_dump(mode="json")
    save_model(tiny_model(), world / "model", {"config": {"data": "folder:images", "reading": reading}})
    return world


@pytest.mark.parametrize("spelling", ["images", "./images", "images/", "{world}/images", "images/../images", "link"])
def test_the_training_data_are_read_as_in_training_however_they_are_spelt(trained, spelling):
    (trained / "link").symlink_to(trained / "images")
    name = f"folder:{spelling.format(world=trained)}"
    result, text = told(trained, "out", data=name, reading=ReadingConfig())
    assert {key: result["data"]["reading"][key] for key in TRAINED} == TRAINED
    assert "read with reading.crop=tarflow, reading.background=black, reading.test_share=0.2" in text
    explicit = measured(trained, "explicit", data=name, reading=ReadingConfig(**TRAINED))
    assert explicit["metrics"] == result["metrics"]
    with pytest.raises(InputError, match=r"reading\.background=black, with which .* got white"):
        measured(trained, "other", data=name, reading=ReadingConfig(background="white"))


def test_other_data_are_read_with_the_crop_and_background_of_the_training_unless_told(trained):
    (trained / "images").rename(trained / "others")
    result = measured(trained, "out", data="folder:others", reading=ReadingConfig())
    found = {key: result["data"]["reading"][key] for key in TRAINED}
    assert found == {**TRAINED, "test_share": 0.0}
    result = measured(trained, "other", data="folder:others", reading=ReadingConfig(background="grey"))
    assert (result["data"]["reading"]["background"], result["data"]["reading"]["crop"]) == ("grey", "tarflow")


def test_a_folder_is_evaluated_by_one_process_at_a_time(world):
    with hold_folder(world / "out"), pytest.raises(InputError, match="out is in use by process"):
        measured(world, "out")
