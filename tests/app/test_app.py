"""The demo app: results of the tabs, limits, and the page in a browser."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from biflow.app.backend import MAX_COMPARED, MAX_PIXELS, MAX_RESULTS, Backend, Figure, Section, TabResult, format_fixed
from biflow.app.html import result_html
from biflow.app.mask import EVERYTHING, HALVES, PAINTED, mask_of
from biflow.checkpoint import save_model
from biflow.data.formats import fault_of
from biflow.errors import InputError
from biflow.models.codec import VaeCodec
from biflow.pipeline import Pipeline
from biflow.sampling.samplers import SAMPLERS
from tests.builders import tiny_config, tiny_model

CHROMIUM = Path("/usr/bin/chromium")
AUDITED_CLI = """
import sys

def report_connections(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "localhost"):
        print("EXTERNAL", args[1], file=sys.stderr, flush=True)

sys.addaudithook(report_connections)
from biflow.cli.main import main

main()
"""
LIST_COMPONENTS = """
import json, sys
from biflow import Pipeline
from biflow.app.backend import Backend
from biflow.app.tabs import make_page

pages = [make_page(Backend(Pipeline.from_pretrained(folder))).config for folder in sys.argv[1:]]
ids = [[each["props"].get("elem_id") for each in page["components"]] for page in pages]
visibility = [[each["api_visibility"] for each in page["dependencies"]] for page in pages]
print(json.dumps(list(zip(ids, visibility))))
"""
VISIT_PAGE = """
const { chromium } = require('playwright-core');
const [url, path, files, upload] = [process.argv[2], process.argv[3], process.argv[4].split(','), process.argv[5]];
const quiet = ['gpu', 'quic', 'background-networking', 'component-update', 'sync'].map(name => `--disable-${name}`);
(async () => {
  const browser = await chromium.launch({ executablePath: path, args: ['--no-sandbox', '--no-first-run', ...quiet] });
  const page = await browser.newPage({ viewport: { width: 390, height: 844 } });
  const seen = { external: [], errors: [] };
  page.on('request', request => {
    const { protocol, hostname } = new URL(request.url());
    if (protocol.startsWith('http') && hostname !== '127.0.0.1') seen.external.push(request.url());
  });
  page.on('pageerror', error => seen.errors.push(error.message));
  const open = name => page.getByRole('tab', { name, exact: true }).click();
  const errorIn = async where => page.locator(`${where} [role=alert]`).innerText();
  const canvas = async () => (await page.locator('#canvas canvas').first().screenshot()).toString('base64');
  await page.goto(url);
  await page.click('#sample-go');
  await page.waitForSelector('#sample-result img');
  seen.samples = await page.locator('#sample-result img').count();
  await page.click('#sample-again');
  await page.waitForSelector('#sample-result .summary:not(:has-text("seed 0)"))');
  seen.toasts = await page.locator('.toast-body').count();
  seen.width = await page.evaluate(() => document.documentElement.scrollWidth);
  await open('Classify');
  await page.setInputFiles('#classify-files input[type=file]', [upload]);
  await page.waitForSelector('#classify-files .file-preview');
  await page.click('#classify-go');
  await page.waitForSelector('#classify-result figure');
  seen.classified = await page.locator('#classify-result figcaption').innerText();
  await open('Rank');
  await page.setInputFiles('#rank-files input[type=file]', files);
  await page.waitForSelector('#rank-files .file-preview');
  await page.click('#rank-go');
  seen.tooMany = await errorIn('#rank-result');
  await open('Edit');
  await page.click('#edit-sample');
  await page.waitForSelector('#edit-notes :text("sample of")');
  await page.click('#edit-inpaint');
  seen.unpainted = await errorIn('#edit-result');
  await page.mouse.move(0, 0);
  await page.waitForTimeout(1000);
  const clean = await canvas();
  const box = await page.locator('#canvas canvas').first().boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width / 2 + 40, box.y + box.height / 2, { steps: 5 });
  await page.mouse.up();
  await page.mouse.move(0, 0);
  await page.waitForTimeout(1000);
  seen.painted = (await canvas()) !== clean;
  await page.getByLabel('Clear canvas').click();
  await page.mouse.move(0, 0);
  for (let i = 0; i < 40 && !seen.restored; i++) {
    await page.waitForTimeout(250);
    seen.restored = (await canvas()) === clean;
  }
  await page.getByLabel('lower half').check();
  await page.click('#edit-inpaint');
  await page.waitForSelector('#edit-result img');
  seen.edits = await page.locator('#edit-result img').count();
  await browser.close();
  console.log(JSON.stringify(seen));
})().catch(error => { console.error(error); process.exit(1); });
"""


@pytest.fixture
def backend():
    return Backend(Pipeline(tiny_model()))


@pytest.fixture
def flow_only():
    return Backend(Pipeline(tiny_model(tiny_config(reverse=None))))


@pytest.fixture
def unconditional():
    return Backend(Pipeline(tiny_model(tiny_config(num_classes=0))))


@pytest.fixture
def upload(tmp_path):
    """A function: a name and an image or array, by default random -> the path of the file, as text."""

    def write(name, image=None):
        if image is None:
            image = np.random.default_rng(len(name)).integers(0, 256, (4, 4), np.uint8)
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(tmp_path / name)
        return str(tmp_path / name)

    return write


def with_names(*names):
    """A tiny model with these class names."""
    model = tiny_model()
    model.class_names = names
    return model


def figures_of(result):
    return [figure for section in result.sections for figure in section.figures]


def test_samples_match_the_pipeline_and_cycle_through_the_classes(backend):
    result = backend.sample(["c", "a"], 3, seed=4, method="reverse", guidance=0.0)
    figures = figures_of(result)
    assert [each.title for each in figures] == ["c", "a", "c"]
    expected = backend.pipe.sample_pixels([2, 0, 2], seed=4)
    assert (torch.stack([each.pixels for each in figures]) == expected).all()
    assert re.fullmatch(r"3 images in [\d.]+ m?s \(seed 4\)", result.summary)


def test_without_classes_samples_cycle_through_all(backend, unconditional):
    assert [each.title for each in figures_of(backend.sample([], 4))] == ["a", "b", "c", "a"]
    assert [each.title for each in figures_of(unconditional.sample([], 2))] == ["", ""]


@pytest.mark.parametrize("count", [0, 101, 2.5])
def test_a_count_beyond_the_limit_is_rejected(backend, count):
    with pytest.raises(InputError, match="the number of images to be a whole number from 1 to 100"):
        backend.sample([], count)


def test_an_unknown_class_raises_with_the_nearest_name(backend):
    named = Backend(Pipeline(with_names("apple", "pear", "plum")))
    with pytest.raises(InputError, match="Unknown class 'appel'; did you mean apple"):
        named.sample(["appel"], 1)
    with pytest.raises(InputError, match="Unknown class 'z'"):
        backend.reclass(backend.sample_one("a"), "a", ["z"])


def test_duplicate_class_names_are_numbered():
    named = Backend(Pipeline(with_names("crane", "crane", "dog")))
    assert named.class_names == ["crane (0)", "crane (1)", "dog", "no class"]


def test_the_guidance_slider_ends_at_the_trained_maximum(backend, flow_only, unconditional):
    trained = tiny_config(reverse={**tiny_config().reverse.model_dump(), "guidance": "trained", "max_guidance": 1.5})
    assert Backend(Pipeline(tiny_model(trained))).max_guidance == 1.5
    assert backend.max_guidance == flow_only.max_guidance == 3
    assert unconditional.max_guidance == 0


def test_a_flow_without_a_reverse_model_offers_exact_inverses(flow_only):
    assert [*flow_only.methods.values()] == [name for name, each in SAMPLERS.items() if "reverse" not in each.uses]
    assert len(figures_of(flow_only.sample([], 2, method="sequential"))) == 2
    assert "no reverse model" in flow_only.model_summary()


def test_compare_uses_the_same_noise_for_every_method(backend, flow_only):
    result = backend.compare(["b"], 2, seed=1)
    assert len(result.sections) == 5
    assert len(flow_only.compare([], 1).sections) == 3
    by_method = dict(zip(backend.methods.values(), result.sections, strict=True))
    exact = torch.stack([each.pixels for each in by_method["sequential"].figures])
    assert (exact == backend.pipe.sample_pixels([1, 1], method="sequential", seed=1)).all()
    assert "difference" not in by_method["sequential"].details
    for method in ("jacobi", "gs-jacobi", "refine"):
        assert by_method[method].details.endswith(", difference 0.0"), method
    with pytest.raises(InputError, match=f"a whole number from 1 to {MAX_COMPARED}"):
        backend.compare([], MAX_COMPARED + 1)


def test_too_many_uploads_are_rejected_before_reading(backend):
    with pytest.raises(InputError, match=r"at most 100 images at once; got 500.*--max-images.*biflow score"):
        backend.rank(["nowhere.png"] * 500)
    assert len(figures_of(Backend(backend.pipe, max_images=1).sample([], 1))) == 1
    with pytest.raises(InputError, match="at most 1 image at once"):
        Backend(backend.pipe, max_images=1).classify(["nowhere.png"] * 2)


@pytest.mark.parametrize("side", [8_001, 10_000, 14_000])
def test_an_image_with_too_many_pixels_is_rejected_by_its_header(backend, upload, side):
    huge = upload("huge.png", Image.new("1", (side, side)))
    assert Path(huge).stat().st_size < 100_000
    assert side**2 > MAX_PIXELS
    with pytest.raises(InputError, match=r"cannot read huge.png \(.*megapixels"):
        backend.classify([huge])


def test_files_that_are_not_images_are_named_and_skipped(backend, upload, tmp_path):
    (tmp_path / "notes.png").write_text("precious")
    result = backend.classify([str(tmp_path / "notes.png"), upload("one.png")])
    assert len(figures_of(result)) == 1
    assert result.notes == [f"Skipped notes.png ({fault_of(bytes(12))})."]
    with pytest.raises(InputError, match=r"cannot read notes\.png"):
        backend.rank([str(tmp_path / "notes.png")])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.png").write_bytes(b"")
    both = [str(tmp_path / "notes.png"), str(tmp_path / "other" / "notes.png")]
    with pytest.raises(InputError, match=r"notes\.png \(not a PNG.*, notes\.png \(1\) \(an empty file\)"):
        backend.rank(both)
    for empty in ([], None):
        with pytest.raises(InputError, match="Expected one or more images; got none"):
            backend.classify(empty)


def test_notes_say_how_an_upload_was_converted(backend, upload):
    wide = upload("wide.png", Image.new("RGB", (40, 20)))
    done = "wide.png was converted to grey, resized to 4x4 and cropped to the central square."
    assert backend.classify([wide]).notes == backend.rank([wide]).notes[:-1] == [done]
    picture, notes = backend.open(wide)
    assert (tuple(picture.pixels.shape), notes) == ((1, 4, 4), [done])
    assert backend.rank([upload("fits.png")]).notes == ["Higher bits/dim means less likely."]


def test_notes_group_uploads_with_the_same_conversion(backend, upload):
    files = [upload(f"{i}.png", Image.new("L", (9, 9))) for i in range(3)]
    files += [upload(f"x{i}.png", Image.new("RGB", (10 + i, 10 + i))) for i in range(7)]
    files += [upload("wide.png", Image.new("L", (9, 5)))]
    assert backend.classify(files).notes == [
        "7 images were converted to grey and resized to 4x4.",
        "3 images were resized to 4x4.",
        "wide.png was resized to 4x4 and cropped to the central square.",
    ]
    files += [upload("broad.png", Image.new("RGB", (9, 5)))]
    notes = backend.classify(files).notes
    assert notes[2:] == ["2 more had other conversions."]


def test_a_note_says_that_a_transparent_image_was_laid_on_white(backend, upload):
    picture, notes = backend.open(upload("glass.png", Image.new("LA", (4, 4), (0, 128))))
    assert notes == ["glass.png was composited on white."]
    assert 100 < int(picture.pixels[0, 0, 0]) < 150
    for name, image in {"rgba.png": Image.new("RGBA", (4, 4)), "sixteen.png": Image.new("I;16", (4, 4))}.items():
        done = ("composited on white", "converted to grey") if name == "rgba.png" else ()
        assert backend.open(upload(name, image))[0].changes == done
    assert backend.open(upload("opaque.png", Image.new("LA", (4, 4), (0, 255))))[1] == []


def test_bayes_is_the_default_classification_method_for_few_classes():
    few, many = (Backend(Pipeline(tiny_model(tiny_config(num_classes=count)))) for count in (50, 51))
    assert (few.classify_method, many.classify_method) == ("bayes", "gradient")


def test_classification_matches_the_pipeline_and_shows_bits_per_dim(backend, upload):
    files = [upload("one.png"), upload("three.png")]
    figures = figures_of(backend.classify(files, "bayes"))
    pixels = torch.stack([each.pixels for each in figures])
    found = backend.pipe.classify(pixels, method="bayes").probabilities
    for figure, probabilities, bits in zip(figures, found, backend.pipe.log_prob(pixels).bits_per_dim, strict=True):
        assert figure.title == f"{'abc'[int(probabilities.argmax())]}: {float(probabilities.max()):.1%}"
        assert f"{float(bits):.2f} bits/dim" in figure.lines
    assert backend.predict_class(backend.open(files[0])[0]) == figures_of(backend.classify(files[:1]))[0].title[0]


def test_rank_sorts_uploads_least_likely_first(backend, upload):
    files = [upload("flat.png", np.full((4, 4), 128, np.uint8))] + [upload(f"{'n' * i}.png") for i in range(1, 5)]
    for name in (None, "no class", "b"):
        figures = figures_of(backend.rank(files, name))
        pixels = torch.stack([each.pixels for each in figures])
        bits = backend.pipe.log_prob(pixels, [1 if name == "b" else 3] * 5).bits_per_dim
        values = [float(each.lines[0].split()[0]) for each in figures]
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx(bits.tolist(), abs=0.2)  # the dequantisation noise depends on the index
        assert sorted(each.lines[1] for each in figures) == sorted(Path(file).name for file in files)


def test_an_unconditional_model_ranks_and_edits_but_does_not_classify(unconditional, upload):
    assert len(figures_of(unconditional.rank([upload("one.png")]))) == 1
    picture, _ = unconditional.open(upload("one.png"))
    assert unconditional.predict_class(picture) == ""
    assert len(figures_of(unconditional.vary(picture, None, strength=0.2, num=2))) == 3
    with pytest.raises(InputError, match="model with classes to classify"):
        unconditional.classify([upload("one.png")])
    with pytest.raises(InputError, match="model with classes to change"):
        unconditional.reclass(picture, None, ["a"])


def test_a_latent_model_classifies_without_bits_per_dim_and_cannot_rank(autoencoder, upload):
    config = tiny_config(codec=f"vae:{autoencoder}", channels=4)
    backend = Backend(Pipeline(tiny_model(config)))
    assert isinstance(backend.pipe.model.codec, VaeCodec)
    photo = upload("photo.png", Image.new("RGB", (12, 8), "red"))
    result = backend.classify([photo])
    assert not any("bits" in line for figure in figures_of(result) for line in figure.lines)
    assert any("no image likelihood" in note for note in result.notes)
    with pytest.raises(InputError, match="models latents"):
        backend.rank([photo])
    assert len(figures_of(backend.inpaint(backend.open(photo)[0], mask_of("upper half", [], 8), "a", proposals=2))) == 4


def test_inpainting_keeps_the_pixels_outside_the_mask(backend, upload):
    picture, _ = backend.open(upload("one.png"))
    mask = mask_of("left half", [], 4)
    image, mask_figure, *results = figures_of(backend.inpaint(picture, mask, "b", proposals=3))
    assert len(results) == 3
    assert mask_figure.pixels.shape[0] == 3
    for result in results:
        assert (result.pixels[:, ~mask] == image.pixels[:, ~mask]).all()
    nats = [float(each.lines[0].split()[0]) for each in results]
    assert nats == sorted(nats, reverse=True)


def test_an_empty_mask_is_rejected_and_a_full_one_noted(backend, upload):
    picture, _ = backend.open(upload("one.png"))
    with pytest.raises(InputError, match="nothing is painted"):
        backend.inpaint(picture, mask_of(PAINTED, [], 4), "a", proposals=1)
    full = np.full((8, 8, 4), 255, np.uint8)
    for mask in (mask_of(PAINTED, [full], 4), mask_of(EVERYTHING, [], 4)):
        notes = backend.inpaint(picture, mask, "a", proposals=1).notes
        assert notes[-1] == "The mask covers the whole image: the proposals are unconstrained samples."


def test_an_edit_without_image_or_class_is_rejected(backend, upload):
    with pytest.raises(InputError, match="Expected an image to edit; got none"):
        backend.vary(None, "a", strength=0.5, num=1)
    picture, _ = backend.open(upload("one.png"))
    with pytest.raises(InputError, match="Expected the class of the image"):
        backend.vary(picture, None, strength=0.5, num=1)
    with pytest.raises(InputError, match="one or more target classes"):
        backend.reclass(picture, "a", [])
    with pytest.raises(InputError, match=f"the number of results to be a whole number from 1 to {MAX_RESULTS}"):
        backend.vary(picture, "a", strength=0.5, num=MAX_RESULTS + 1)
    with pytest.raises(InputError, match="Expected strength to be a number from 0 to 1"):
        backend.vary(picture, "a", strength=7, num=1)


def test_reclass_gives_one_result_per_target_class(backend):
    picture = backend.sample_one("a", seed=3)
    assert (picture.pixels == backend.pipe.sample_pixels([0], seed=3)[0]).all()
    figures = figures_of(backend.reclass(picture, "a", ["b", "c"], seed=1))
    assert [each.title for each in figures] == ["input: a", "b", "c"]


def test_a_pixel_is_masked_where_enough_of_it_is_painted():
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:3, :2, 3] = 255  # the first pixel of 4x4, and half of the one below
    layer[7, 7, 3] = 200  # a fifth of the last pixel
    mask = mask_of(PAINTED, [layer], 4)
    assert mask.nonzero().tolist() == [[0, 0], [1, 0]]


def test_strokes_in_the_margin_of_the_canvas_are_ignored(backend):
    from biflow.app.edit import canvas_side, canvas_value, crop_margin

    framed = canvas_value(backend.sample_one("a"))["background"]
    side = canvas_side(backend)
    assert framed.size == (side, side)
    layer = np.zeros((side, side, 4), np.uint8)
    layer[:, : side // 10, 3] = 255  # the margin only
    assert not mask_of(PAINTED, [crop_margin(layer)], 4).any()
    layer[:, : side // 10 + side // 5, 3] = 255  # and the first quarter of the image
    assert mask_of(PAINTED, [crop_margin(layer)], 4).nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]


def test_halves_cover_the_image_together():
    halves = [mask_of(part, [], 4) for part in HALVES]
    assert (halves[0] ^ halves[1]).all()
    assert (halves[2] ^ halves[3]).all()
    assert halves[0][0].all()
    assert halves[2][:, 0].all()
    with pytest.raises(InputError, match="Unknown part"):
        mask_of("middle", [], 4)


def test_text_is_escaped_in_html():
    figure = Figure(torch.zeros(1, 4, 4, dtype=torch.uint8), "<b>", ["<script>"])
    text = result_html(TabResult("<i>", [Section("<h>", [figure], "<f>")], ["<n>"]))
    assert not any(name in text for name in ("<b><b>", "<script>", "<i>", "<h>", "<f>", "<n>"))
    assert "&lt;script&gt;" in text


def test_an_error_appears_escaped_in_the_first_html_output():
    from types import SimpleNamespace

    from biflow.app.controls import Controls

    class Html:
        pass

    def fn(_):
        raise InputError("cannot read <img src=x onerror=alert(1)>.png")

    gr = SimpleNamespace(HTML=Html, skip=lambda: "unchanged")
    connected = {}
    controls = Controls(gr, None)
    for outputs in ([object(), Html(), Html()], [Html()]):
        controls.connect(lambda call, *_, **__: connected.update(call=call), fn, [], outputs)
        values = connected["call"](1) if len(outputs) > 1 else ["unchanged", connected["call"](1), "unchanged"]
        assert values[0] == values[2] == "unchanged"
        assert 'role="alert">cannot read &lt;img src=x' in values[1]
        assert "<img" not in values[1]


@pytest.mark.parametrize("value", [None, 2.5])
def test_a_seed_must_be_a_whole_number(value):
    from biflow.app.controls import sampling_options, to_int

    assert to_int(3.0, "seed") == 3
    with pytest.raises(InputError, match="Expected a whole number as seed; got "):
        sampling_options(0.0, value)


def test_zero_has_no_sign():
    assert format_fixed(-0.04, 1) == "0.0"
    assert format_fixed(-0.06, 1) == "-0.1"


def test_importing_the_app_does_not_import_gradio():
    code = "import sys, biflow.cli, biflow.app.server, biflow.app.tabs; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_gradio_raises_with_the_extra_to_install(monkeypatch):
    from biflow.app.controls import import_gradio

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install 'biflow\[demo\]'"):
        import_gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


@pytest.mark.slow
def test_the_page_builds_for_every_kind_of_model(tmp_path, autoencoder):
    pytest.importorskip("gradio")
    kinds = {"full": {}, "flow only": {"reverse": None}, "unconditional": {"num_classes": 0}}
    kinds["latents"] = {"codec": f"vae:{autoencoder}", "channels": 4}
    for kind, changes in kinds.items():
        save_model(tiny_model(tiny_config(**changes)), tmp_path / kind)
    command = [
        sys.executable,
        "-c",
        LIST_COMPONENTS,
        *(str(tmp_path / kind) for kind in kinds),
    ]  # in a subprocess: gradio leaves event loops open
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for kind, (ids, visibility) in zip(kinds, listed, strict=True):
        assert {"sample-go", "edit-inpaint", "compare-go"} <= set(ids)
        assert ("classify-go" in ids) == (kind != "unconditional")
        assert ("rank-go" in ids) == (kind != "latents")
        assert set(visibility) == {"private"}


@pytest.mark.parametrize(("length", "status"), [(10, 200), (11, 413)])
def test_a_too_large_request_is_rejected_before_it_is_read(length, status):
    import asyncio

    from biflow.app.middleware import LimitBody

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200})

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"content-length", str(length).encode())]}
    asyncio.run(LimitBody(app, max_bytes=10)(scope, None, send))
    assert sent[0]["status"] == status


@pytest.mark.parametrize(
    ("method", "origin", "passed"),
    [
        ("POST", "http://evil.example", False),
        ("POST", "https://127.0.0.1", False),
        ("POST", "http://127.0.0.1.evil.example", False),
        ("DELETE", "null", False),
        ("POST", "http://[", False),
        ("GET", "http://evil.example", True),
        ("POST", "http://127.0.0.1:7860", True),
        ("POST", "http://localhost:1", True),
        ("POST", "http://[::1]:7860", True),
        ("POST", None, True),
    ],
)
def test_cross_site_requests_can_only_read(method, origin, passed):
    import asyncio

    from biflow.app.middleware import LocalOriginOnly

    sent = []

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    headers = [(b"origin", origin.encode())] if origin is not None else []
    asyncio.run(LocalOriginOnly(app)({"type": "http", "method": method, "headers": headers}, None, send))
    assert sent[0]["status"] == (200 if passed else 403)


def through(middleware, **request):
    """What an app behind this middleware is asked, and the headers of its answer."""
    import asyncio

    asked, sent = [], []

    async def app(scope, _receive, send):
        asked.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"server", b"x")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    asyncio.run(middleware(app)({"type": "http", **request}, None, send))
    return asked[0], sent


def test_no_page_may_show_this_one_in_a_frame():
    from biflow.app.middleware import NoFrames

    _, (start, body) = through(NoFrames, headers=[])
    assert start["headers"] == [(b"server", b"x"), (b"content-security-policy", b"frame-ancestors 'none'")]
    assert body == {"type": "http.response.body", "body": b""}


def test_a_request_cannot_claim_another_address_of_the_page():
    from biflow.app.middleware import OwnAddress

    claims = [(b"x-forwarded-host", b"evil.example"), (b"x-gradio-server", b"http://evil.example")]
    asked, _ = through(OwnAddress, path="/", headers=[(b"host", b"localhost"), *claims])
    assert asked == {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}


LEAVE_UPLOADS = """
import os, signal, sys
from pathlib import Path
from biflow.app.traces import upload_folder

