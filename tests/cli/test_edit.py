"""The command line's `edit` group."""

import numpy as np
import pytest
from PIL import Image

from biflow.checkpoint import save_model
from biflow.data.sheet import GAP, MARGIN, PAINT, ROW_GAP, TEXT_HEIGHT, TILE_WIDTH
from biflow.pipeline import Pipeline
from tests.builders import tiny_config, tiny_model

SIDE = TILE_WIDTH  # 104 is a multiple of 4
STEP = SIDE + GAP


@pytest.fixture
def edit(biflow):
    """The same, of the group `edit`."""
    return lambda *arguments: biflow("edit", *arguments)


@pytest.fixture
def files(tmp_path):
    """A folder with a model, two images of its size, masks, and what is none of these."""
    save_model(tiny_model(), tmp_path / "model")
    Image.new("RGB", (16, 8), "teal").save(tmp_path / "wide.png")
    save_model(tiny_model(tiny_config(num_classes=0)), tmp_path / "free")
    save_model(tiny_model(tiny_config(reverse=None)), tmp_path / "flow")
    for i, name in enumerate(("one", "two")):
        values = np.random.default_rng(i).integers(0, 256, (4, 4), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    left = np.zeros((4, 4), np.uint8)
    left[:, :2] = 255
    for name, values in {"left": left, "black": left * 0, "white": left * 0 + 255, "small": left[:2]}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.png").write_text("precious")
    return tmp_path


def tiles(path, rows, columns):
    """Every tile of a sheet, as many pixels as its image has: (rows, columns, 4, 4, 3)."""
    with Image.open(path) as image:
        sheet = np.asarray(image)
    high = SIDE + TEXT_HEIGHT + ROW_GAP
    assert sheet.shape == (rows * high - ROW_GAP + 2 * MARGIN, columns * STEP - GAP + 2 * MARGIN, 3)
    found = np.zeros((rows, columns, 4, 4, 3), np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = MARGIN + row * high, MARGIN + column * STEP
            tile = sheet[top : top + SIDE, left : left + SIDE]
            found[row, column] = tile[:: SIDE // 4, :: SIDE // 4]
            assert (tile == np.kron(found[row, column], np.ones((SIDE // 4, SIDE // 4, 1), np.uint8))).all()
            assert (sheet[top + SIDE : top + high - ROW_GAP, left : left + SIDE] < 128).any()  # a caption
    return found


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_inpaint_shows_the_input_the_mask_and_proposals_that_keep_the_rest(edit, files):
    options = ["--label", "b", "--mask", files / "left.png", "--proposals", 3, "--out", files / "new" / "x.png"]
    code, out, err = edit("inpaint", files / "model", files / "one.png", files / "two.png", *options)
    assert (code, err) == (0, "")
    assert "3 proposals for each of 2 images" in out
    shown = tiles(files / "new" / "x.png", 2, 5)
    for row, name in zip(shown, ("one", "two"), strict=True):
        original = pixels(files / f"{name}.png")
        assert (row[0, ..., 0] == original).all()
        assert (row[1, :, :2] == PAINT).all()
        assert (row[1:, :, 2:, 0] == original[:, 2:]).all()
        assert len({each.tobytes() for each in row[2:]}) == 3


def test_a_box_is_a_mask(edit, files):
    arguments = ["inpaint", files / "model", files / "one.png", "--label", "b"]
    edit(*arguments, "--mask", files / "left.png", "--out", files / "mask.png")
    edit(*arguments, "--mask", "0,0,2,4", "--out", files / "box.png")
    assert (files / "mask.png").read_bytes() == (files / "box.png").read_bytes()


def test_an_edit_shows_what_the_pipeline_gives(edit, files):
    arguments = ["vary", files / "model", files / "one.png", "--label", "c", "--strength", 0.6, "--num", 2]
    assert edit(*arguments, "--seed", 3, "--method", "sequential", "--out", files / "x.png")[0] == 0
    pipe = Pipeline.from_pretrained(files / "model")
    with Image.open(files / "one.png") as image:
        made = pipe.vary([image], [2], strength=0.6, num=2, seed=3, method="sequential").pixels[0, :, 0]
    assert (tiles(files / "x.png", 1, 3)[0, 1:, ..., 0] == made.numpy()).all()


def test_reclass_shows_every_target(edit, files):
    options = ["--from", "a", "--from", 1, "--to", "c", "--to", 3, "--out", files / "x.png"]
    code, out, _ = edit("reclass", files / "model", files / "one.png", files / "two.png", *options)
    assert code == 0
    assert "2 images as 2 other classes" in out
    pipe = Pipeline.from_pretrained(files / "model")
    with Image.open(files / "two.png") as image:
        made = pipe.reclass([image], [1], [3])[0]
    assert (tiles(files / "x.png", 2, 3)[1, 2, ..., 0] == np.asarray(made)).all()


def test_interpolate_shows_both_images_at_its_ends(edit, files):
    options = ["--from", "a", "--to", "c", "--steps", 3, "--out", files / "x.png"]
    assert edit("interpolate", files / "model", files / "one.png", files / "two.png", *options)[0] == 0
    row = tiles(files / "x.png", 1, 5)[0, ..., 0]
    assert (row[0] == pixels(files / "one.png")).all()
    assert (row[-1] == pixels(files / "two.png")).all()


def test_what_brings_an_image_to_size_is_said_and_the_mask_goes_the_same_way(edit, files):
    mask = Image.new("L", (16, 8))
    mask.paste(255, (0, 0, 8, 8))  # the left half, of which the left half is cut off
    mask.save(files / "wide_mask.png")
    arguments = ["inpaint", files / "model", files / "wide.png", "--label", 0, "--mask", files / "wide_mask.png"]
    code, _, err = edit(*arguments, "--out", files / "x.png")
    assert code == 0
    assert err == ("Note: wide.png was converted to grey, resized to 4x4 and cropped to the central square.\n")
    shown = tiles(files / "x.png", 1, 6)[0]
    assert (shown[1, :, :2] == PAINT).all()
    assert not (shown[1, :, 2:] == PAINT).all(axis=-1).any()


def test_a_mask_of_everything_is_allowed_and_said(edit, files):
    arguments = ["inpaint", files / "model", files / "one.png", "--label", 0, "--mask", files / "white.png"]
    code, _, err = edit(*arguments, "--out", files / "x.png")
    assert code == 0
    assert err == "Note: the mask covers the whole image; the results are plain samples of the class.\n"


def test_a_model_without_classes_needs_none(edit, files):
    assert edit("vary", files / "free", files / "one.png", "--out", files / "x.png")[0] == 0


def test_a_box_in_what_is_cut_off_is_refused(edit, files):
    arguments = ["inpaint", files / "model", files / "wide.png", "--label", 0, "--mask", "0,0,1,1"]
    code, _, err = edit(*arguments, "--out", files / "x.png")
    assert code == 2
    assert "in the square that is kept of wide.png" in err
    assert not (files / "x.png").exists()


INPAINT = ["inpaint", "{tmp}/model", "{tmp}/one.png", "--out", "{tmp}/x.png"]
RECLASS = ["reclass", "{tmp}/model", "{tmp}/one.png", "--out", "{tmp}/x.png"]
VARY = ["vary", "{tmp}/model", "{tmp}/one.png", "--out", "{tmp}/x.png"]
BAD = {
    "mask of another size": ([*INPAINT, "--label", 0, "--mask", "{tmp}/small.png"], "one.png, 4x4 pixels; got 4x2"),
    "box of fractions": ([*INPAINT, "--label", 0, "--mask", "0.5,0,2,2"], "a box of four whole numbers"),
    "black mask": ([*INPAINT, "--label", 0, "--mask", "{tmp}/black.png"], "black all over"),
    "mask that is no image": ([*INPAINT, "--label", 0, "--mask", "{tmp}/notes.png"], "not a PNG, JPEG"),
    "mask that is not there": ([*INPAINT, "--label", 0, "--mask", "{tmp}/none.png"], "No such file"),
    "output that is the mask": ([*INPAINT[:3], "--out", "{tmp}/left.png", "--label", 0, "--mask", "{tmp}/left.png"],
                                "not the mask"),
    "no mask": ([*INPAINT, "--label", 0], "Missing option '--mask'"),
    "box of three": ([*INPAINT, "--label", 0, "--mask", "1,2,3"], "got '1,2,3'. Give LEFT,TOP"),
    "box without area": ([*INPAINT, "--label", 0, "--mask", "2,0,2,4"], "with an area"),
    "box outside": ([*INPAINT, "--label", 0, "--mask", "0,0,5,4"], "a box within one.png, 4x4 pixels; got 0,0,5,4"),
    "no class": ([*INPAINT, "--mask", "0,0,1,1"], "--label CLASS; one of a, b, c."),
    "no class to vary": (VARY, "--label CLASS"),
    "no class to change": ([*RECLASS, "--to", "a"], "--from CLASS"),
    "no class to change to": ([*RECLASS, "--from", "a"], "--to CLASS; one of a, b, c"),
    "unknown class": ([*VARY, "--label", "bb"], "Unknown class 'bb'; did you mean b?"),
    "class number out of range": ([*VARY, "--label", 7], "labels from 0 to 2, or 3 for no class; got 7"),
    "classes for other images": ([*VARY, "--label", 0, "--label", 1], "once for each of 1 images; got it 2 times"),
    "class of a model without": (["vary", "{tmp}/free", "{tmp}/one.png", "--out", "{tmp}/x.png", "--label", "a"],
                                 "has no classes. Leave it out"),
    "change without classes": (["reclass", "{tmp}/free", "{tmp}/one.png", "--out", "{tmp}/x.png", "--to", 0],
                               "this one is unconditional"),
    "no image": (["vary", "{tmp}/model", "{tmp}/notes.png", "--label", 0, "--out", "{tmp}/x.png"], "not a PNG, JPEG"),
    "image not there": (["vary", "{tmp}/model", "{tmp}/none.png", "--label", 0, "--out", "{tmp}/x.png"], "No such"),
    "output that is no PNG": (["vary", "{tmp}/model", "{tmp}/one.png", "--label", 0, "--out", "{tmp}/x.jpg"], ".png"),
    "output that is an image": (["vary", "{tmp}/model", "{tmp}/one.png", "--label", 0, "--out", "{tmp}/one.png"],
                                "none of the images"),
    "output below a file": (["vary", "{tmp}/model", "{tmp}/one.png", "--label", 0, "--out", "{tmp}/notes.png/x.png"],
                            "is a file"),
    "strength too large": ([*VARY, "--label", 0, "--strength", 1.5], "strength to be a number from 0"),
    "strength below 0": ([*VARY, "--label", 0, "--strength", -1], "strength to be a number from 0"),
    "one step": (["interpolate", "{tmp}/model", "{tmp}/one.png", "{tmp}/two.png", "--from", 0, "--steps", 1,
                  "--out", "{tmp}/x.png"], "steps to be a whole number, 2 or more"),
    "a flow alone": (["vary", "{tmp}/flow", "{tmp}/one.png", "--label", 0, "--out", "{tmp}/x.png"], "sequential"),
    "unknown method": ([*VARY, "--label", 0, "--method", "revers"], "did you mean reverse"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_code_2_and_leaves_nothing(edit, files, arguments, message):
    before = {path: path.is_file() and path.read_bytes() for path in files.rglob("*")}
    code, out, err = edit(*(str(argument).format(tmp=files) for argument in arguments))
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1, err
    assert (code, out) == (2, "")
    assert {path: path.is_file() and path.read_bytes() for path in files.rglob("*")} == before
