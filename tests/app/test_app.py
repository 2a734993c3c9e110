"""The app: what its tabs do, its limits, and the page in a browser."""

import json
import os
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

from biflow.app.html import as_html
from biflow.app.studio import MOST_COMPARED, MOST_RESULTS, Figure, Part, Shown, Studio, decimals
from biflow.app.uploads import EVERYTHING, HALVES, MOST_PIXELS, PAINTED, mask_of
from biflow.checkpoint import save_model
from biflow.errors import InputError
from biflow.models.codec import VaeCodec
from biflow.pipeline import Pipeline
from tests.builders import tiny_config, tiny_model

CHROMIUM = Path("/usr/bin/chromium")
WATCHED = """
import sys

def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "localhost"):
        print("FOREIGN", args[1], file=sys.stderr, flush=True)

sys.addaudithook(watch)
from biflow.cli import main

main()
"""
LISTED = """
import json, sys
from biflow import Pipeline
from biflow.app.studio import Studio
from biflow.app.tabs import make_page

pages = [make_page(Studio(Pipeline.from_pretrained(folder))).config for folder in sys.argv[1:]]
parts = [[each["props"].get("elem_id") for each in page["components"]] for page in pages]
calls = [[each["api_visibility"] for each in page["dependencies"]] for page in pages]
print(json.dumps(list(zip(parts, calls))))
"""
VISIT = """
const { chromium } = require('playwright-core');
const [url, path, files, upload] = [process.argv[2], process.argv[3], process.argv[4].split(','), process.argv[5]];
const quiet = ['gpu', 'quic', 'background-networking', 'component-update', 'sync'].map(name => `--disable-${name}`);
(async () => {
  const browser = await chromium.launch({ executablePath: path, args: ['--no-sandbox', '--no-first-run', ...quiet] });
  const page = await browser.newPage({ viewport: { width: 390, height: 844 } });
  const seen = { foreign: [], errors: [] };
  page.on('request', request => {
    const { protocol, hostname } = new URL(request.url());
    if (protocol.startsWith('http') && hostname !== '127.0.0.1') seen.foreign.push(request.url());
  });
  page.on('pageerror', error => seen.errors.push(error.message));
  const open = name => page.getByRole('tab', { name, exact: true }).click();
  const said = async where => page.locator(`${where} [role=alert]`).innerText();
  const shown = async () => (await page.locator('#canvas canvas').first().screenshot()).toString('base64');
  await page.goto(url);
  await page.click('#sample-go');
  await page.waitForSelector('#sample-result img');
  seen.samples = await page.locator('#sample-result img').count();
  await page.click('#sample-again');
  await page.waitForSelector('#sample-result .said:not(:has-text("seed 0,"))');
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
  seen.many = await said('#rank-result');
  await open('Edit');
  await page.click('#edit-sample');
  await page.waitForSelector('#edit-said :text("a sample of")');
  await page.click('#edit-redraw');
  seen.bare = await said('#edit-result');
  await page.mouse.move(0, 0);
  await page.waitForTimeout(1000);
  const clean = await shown();
  const box = await page.locator('#canvas canvas').first().boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width / 2 + 40, box.y + box.height / 2, { steps: 5 });
  await page.mouse.up();
  await page.mouse.move(0, 0);
  await page.waitForTimeout(1000);
  seen.painted = (await shown()) !== clean;
  await page.getByLabel('Clear canvas').click();
  await page.mouse.move(0, 0);
  for (let i = 0; i < 40 && !seen.restored; i++) {
    await page.waitForTimeout(250);
    seen.restored = (await shown()) === clean;
  }
  await page.getByLabel('lower half').check();
  await page.click('#edit-redraw');
  await page.waitForSelector('#edit-result img');
  seen.edits = await page.locator('#edit-result img').count();
  await browser.close();
  console.log(JSON.stringify(seen));
})().catch(error => { console.error(error); process.exit(1); });
"""


@pytest.fixture
def studio():
    return Studio(Pipeline(tiny_model()))


@pytest.fixture
def flow_only():
    return Studio(Pipeline(tiny_model(tiny_config(reverse=None))))


@pytest.fixture
def unconditional():
    return Studio(Pipeline(tiny_model(tiny_config(num_classes=0))))


