"""Images are read for a model as its training images were, by every command and in Python."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from biflow.app.backend import Backend
from biflow.checkpoint import save_model
from biflow.config import ReadingConfig
from biflow.data.decode import read_image
from biflow.data.pictures import read_pictures
from biflow.pipeline import Pipeline
from tests.builders import tiny_model

TRAINED = {"crop": "tarflow", "background": "black", "test_share": 0.25}


@pytest.fixture
def world(tmp_path):
    """A model whose images were read otherwise than by default, and two images that show it: white ink, and wide."""
    reading = ReadingConfig(**TRAINED).model_dump(mode="json")
    save_model(tiny_model(), tmp_path / "model", {"config": {"data": "folder:x", "reading": reading}})
    (tmp_path / "images").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (9, 14, 2), np.uint8)
    for i in range(2):
        values[..., 0] = 255 if i else values[..., 0]
        Image.fromarray(values, "LA").save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def pixels_of(folder, **reading):
    return torch.stack([read_image(file, 4, 1, **reading) for file in sorted((folder / "images").iterdir())])


def test_a_pipeline_knows_how_its_images_were_read(world):
    assert Pipeline.from_pretrained(world / "model").reading == ReadingConfig(**TRAINED)
    assert Pipeline(tiny_model()).reading == ReadingConfig()
    found = read_pictures(world / "images", 4, 1, reading=ReadingConfig(**TRAINED))
    assert torch.equal(found.pixels, pixels_of(world, crop="tarflow", background="black"))
    assert found.all[0].changes[0] == "composited on black"


@pytest.mark.parametrize("chosen", [{}, {"background": "grey"}, {"crop": "adm", "background": "white"}])
@pytest.mark.parametrize("command", ["score", "classify"])
def test_a_command_reads_as_the_training_did_unless_told(world, biflow, command, chosen):
    settings = [word for key, value in chosen.items() for word in ("--set", f"reading.{key}={value}")]
    out = world / "out.csv"
    code, _, err = biflow(command, world / "model", world / "images", "--out", out, *settings)
    assert code == 0, err
    pipe = Pipeline.from_pretrained(world / "model")
    pixels = pixels_of(world, **{"crop": "tarflow", "background": "black", **chosen})
    key = {"score": "nats", "classify": "probability"}[command]
    with out.open() as file:
        found = {row["image"]: float(row[key]) for row in csv.DictReader(file)}
    wanted = pipe.log_prob(pixels).nats if command == "score" else pipe.classify(pixels).probabilities.amax(dim=1)
    assert [found["0.png"], found["1.png"]] == pytest.approx(wanted.tolist(), rel=1e-5)
    assert ("reading.background=black, as in the training" in err) == ("background" not in chosen)
    assert ("reading.background=grey, in the training with black" in err) == (chosen == {"background": "grey"})
    assert ("reading.crop=adm, in the training with tarflow" in err) == ("crop" in chosen)


def test_an_edit_reads_image_and_mask_as_the_training_did(world, biflow, monkeypatch):
    mask = np.zeros((9, 14), np.uint8)
    mask[:5] = 255
    Image.fromarray(mask).save(world / "mask.png")
    seen = []
    inpaint = Pipeline.inpaint
    monkeypatch.setattr(Pipeline, "inpaint", lambda *given, **how: seen.append(given[1:3]) or inpaint(*given, **how))
    files = [world / "images" / "0.png", "--mask", world / "mask.png", "--label", "a", "--out", world / "x.png"]
    assert biflow("edit", "inpaint", world / "model", *files)[0] == 0
    assert biflow("edit", "inpaint", world / "model", *files, "--set", "reading.crop=adm")[0] == 0
    for (pixels, masked), crop in zip(seen, ("tarflow", "adm"), strict=True):
        assert torch.equal(pixels[0], pixels_of(world, crop=crop, background="black")[0])
        assert torch.equal(masked[0], read_image(world / "mask.png", 4, 1, crop=crop)[0] >= 128)
    code, _, err = biflow(
        "edit", "vary", world / "model", files[0], "--label", "a", *files[-2:], "--set", "reading.x=1"
    )
    assert (code, "Unknown key 'reading.x'" in err) == (2, True)


def test_the_app_reads_as_the_training_did(world):
    backend = Backend(Pipeline.from_pretrained(world / "model"))
    found = backend.read([str(file) for file in sorted((world / "images").iterdir())])
    assert torch.equal(found.pixels, pixels_of(world, crop="tarflow", background="black"))