with upload_folder() as folder:
    Path(folder, "upload.png").write_bytes(b"x")
    print(folder, flush=True)
    if sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_uploads_are_deleted_however_the_app_ends(killed):
    command = [sys.executable, "-c", LEAVE_UPLOADS, *["kill"] * killed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL if killed else 0, "")
    folder = Path(done.stdout.strip())
    assert folder.name.startswith("biflow-app-")
    for _ in range(100 if killed else 1):
        if folder.exists():
            time.sleep(0.1)
    assert not folder.exists()


def test_what_is_written_to_stderr_is_cut(capsys):
    from biflow.app.traces import short_errors

    with short_errors():
        sys.stderr.write("a sentence\n")
        sys.stderr.write("x" * 10**6 + "\n")
        assert sys.stderr.isatty() is False
    sys.stderr.write("y" * 1000)
    lines = capsys.readouterr().err.split("\n")
    assert lines == ["a sentence", "x" * 500 + "... (1,000,001 characters)", "y" * 1000]


def test_an_unknown_address_and_a_port_in_use_raise_different_errors():
    from biflow.app.server import check_address

    for host in ("nosuch.invalid", "192.0.2.1"):
        with pytest.raises(InputError, match=f"Expected an address of this machine; got '{host}'"):
            check_address(host, 7860)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(InputError, match=f"Expected a free port on 127.0.0.1; {port} is not available"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


@pytest.mark.slow
def test_a_folder_without_a_model_is_a_one_line_error(tmp_path):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "biflow", "app", str(tmp_path / "nothing")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: Expected ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """A function: the page's address, 500 files, one file -> what Chromium saw on the page."""
    pytest.importorskip("gradio")
    for program in ("node", "npm"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} does not exist")
    folder = tmp_path_factory.mktemp("browser")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "playwright-core"]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=300).returncode:
        pytest.skip("npm cannot install playwright-core")
    (folder / "visit.js").write_text(VISIT_PAGE)

    def call(address, files, upload):
        command = ["node", "visit.js", address, str(CHROMIUM), ",".join(files), upload]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.fixture