@pytest.fixture
def upload(tmp_path):
    """A function: a name, and grey levels or an image -> the path of the file, as text."""

    def write(name, image=None):
        if image is None:
            image = np.random.default_rng(len(name)).integers(0, 256, (4, 4), np.uint8)
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(tmp_path / name)
        return str(tmp_path / name)

    return write


def figures_of(shown):
    return [figure for part in shown.parts for figure in part.figures]


def test_samples_are_those_of_the_pipeline_with_classes_in_turn(studio):
    shown = studio.sample(["c", "a"], 3, seed=4, method="reverse", guidance=0.0)
    figures = figures_of(shown)
    assert [each.title for each in figures] == ["c", "a", "c"]
    expected = studio.pipe.sample_pixels([2, 0, 2], seed=4)
    assert (torch.stack([each.pixels for each in figures]) == expected).all()
    assert shown.said.startswith("3 images, seed 4, in ")


def test_without_a_class_all_take_turns(studio, unconditional):
    assert [each.title for each in figures_of(studio.sample([], 4))] == ["a", "b", "c", "a"]
    assert [each.title for each in figures_of(unconditional.sample([], 2))] == ["", ""]


@pytest.mark.parametrize("count", [0, 101, 2.5])
def test_a_count_beyond_the_limit_is_refused(studio, count):
    with pytest.raises(InputError, match="from 1 to 100 images"):
        studio.sample([], count)


def test_a_class_that_does_not_exist_is_answered_with_the_nearest(studio):
    named = Studio(Pipeline(tiny_model()._replace(class_names=("apple", "pear", "plum"))))
    with pytest.raises(InputError, match="Unknown class 'appel'; did you mean apple"):
        named.sample(["appel"], 1)
    with pytest.raises(InputError, match="Unknown class 'z'"):
        studio.reclass(studio.sample_one("a"), "a", ["z"])


def test_classes_of_one_name_are_told_apart():
    named = Studio(Pipeline(tiny_model()._replace(class_names=("crane", "crane", "dog"))))
    assert named.names == ["crane (0)", "crane (1)", "dog", "no class"]


def test_guidance_is_offered_as_far_as_it_was_trained(studio, flow_only, unconditional):
    trained = tiny_config(reverse={**tiny_config().reverse.model_dump(), "guidance": "trained", "max_guidance": 1.5})
    assert Studio(Pipeline(tiny_model(trained))).most_guidance == 1.5
    assert studio.most_guidance == flow_only.most_guidance == 3
    assert unconditional.most_guidance == 0


def test_a_model_with_a_flow_alone_is_sampled_by_exact_inverses(flow_only):
    assert set(flow_only.methods.values()) == {"sequential", "jacobi", "gs-jacobi"}
    assert len(figures_of(flow_only.sample([], 2, method="sequential"))) == 2
    assert "no reverse model" in flow_only.facts()


def test_samplers_are_compared_on_the_same_noise(studio, flow_only):
    shown = studio.compare(["b"], 2, seed=1)
    assert len(shown.parts) == 5
    assert len(flow_only.compare([], 1).parts) == 3
    by_name = dict(zip(studio.methods.values(), shown.parts, strict=True))
    exact = torch.stack([each.pixels for each in by_name["sequential"].figures])
    assert (exact == studio.pipe.sample_pixels([1, 1], method="sequential", seed=1)).all()
    assert "away" not in by_name["sequential"].facts
    for method in ("jacobi", "gs-jacobi", "refine"):
        assert by_name[method].facts.endswith(", 0.0 away"), method
    with pytest.raises(InputError, match=f"from 1 to {MOST_COMPARED}"):
        studio.compare([], MOST_COMPARED + 1)


def test_too_many_uploads_are_refused_unread(studio):
    with pytest.raises(InputError, match=r"at most 100 images at once; got 500.*--max-images.*biflow score"):
        studio.rank(["nowhere.png"] * 500)
    assert len(figures_of(Studio(studio.pipe, most=1).sample([], 1))) == 1
    with pytest.raises(InputError, match="at most 1 image at once"):
        Studio(studio.pipe, most=1).classify(["nowhere.png"] * 2)


@pytest.mark.parametrize("side", [8_001, 10_000, 14_000])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(studio, upload, side):
    huge = upload("huge.png", Image.new("1", (side, side)))
    assert Path(huge).stat().st_size < 100_000
    assert side**2 > MOST_PIXELS
    with pytest.raises(InputError, match=r"cannot read huge.png \(.*megapixels"):
        studio.classify([huge])


