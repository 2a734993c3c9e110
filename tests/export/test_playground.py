"""The playground: its folder, its noise, and the page in Chromium."""

import base64
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from biflow.checkpoint import save_model
from biflow.data.labels import check_labels
from biflow.data.randomness import normal_for
from biflow.errors import InputError
from biflow.export import playground as site
from biflow.export import runtime
from biflow.pipeline import Pipeline
from tests.builders import tiny_config, tiny_model

PAGE = Path(site.__file__).parent / "page"
DRIVER = Path(__file__).with_name("drive_playground.mjs")


@pytest.fixture
def model(tmp_path):
    """A model of colour images, so that swapped channels are detected."""
    save_model(tiny_model(tiny_config(channels=3)), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def fake_runtime(tmp_path):
    """A folder with the file names of the runtime, as unpacked by npm."""
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    for name in runtime.FILES:
        (dist / name).write_text(f"placeholder for {name}")
    return tmp_path / "package"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "biflow"


def pack(folder, path):
    """Pack a folder as an npm package; returns its hash as npm reports it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "package")
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def test_the_folder_is_complete_and_can_be_replaced(biflow, model, fake_runtime, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "deep" / "site"
    code, stdout, _ = biflow("playground", model, "--out", out, "--runtime", fake_runtime)
    assert code == 0
    assert f"Wrote {out}." in " ".join(stdout.split())
    assert {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} == {
        *site.SITE_FILES,
        site.ENCODER_FILE,
    }
    site.check_site(out)
    card = json.loads((out / "model.json").read_text())
    assert (card["class_names"], card["null_label"], card["noise_shape"]) == (["a", "b", "c"], 3, [4, 12])
    assert (card["slider_guidance"], card["output"], card["channels"]) == (4.0, "image", 3)
    assert (out / "ort" / runtime.FILES[0]).read_text() == f"placeholder for {runtime.FILES[0]}"
    save_model(tiny_model(tiny_config(reverse=None)), tmp_path / "flow")
    with pytest.raises(InputError, match="reverse model"):
        site.write_site(tmp_path / "flow", tmp_path / "another", runtime=fake_runtime)
    assert not (tmp_path / "another").exists()


def test_the_page_links_to_no_other_host():
    for name in site.PAGE_FILES:
        text = (PAGE / name).read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[\w.-]+", text)) <= {"http://localhost"}, name


def test_every_control_has_a_label():
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    labelled = set(re.findall(r'<label for="([\w-]+)"', page))
    assert set(re.findall(r'<(?:input|select)[^>]* id="([\w-]+)"', page)) == labelled


BAD = {
    "not a runtime": ("new", "model", "--runtime FOLDER"),
    "a folder with other files": ("model", "package", "has files"),
    "a file instead of a folder": ("page.html", "package", "without .html"),
}


@pytest.mark.usefixtures("fake_runtime")
@pytest.mark.parametrize(("out", "given", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_rejected_before_anything_is_written(model, tmp_path, out, given, message):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        site.write_site(model, tmp_path / out, runtime=tmp_path / given)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_npm_the_error_suggests_a_folder(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"Expected npm.* not installed.*--runtime FOLDER"):
        runtime.copy_runtime(tmp_path / "ort", None)
    assert not any(cache.iterdir())


@pytest.mark.parametrize(
    ("script", "message"),
    [("echo 'npm error code ENOTFOUND' >&2; exit 1", "ENOTFOUND"), ("echo no package > x.tgz", "got another")],
)
def test_an_unavailable_or_wrong_package_is_rejected(cache, tmp_path, monkeypatch, script, message):
    (tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=f"{message}.*--runtime FOLDER"):
        runtime.copy_runtime(tmp_path / "ort", None)
    assert not any(cache.iterdir())


def test_the_cached_package_is_reused_unless_damaged(cache, fake_runtime, tmp_path, monkeypatch):
    cached = cache / f"onnxruntime-web-{runtime.VERSION}.tgz"
    monkeypatch.setattr(runtime, "SHA512", pack(fake_runtime, cached))
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    runtime.copy_runtime(tmp_path / "ort", None)
    assert sorted(file.name for file in (tmp_path / "ort").iterdir()) == sorted(runtime.FILES)
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(InputError, match="Expected npm"):
        runtime.copy_runtime(tmp_path / "ort", None)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_noise_matches_python(tmp_path):
    shutil.copy(PAGE / "noise.js", tmp_path / "noise.mjs")
    script = (
        "import { sampleNoise } from './noise.mjs'; import { writeFileSync } from 'node:fs';"
        "for (const seed of [0, 7, 2 ** 31])"
        " writeFileSync(`${seed}.bin`, new Uint8Array(sampleNoise(seed, 3, 99999).buffer));"
    )
    subprocess.run(["node", "--input-type=module", "-e", script], cwd=tmp_path, check=True, timeout=60)
    for seed in (0, 7, 2**31):
        found = np.fromfile(tmp_path / f"{seed}.bin", np.float32)
        wanted = normal_for(range(3), (99999,), "sample", seed).numpy().ravel()
        np.testing.assert_allclose(
            found, wanted, rtol=0, atol=1e-6
        )  # logarithm, sine and cosine are rounded differently


CLASS_NAMES = {
    "names": ("cat", "dog's", "blue whale"),
    "numbers from one": ("1", "2", "3"),
    "numbers in another order": ("2", "0", "1"),
    "equal names": ("a", "b", "a"),
    "equal numbers": ("1", "2", "2"),
    "numbers with zeros": ("3", "03", "1"),
    "special characters": ("$HOME", "-x", "a;b"),
}


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
@pytest.mark.parametrize("names", CLASS_NAMES.values(), ids=CLASS_NAMES.keys())
def test_the_command_on_the_page_selects_the_chosen_class(names):
    """The last label is the null label."""
    page = (PAGE / "app.js").read_text(encoding="utf-8")
    (function,) = re.findall(r"^function labelArgument\(.*?^}$", page, re.MULTILINE | re.DOTALL)
    card = json.dumps({"class_names": names, "num_classes": 3, "null_label": 3})
    script = f"const card = {card};\n{function}\nconsole.log(['0', '1', '2', '3'].map(labelArgument).join(' '))"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True, timeout=60)
    assert check_labels(shlex.split(done.stdout), 3, names).tolist() == [0, 1, 2, 3]


def images_of(grid, size=4, columns=10, gap=1):
    """The images (N, 3, H, W) on a canvas."""
    pixels = np.array(grid["data"]).reshape(grid["height"], grid["width"], 4)
    corners = [divmod(i, columns) for i in range(grid["count"])]
    cells = [pixels[row * (size + gap) :, column * (size + gap) :][:size, :size, :3] for row, column in corners]
    return np.stack(cells).transpose(0, 3, 1, 2)


@pytest.mark.slow
def test_the_page_matches_python_and_follows_its_controls(model, visit):
    found = visit(model, DRIVER)
    pipe = Pipeline.from_pretrained(model)
    assert [found["grids"][name]["guidance"] for name in ("first", "guided", "seeded")] == [0, 0.5, 0.5]
    for grid in found["grids"].values():
        count = grid["count"]
        labels = torch.arange(count) % 3 if grid["label"] == "all" else torch.full((count,), int(grid["label"]))
        wanted = pipe.sample_pixels(labels, guidance=grid["guidance"], seed=grid["seed"]).int().numpy()
        assert abs(images_of(grid) - wanted).max() <= 1
        assert f"--num {count} --seed {grid['seed']}" in grid["command"]
    assert len(set(found["moving"])) == 4  # the grid changes while the slider is dragged
    assert found["animated"]["seed"] > found["grids"]["seeded"]["seed"]
    assert re.search(r"10 images in .* ms, .* ms each \(median of \d+\)", found["time"])
    assert found["download"].endswith(".png")
    assert found["phoneWidth"] <= 360
    assert min(found["heights"]) >= 24  # pixels; WCAG 2.2, 2.5.8