def server(tmp_path):
    """The address of an app with a tiny model; Ctrl-C must stop it within seconds."""
    save_model(tiny_model(), tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", tmp_path / "log.txt"
    command = [sys.executable, "-c", AUDITED_CLI, "app", str(tmp_path / "model"), "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        for _ in range(240):
            if process.poll() is not None or f"Open {address}" in log.read_text():
                break
            time.sleep(0.5)
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=30)
    assert code == 0, log.read_text()
    assert "EXTERNAL" not in log.read_text()
    assert log.read_text().endswith("Stopped.\n")


def fetch(url, body=None, **headers):
    """Status and text of a response."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.slow
def test_the_page_works_in_a_browser_without_external_requests(server, visit, upload, tmp_path):
    one = upload("one.png")
    many = [shutil.copy(one, tmp_path / f"{i}.png") for i in range(500)]
    seen = visit(server, [str(each) for each in many], one)
    assert seen["external"] == seen["errors"] == []
    assert seen["samples"] == 16
    assert seen["toasts"] == 0
    assert seen["width"] == 390
    assert "%" in seen["classified"]
    assert "one.png" in seen["classified"]
    assert "Expected at most 100 images at once; got 500." in seen["tooMany"]
    assert "nothing is painted" in seen["unpainted"]
    assert seen["painted"]
    assert seen["restored"]
    assert seen["edits"] == 6
    assert (tmp_path / "log.txt").read_text() == f"Open {server}/ in a browser; press Ctrl-C to stop.\n"


def dependency_of(config, elem_id):
    """The event of Gradio that has this component among its inputs, and the component's index there."""
    component = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == elem_id)
    found = next(each for each in config["dependencies"] if component in each["inputs"])
    return found, found["inputs"].index(component)