def test_what_is_no_image_is_named_and_left_out(studio, upload, tmp_path):
    (tmp_path / "notes.png").write_text("precious")
    shown = studio.classify([str(tmp_path / "notes.png"), upload("one.png")])
    assert len(figures_of(shown)) == 1
    assert shown.notes == ["Skipped notes.png (not a PNG, JPEG, WebP, BMP or TIFF image)."]
    with pytest.raises(InputError, match=r"cannot read notes\.png"):
        studio.rank([str(tmp_path / "notes.png")])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.png").write_bytes(b"")
    both = [str(tmp_path / "notes.png"), str(tmp_path / "other" / "notes.png")]
    with pytest.raises(InputError, match=r"notes\.png \(not a PNG.*, notes\.png \(an empty file\)"):
        studio.rank(both)
    for nothing in ([], None):
        with pytest.raises(InputError, match="Expected one or more images; got none"):
            studio.classify(nothing)


def test_what_was_done_with_an_image_of_another_shape_is_said(studio, upload):
    wide = upload("wide.png", Image.new("RGB", (40, 20)))
    done = "wide.png was made grey, scaled from 40x20 so that its shorter side is 4, its central 4x4 cut out."
    assert studio.classify([wide]).notes == studio.rank([wide]).notes[:-1] == [done]
    picture, notes = studio.open(wide)
    assert (tuple(picture.pixels.shape), notes) == ((1, 4, 4), [done])
    assert studio.rank([upload("fits.png")]).notes == ["More bits a dimension: less likely."]


def test_images_alike_are_spoken_of_together(studio, upload):
    files = [upload(f"{i}.png", Image.new("L", (9, 9))) for i in range(3)]
    files += [upload(f"x{i}.png", Image.new("RGB", (10 + i, 10 + i))) for i in range(7)]
    files += [upload("wide.png", Image.new("L", (9, 5)))]
    assert studio.classify(files).notes == [
        "7 images were made grey and scaled to 4x4.",
        "3 images were scaled to 4x4.",
        "wide.png was scaled from 9x5 so that its shorter side is 4, its central 4x4 cut out.",
    ]
    files += [upload("broad.png", Image.new("RGB", (9, 5)))]
    notes = studio.classify(files).notes
    assert notes[2:] == ["2 more were brought to the model's size and colours in other ways."]


def test_it_is_said_that_a_transparent_image_was_laid_on_white(studio, upload):
    picture, notes = studio.open(upload("glass.png", Image.new("LA", (4, 4), (0, 128))))
    assert notes == ["glass.png was laid on white."]
    assert 100 < int(picture.pixels[0, 0, 0]) < 150
    for name, image in {"rgba.png": Image.new("RGBA", (4, 4)), "sixteen.png": Image.new("I;16", (4, 4))}.items():
        done = "laid on white, made grey" if name == "rgba.png" else ""
        assert studio.open(upload(name, image))[0].done == done
    assert studio.open(upload("opaque.png", Image.new("LA", (4, 4), (0, 255))))[1] == []


def test_few_classes_are_told_by_trying_every_one():
    few, many = (Studio(Pipeline(tiny_model(tiny_config(num_classes=count)))) for count in (50, 51))
    assert (few.classify_method, many.classify_method) == ("bayes", "gradient")


def test_classes_are_those_of_the_pipeline_with_bits_beside(studio, upload):
    files = [upload("one.png"), upload("three.png")]
    figures = figures_of(studio.classify(files, "bayes"))
    pixels = torch.stack([each.pixels for each in figures])
    found = studio.pipe.classify(pixels, method="bayes").probabilities
    for figure, shares, bits in zip(figures, found, studio.pipe.log_prob(pixels).bits_per_dim, strict=True):
        assert figure.title == f"{'abc'[int(shares.argmax())]}: {float(shares.max()):.1%}"
        assert f"{float(bits):.2f} bits/dim" in figure.lines
    assert studio.guess(studio.open(files[0])[0]) == figures_of(studio.classify(files[:1]))[0].title[0]


