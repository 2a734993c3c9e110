"""The playground's Draw mode: the exported encoder against the flow, and the page in Chromium."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from biflow.checkpoint import save_model
from biflow.config import FlowConfig
from biflow.data.augment import add_noise
from biflow.data.randomness import normal_for
from biflow.errors import InputError
from biflow.export import encoder
from biflow.export import playground as site
from biflow.export.onnx import expected
from biflow.inference.classify import by_bayes
from biflow.inference.edit import mix_noise
from biflow.models.codec import training_noise
from biflow.models.patches import patchify
from biflow.pipeline import Pipeline
from tests.builders import NUM_CLASSES, tiny_config, tiny_model
from tests.export.test_playground import PAGE

DRIVER = Path(__file__).with_name("drive_drawing.mjs")
SMALL = {"blocks": 2, "layers": 1, "width": 16, "head_width": 8}
KINDS = {
    "default": {},
    "colour": {"channels": 3},
    "dequantised": {"dequantise": True, "noise_std": 0.0},
    "clipped": {"flow": FlowConfig(**SMALL, clip=0.05)},
    "volume-preserving": {"flow": FlowConfig(**SMALL, volume_preserving=True)},
    "rotary positions": {"flow": FlowConfig(**SMALL, positions="rotary", norm="rms", mlp="swiglu", qk_norm=True)},
}


def model_of(folder, **changes):
    """A folder with a tiny model; a learned prior variance differs from 1."""
    model = tiny_model(tiny_config(**changes))
    if model.config.flow.volume_preserving:
        variance = model.flow.prior_variance
        variance.copy_(torch.linspace(0.3, 2.0, variance.numel()).view_as(variance))
    save_model(model, folder)
    return folder


def noisy_of(pipe, pixels):
    """uint8 (B, P, H, W) -> patches (B, T, D) with the noise of the page."""
    std, bin_width = training_noise(pipe.config)
    drawn = add_noise(pipe.model.codec.encode(pixels), [0] * len(pixels), std, "draw", 0, bin_width=bin_width)
    return patchify(drawn, pipe.config.patch_size)


@pytest.fixture
def needs_onnx():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")


@pytest.mark.usefixtures("needs_onnx")
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_the_exported_encoder_matches_the_flow_at_any_batch_size(tmp_path, changes):
    pipe = Pipeline.from_pretrained(model_of(tmp_path / "model", **changes))
    assert encoder.export_encoder(pipe, tmp_path / "encoder.onnx", {}) <= encoder.TOLERANCE
    run, flow = encoder.read_encoder(tmp_path / "encoder.onnx"), pipe.model.flow
    for batch in (1, 2, 9):
        shape = (pipe.config.channels, 4, 4)
        image, labels = normal_for(range(batch), shape, "test"), torch.arange(batch) % (NUM_CLASSES + 1)
        found = run(image, labels)
        elsewhere = run(image, labels.where(labels < NUM_CLASSES, -1))  # of no class
        assert torch.equal(found.log_prob, elsewhere.log_prob)
        patches = patchify(image, 2)
        with torch.no_grad():
            wanted = flow(patches, labels)
            torch.testing.assert_close(flow.scale_noise(found.noise), wanted.z, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.log_prob, flow.log_prob(patches, labels), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("needs_onnx")
def test_an_inaccurate_encoder_is_rejected(tmp_path, monkeypatch):
    pipe = Pipeline.from_pretrained(model_of(tmp_path / "model"))
    monkeypatch.setattr(encoder, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"noise and likelihood within .* largest difference is"):
        encoder.export_encoder(pipe, tmp_path / "encoder.onnx", {})


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ({}, True),
        ({"channels": 3}, True),
        ({"channels": 2}, False),
        ({"num_classes": 0}, False),
        ({"num_classes": 1}, False),
        ({"num_classes": 101}, False),
        ({"image_size": 64}, True),
        ({"image_size": 66}, False),
        ({"codec": "vae:somewhere", "channels": 4}, False),
    ],
)
def test_draw_mode_needs_small_pixel_images_with_classes(changes, can):
    assert encoder.can_draw(tiny_config(**changes)) == can


@pytest.mark.usefixtures("needs_onnx")
@pytest.mark.parametrize("kind", ["classes", "no classes", "latents"])
def test_the_folder_has_an_encoder_if_the_page_has_a_draw_mode(tmp_path, autoencoder, kind):
    latents = {"codec": f"vae:{autoencoder}", "channels": 4}
    changes = {"classes": {}, "no classes": {"num_classes": 0}, "latents": latents}[kind]
    (tmp_path / "runtime").mkdir()
    for name in site.FILES:
        (tmp_path / "runtime" / name).write_text("placeholder")
    model, out = model_of(tmp_path / "model", **changes), tmp_path / "site"
    site.write_site(model, out, runtime=tmp_path / "runtime")
    card = json.loads((out / "model.json").read_text())
    assert (out / "encoder.onnx").exists() == (kind == "classes")
    assert card["drawing"] == ({"noise_std": 0.2, "bin_width": 0.0} if kind == "classes" else None)
    site.check_site(out)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
@pytest.mark.parametrize(("std", "bin_width"), [(0.2, 0.0), (0.0, 2 / 255), (0.1, 2 / 255)])
def test_the_noise_of_a_drawing_matches_python(tmp_path, std, bin_width):
    shutil.copy(PAGE / "noise.js", tmp_path / "noise.mjs")
    script = (
        "import { drawingNoise } from './noise.mjs'; import { writeFileSync } from 'node:fs';"
        f"const noise = drawingNoise(3072, {{ noise_std: {std}, bin_width: {bin_width} }});"
        "writeFileSync('noise.bin', new Uint8Array(noise.buffer));"
    )
    subprocess.run(["node", "--input-type=module", "-e", script], cwd=tmp_path, check=True, timeout=60)
    wanted = add_noise(torch.zeros(1, 3, 32, 32), [0], std, "draw", 0, bin_width=bin_width)
    np.testing.assert_allclose(np.fromfile(tmp_path / "noise.bin", np.float32), wanted.numpy().ravel(), atol=1e-6)


def pixels_of(step, channels):
    """The drawing, uint8 (1, P, 4, 4)."""
    return torch.tensor(step["pixels"], dtype=torch.uint8).view(1, channels, 4, 4)


@torch.no_grad()
def compare_with_python(step, pipe):
    """Compare the class probabilities and edits on the page with Python."""
    patches = noisy_of(pipe, pixels_of(step, pipe.config.channels))
    probabilities = by_bayes(pipe.model.flow, patches).softmax(dim=1)[0]
    np.testing.assert_allclose(step["probabilities"], probabilities.numpy(), atol=1e-3)
    label = int(probabilities.argmax())
    assert (step["label"], step["labels"]) == (label, [label, *range(NUM_CLASSES)])
    assert step["prediction"] == f"Predicted class: {'abc'[label]}"
    assert f"{100 * step['probabilities'][label]:.1f}%" in step["bars"]

    flow, labels = pipe.model.flow, torch.tensor(step["labels"])
    noise = flow(patches, torch.tensor([label])).z / flow.prior_variance.sqrt()
    noise = mix_noise(noise, normal_for([0], tuple(noise.shape[1:]), "sample", 0), step["strength"])
    wanted = expected(pipe, noise.expand(len(labels), -1, -1), labels, 0.0, images=True)
    wanted = (wanted * 127.5 + 127.5).round().expand(-1, 3, -1, -1)
    found = torch.tensor(step["images"]).view(len(labels), 4, 4, 4)[..., :3].permute(0, 3, 1, 2)
    assert (found - wanted).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("needs_onnx")
@pytest.mark.parametrize("kind", ["default", "colour", "volume-preserving"])
def test_the_page_classifies_and_edits_a_drawing_like_python(visit, tmp_path, kind):
    model = model_of(tmp_path / "model", **KINDS[kind])
    found = visit(model, DRIVER)
    assert found["encoderRequests"] == [True]  # once, when Draw is opened

    pipe, steps = Pipeline.from_pretrained(model), found["steps"]
    channels = pipe.config.channels
    for name in ("mouse", "keys", "varied", "erased", "sample"):
        compare_with_python(steps[name], pipe)
        assert re.fullmatch(
            r"Encoded and classified in [\d.]+ ms, 4 images decoded in [\d.]+ ms.", steps[name]["draw-time"]
        )
    for name in ("empty", "cleared"):
        assert steps[name]["visible"] == {"hint": True, "classification": False, "edits": False, "cursor": False}
        assert steps[name]["hint"].startswith("Draw something")
    colour = torch.tensor([255] if channels == 1 else [0xFF, 0x80, 0x20])
    drawn = {name: pixels_of(step, channels)[0] for name, step in steps.items() if "pixels" in step}
    soft = 102 if channels == 1 else 0  # next to the brush
    assert (colour == drawn["mouse"][:, :3, 0].T).all()
    assert drawn["mouse"][0].tolist()[3] == [soft, 0, 0, 0]
    assert (drawn["mouse"][:, :3, 1] == soft).all()
    assert (drawn["keys"][:, 3, 3] == colour).all()  # the cursor stops at the edge
    assert steps["keys"]["visible"]["cursor"]
    assert (steps["keys"]["strength"], steps["varied"]["strength"]) == (0, 0.6)
    assert steps["varied"]["images"] != steps["keys"]["images"]
    assert (drawn["erased"][:, 1, 0] == 0).all()
    assert (drawn["erased"][:, 3, 3] == 0).all()
    second = pipe.sample_pixels([0, 1], seed=0)[1]
    assert (drawn["sample"].int() - second.int()).abs().max() <= 1
    assert found["modesVisible"] == [True, False]
    assert found["phoneWidth"] <= 360
    assert min(found["heights"]) >= 24  # pixels; WCAG 2.2, 2.5.8