@pytest.mark.slow
def test_a_rejected_value_and_a_claimed_address_come_back_nowhere(server, tmp_path):
    for name in ("X-Forwarded-Host", "X-Gradio-Server"):
        assert "evil.example" not in fetch(f"{server}/", **{name: "http://evil.example"})[1]
    with urllib.request.urlopen(server, timeout=20) as response:
        assert response.headers["content-security-policy"] == "frame-ancestors 'none'"
    inpaint, index = dependency_of(json.loads(fetch(f"{server}/config")[1]), "edit-region")
    data = [None] * len(inpaint["inputs"])
    data[index] = "secret" * 10**6
    body = {"data": data, "fn_index": inpaint["id"], "session_hash": "s"}
    post = {"Content-Type": "application/json"}
    assert fetch(f"{server}/gradio_api/queue/join", json.dumps(body).encode(), **post)[0] == 200
    response = fetch(f"{server}/gradio_api/queue/data?session_hash=s")[1]
    assert '"success":false' in response.replace(" ", "")
    assert "secret" in (log := (tmp_path / "log.txt").read_text())
    assert len(log) < 10_000


@pytest.mark.slow
def test_the_server_exposes_no_files_and_no_api_docs(server):
    secret = Path(__file__)
    for path in (f"gradio_api/file={secret}", "gradio_api/file=pyproject.toml", "openapi.json", "docs", "monitoring"):
        assert fetch(f"{server}/{path}")[0] in {403, 404}, path
    assert fetch(f"{server}/", Host="elsewhere.example")[0] == 400
    assert fetch(f"{server}/gradio_api/upload", b"", Origin="http://elsewhere.example")[0] == 403
    config = json.loads(fetch(f"{server}/config")[1])
    rank, _ = dependency_of(config, "rank-files")
    given = [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}]
    body = {"data": [given, "no class"], "fn_index": rank["id"], "session_hash": "s"}
    post = {"Content-Type": "application/json"}
    assert fetch(f"{server}/gradio_api/queue/join", json.dumps(body).encode(), **post)[0] == 200
    response = fetch(f"{server}/gradio_api/queue/data?session_hash=s")[1]
    assert '"success":false' in response.replace(" ", "")
    assert "bits/dim" not in response