def test_uploads_are_ranked_least_likely_first(studio, upload):
    files = [upload("flat.png", np.full((4, 4), 128, np.uint8))] + [upload(f"{'n' * i}.png") for i in range(1, 5)]
    for name in (None, "no class", "b"):
        figures = figures_of(studio.rank(files, name))
        pixels = torch.stack([each.pixels for each in figures])
        bits = studio.pipe.log_prob(pixels, [1 if name == "b" else 3] * 5).bits_per_dim
        shown = [float(each.title.split()[1]) for each in figures]
        assert shown == sorted(shown, reverse=True)
        assert shown == pytest.approx(bits.tolist(), abs=0.2)  # the noise is drawn by place
        assert sorted(each.lines[0] for each in figures) == sorted(Path(file).name for file in files)


def test_a_model_without_classes_ranks_and_edits_but_does_not_classify(unconditional, upload):
    assert len(figures_of(unconditional.rank([upload("one.png")]))) == 1
    picture, _ = unconditional.open(upload("one.png"))
    assert unconditional.guess(picture) == ""
    assert len(figures_of(unconditional.vary(picture, None, strength=0.2, num=2))) == 3
    with pytest.raises(InputError, match="model with classes to classify"):
        unconditional.classify([upload("one.png")])
    with pytest.raises(InputError, match="model with classes to change"):
        unconditional.reclass(picture, None, ["a"])


def test_a_model_of_latents_classifies_without_bits_and_says_that_it_cannot_rank(autoencoder, upload):
    config = tiny_config(codec=f"vae:{autoencoder}", channels=4)
    studio = Studio(Pipeline(tiny_model(config)))
    assert isinstance(studio.pipe.model.codec, VaeCodec)
    photo = upload("photo.png", Image.new("RGB", (12, 8), "red"))
    shown = studio.classify([photo])
    assert not any("bits" in line for figure in figures_of(shown) for line in figure.lines)
    assert any("cannot tell how likely" in note for note in shown.notes)
    with pytest.raises(InputError, match="models latents"):
        studio.rank([photo])
    assert len(figures_of(studio.inpaint(studio.open(photo)[0], mask_of("upper half", [], 8), "a", proposals=2))) == 4


def test_inpainting_keeps_what_is_not_painted(studio, upload):
    picture, _ = studio.open(upload("one.png"))
    mask = mask_of("left half", [], 4)
    image, painted, *results = figures_of(studio.inpaint(picture, mask, "b", proposals=3))
    assert len(results) == 3
    assert painted.pixels.shape[0] == 3
    for result in results:
        assert (result.pixels[:, ~mask] == image.pixels[:, ~mask]).all()
    nats = [float(each.lines[0].split()[0]) for each in results]
    assert nats == sorted(nats, reverse=True)


def test_a_mask_of_nothing_is_refused_and_one_of_everything_is_spoken_of(studio, upload):
    picture, _ = studio.open(upload("one.png"))
    with pytest.raises(InputError, match="Nothing is painted yet"):
        studio.inpaint(picture, mask_of(PAINTED, [], 4), "a", proposals=1)
    everything = np.full((8, 8, 4), 255, np.uint8)
    for mask in (mask_of(PAINTED, [everything], 4), mask_of(EVERYTHING, [], 4)):
        notes = studio.inpaint(picture, mask, "a", proposals=1).notes
        assert notes[-1] == "Nothing of the image is kept: these are plain samples."


def test_an_edit_without_image_or_class_is_refused(studio, upload):
    with pytest.raises(InputError, match="Expected an image to edit; got none"):
        studio.vary(None, "a", strength=0.5, num=1)
    picture, _ = studio.open(upload("one.png"))
    with pytest.raises(InputError, match="Expected the class of the image"):
        studio.vary(picture, None, strength=0.5, num=1)
    with pytest.raises(InputError, match="classes that the image becomes"):
        studio.reclass(picture, "a", [])
    with pytest.raises(InputError, match=f"from 1 to {MOST_RESULTS} results"):
        studio.vary(picture, "a", strength=0.5, num=MOST_RESULTS + 1)
    with pytest.raises(InputError, match="strength from 0"):
        studio.vary(picture, "a", strength=7, num=1)


def test_an_image_becomes_others_of_other_classes(studio):
    picture = studio.sample_one("a", seed=3)
    assert (picture.pixels == studio.pipe.sample_pixels([0], seed=3)[0]).all()
    figures = figures_of(studio.reclass(picture, "a", ["b", "c"], seed=1))
    assert [each.title for each in figures] == ["image, a", "as b", "as c"]


def test_a_mask_is_where_enough_is_painted_over():
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:3, :2, 3] = 255  # all of the first pixel of 4x4, half of the one below
    layer[7, 7, 3] = 200  # a fifth of the last
    mask = mask_of(PAINTED, [layer], 4)
    assert mask.nonzero().tolist() == [[0, 0], [1, 0]]


def test_the_canvas_goes_on_beside_the_picture_and_what_is_painted_there_is_left_out(studio):
    from biflow.app.edit import canvas_of, enlarged_side, without_margin

    framed = canvas_of(studio.sample_one("a"))["background"]
    side = enlarged_side(studio)
    assert framed.size == (side, side)
    layer = np.zeros((side, side, 4), np.uint8)
    layer[:, : side // 10, 3] = 255  # the margin alone
    assert not mask_of(PAINTED, [without_margin(layer)], 4).any()
    layer[:, : side // 10 + side // 5, 3] = 255  # and the first quarter of the picture
    assert mask_of(PAINTED, [without_margin(layer)], 4).nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]


def test_halves_cover_the_image_together():
    halves = [mask_of(part, [], 4) for part in HALVES]
    assert (halves[0] ^ halves[1]).all()
    assert (halves[2] ^ halves[3]).all()
    assert halves[0][0].all()
    assert halves[2][:, 0].all()
    with pytest.raises(InputError, match="Unknown part"):
        mask_of("middle", [], 4)


def test_names_that_people_bring_are_escaped():
    figure = Figure(torch.zeros(1, 4, 4, dtype=torch.uint8), "<b>", ["<script>"])
    text = as_html(Shown("<i>", [Part("<h>", [figure], "<f>")], ["<n>"]))
    assert not any(name in text for name in ("<b><b>", "<script>", "<i>", "<h>", "<f>", "<n>"))
    assert "&lt;script&gt;" in text


def test_an_error_is_said_in_the_first_area_of_text_and_escaped():
    from types import SimpleNamespace

    from biflow.app.desk import Desk

    class Text:
        pass

    def act(_):
        raise InputError("cannot read <img src=x onerror=alert(1)>.png")

    gr = SimpleNamespace(HTML=Text, skip=lambda: "as it was")
    kept = {}
    desk = Desk(gr, None)
    for outputs in ([object(), Text(), Text()], [Text()]):
        desk.on(lambda call, *_, **__: kept.update(call=call), act, [], outputs)
        answers = kept["call"](1) if len(outputs) > 1 else ["as it was", kept["call"](1), "as it was"]
        assert answers[0] == answers[2] == "as it was"
        assert 'role="alert">cannot read &lt;img src=x' in answers[1]
        assert "<img" not in answers[1]


@pytest.mark.parametrize("value", [None, 2.5])
def test_a_number_that_is_not_whole_is_answered_with_a_sentence(value):
    from biflow.app.desk import options_of, whole

    assert whole(3.0, "seed") == 3
    with pytest.raises(InputError, match="Expected a whole number as seed; got "):
        options_of(0.0, value)


def test_no_number_that_is_nothing_has_a_sign():
    assert decimals(-0.04, 1) == "0.0"
    assert decimals(-0.06, 1) == "-0.1"


def test_gradio_is_imported_by_nothing_but_the_page():
    code = "import sys, biflow.cli, biflow.app.server, biflow.app.tabs; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_gradio_the_extra_to_install_is_named(monkeypatch):
    from biflow.app.desk import import_gradio

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install 'biflow\[demo\]'"):
        import_gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


@pytest.mark.slow
def test_the_page_can_be_made_for_models_of_all_kinds(tmp_path, autoencoder):
    pytest.importorskip("gradio")
    kinds = {"all": {}, "flow": {"reverse": None}, "free": {"num_classes": 0}}
    kinds["latents"] = {"codec": f"vae:{autoencoder}", "channels": 4}
    for kind, changes in kinds.items():
        save_model(tiny_model(tiny_config(**changes)), tmp_path / kind)
    command = [sys.executable, "-c", LISTED, *(str(tmp_path / kind) for kind in kinds)]  # gradio leaves loops open
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for kind, (parts, calls) in zip(kinds, listed, strict=True):
        assert {"sample-go", "edit-redraw", "compare-go"} <= set(parts)
        assert ("classify-go" in parts) == (kind != "free")
        assert ("rank-go" in parts) == (kind != "latents")
        assert set(calls) == {"private"}


@pytest.mark.parametrize(("length", "status"), [(10, 200), (11, 413)])
def test_a_request_that_is_too_long_is_answered_before_it_is_read(length, status):
    import asyncio

    from biflow.app.server import LimitBody

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200})

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"content-length", str(length).encode())]}
    asyncio.run(LimitBody(app, most=10)(scope, None, send))
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
def test_another_sites_page_can_ask_for_nothing_but_reading(method, origin, passed):
    import asyncio

    from biflow.app.server import OwnPages

    sent = []

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    headers = [(b"origin", origin.encode())] if origin is not None else []
    asyncio.run(OwnPages(app)({"type": "http", "method": method, "headers": headers}, None, send))
    assert sent[0]["status"] == (200 if passed else 403)


def test_an_address_of_another_machine_is_told_from_a_port_in_use():
    from biflow.app.server import check_address

    for host in ("nosuch.invalid", "192.0.2.1"):
        with pytest.raises(InputError, match=f"Expected an address of this machine; got '{host}'"):
            check_address(host, 7860)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(InputError, match=f"Expected a free port of 127.0.0.1; {port} is none"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


@pytest.mark.slow
def test_a_folder_without_a_model_ends_the_command_with_one_line(tmp_path):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "biflow", "app", str(tmp_path / "nothing")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: Expected ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """A function: the page's address, 500 files, one file -> what a browser saw there."""
    pytest.importorskip("gradio")
    for program in ("node", "npm"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    folder = tmp_path_factory.mktemp("browser")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "playwright-core"]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=300).returncode:
        pytest.skip("npm cannot install playwright-core")
    (folder / "visit.js").write_text(VISIT)

    def call(address, files, upload):
        command = ["node", "visit.js", address, str(CHROMIUM), ",".join(files), upload]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.fixture
def server(tmp_path):
    """The address of an app with a tiny model; it must end within seconds when it is told to."""
    save_model(tiny_model(), tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", tmp_path / "log.txt"
    command = [sys.executable, "-c", WATCHED, "app", str(tmp_path / "model"), "--port", str(port)]
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
    assert "FOREIGN" not in log.read_text()
    assert log.read_text().endswith("Ended.\n")


def fetch(url, body=None, **headers):
    """The status and the text of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.slow
def test_a_browser_samples_classifies_and_edits_and_nothing_leaves_the_machine(server, visit, upload, tmp_path):
    one = upload("one.png")
    many = [shutil.copy(one, tmp_path / f"{i}.png") for i in range(500)]
    seen = visit(server, [str(each) for each in many], one)
    assert seen["foreign"] == seen["errors"] == []
    assert seen["samples"] == 16
    assert seen["toasts"] == 0
    assert seen["width"] == 390
    assert "%" in seen["classified"]
    assert "one.png" in seen["classified"]
    assert "Expected at most 100 images at once; got 500." in seen["many"]
    assert "Nothing is painted yet." in seen["bare"]
    assert seen["painted"]
    assert seen["restored"]
    assert seen["edits"] == 6
    assert (tmp_path / "log.txt").read_text() == f"Open {server}/ in a browser; Ctrl-C ends it.\n"


@pytest.mark.slow
def test_the_server_reads_no_path_and_describes_no_route(server):
    secret = Path(__file__)
    for path in (f"gradio_api/file={secret}", "gradio_api/file=pyproject.toml", "openapi.json", "docs", "monitoring"):
        assert fetch(f"{server}/{path}")[0] in {403, 404}, path
    assert fetch(f"{server}/", Host="elsewhere.example")[0] == 400
    assert fetch(f"{server}/gradio_api/upload", b"", Origin="http://elsewhere.example")[0] == 403
    config = json.loads(fetch(f"{server}/config")[1])
    files = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "rank-files")
    act = next(each for each in config["dependencies"] if files in each["inputs"])
    given = [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}]
    body = {"data": [given, "no class"], "fn_index": act["id"], "session_hash": "s"}
    post = {"Content-Type": "application/json"}
    assert fetch(f"{server}/gradio_api/queue/join", json.dumps(body).encode(), **post)[0] == 200
    answer = fetch(f"{server}/gradio_api/queue/data?session_hash=s")[1]
    assert '"success":false' in answer.replace(" ", "")
    assert "bits/dim" not in answer
