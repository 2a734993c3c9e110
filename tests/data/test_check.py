"""biflow data check."""

import io
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from biflow.data.check import check_folder, class_rows, common_size_rows, contact_sheet, kind_rows, size_rows
from tests.data.pictures import BROKEN, noise, state_of, write_broken, write_kinds
from tests.data.test_arrays import mnist


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    write_kinds(folder / "cat")
    write_broken(folder / "[dog]")
    Image.fromarray(np.full((40, 20), 77, np.uint8)).save(folder / "[dog]" / "x.png")
    return folder


@pytest.fixture
def check(biflow):
    """Runs `biflow data check`."""
    return lambda *arguments: biflow("data", "check", *arguments)


def test_images_are_counted_by_class_size_and_kind(images):
    found = check_folder(images)
    assert class_rows(found) == [["class", "images", "rejected"], ["[dog]", "1", "5"], ["cat", "19", "0"]]
    assert size_rows(found)[1:] == [
        ["width", "10", "10", "20"],
        ["height", "10", "12", "40"],
        ["shorter side", "10", "10", "20"],
    ]
    assert common_size_rows(found)[1] == ["10x12", "18"]
    assert found.found.doubts() == []
    kinds = dict(kind_rows(found)[1:])
    assert (kinds["PNG I;16"], kinds["TIFF CMYK"], kinds["WEBP RGBA"]) == ("1", "1", "1")


def test_sixteen_bit_images_that_hold_twelve_are_told(tmp_path, check):
    for name in "ab":
        Image.fromarray(np.full((8, 8), 4080, np.uint16)).save(tmp_path / f"{name}.png")
    _, out, _ = check(tmp_path)
    assert "Warning: No 16-bit image has a value above 4080 of 65535: all are nearly black." in out


def test_a_test_set_has_its_own_column(tmp_path):
    for place, name in enumerate(("train/a/1.png", "train/a/2.png", "val/a/1.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 8, seed=place)).save(tmp_path / name)
    assert class_rows(check_folder(tmp_path)) == [["class", "train", "test", "rejected"], ["a", "2", "1", "0"]]


def test_many_classes_are_cut_short(tmp_path):
    for place in range(25):
        (tmp_path / f"c{place}").mkdir()
        Image.fromarray(noise(2, 2)).save(tmp_path / f"c{place}" / "x.png")
    rows = class_rows(check_folder(tmp_path))
    assert (len(rows), rows[-1]) == (22, ["... and 5 more", "", ""])


def test_the_contact_sheet_has_a_row_for_each_class(images):
    sheet = contact_sheet(check_folder(images), 10)
    assert tuple(sheet.shape) == (3, 21, 87)
    assert (sheet[:, :10, :10] == 77).all()
    assert (sheet[:, :10, 11:] == 0).all()
    assert all(sheet[:, 11:, 11 * column : 11 * column + 10].any() for column in range(8))


def test_the_command_reports_writes_and_leaves_the_folder_alone(check, images, tmp_path):
    before = state_of(images)
    outputs = ["--out", tmp_path / "new" / "sheet.png", "--rejected", tmp_path / "new" / "rejected.txt"]
    code, out, err = check(images, "--size", 12, *outputs)
    assert (code, err) == (0, "")
    assert "20 images in 2 classes; 5 unreadable" in out
    assert "[dog]" in out
    assert all(f"Cannot read [dog]/{name}: " in out for name in BROKEN)
    assert f"--set data=folder:{images} --set model.channels=3 --set model.num_classes=2" in out
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size == (8 * 13 - 1, 2 * 13 - 1)
    assert len((tmp_path / "new" / "rejected.txt").read_text().splitlines()) == 5
    assert state_of(images) == before


@pytest.mark.parametrize(
    ("mode", "side", "expected"),
    [
        ("L", 8, ["biflow_digits", "model.num_classes=2"]),
        ("LAB", 12, ["biflow_digits", "model.channels=3", "model.num_classes=2"]),
        ("RGB", 20, ["small_32", "model.image_size=16", "model.patch_size=2", "model.num_classes=2"]),
        ("L", 28, ["fashion_mnist", "model.num_classes=2"]),
        ("P", 40, ["small_32", "model.num_classes=2"]),
        ("RGBA", 64, ["small_64", "model.num_classes=2"]),
        ("I;16", 300, ["small_64", "model.channels=1", "model.num_classes=2"]),
    ],
)
def test_the_command_to_train_fits_the_images(check, tmp_path, mode, side, expected):
    for kind in "ab":
        (tmp_path / kind).mkdir()
        Image.new(mode, (side, side)).save(tmp_path / kind / "x.tif")
    _, out, _ = check(tmp_path)
    words = shlex.split(out.rpartition("Train on it with: ")[2])
    assert [word for word in words if word in expected] == expected
    assert len(words) - words.index("--set") == 2 * len(expected)


def test_the_command_to_train_can_be_pasted(check, biflow, tmp_path):
    folder = tmp_path / "it's set #1: a, [b] $HOME"
    for kind in "ab":
        (folder / kind).mkdir(parents=True)
        Image.fromarray(noise(20, 17, 3)).save(folder / kind / "x.png")
    words = shlex.split(check(folder)[1].rpartition("Train on it with: ")[2])
    assert words[words.index("--out") + 1] == f"runs/{folder.name}"
    words[words.index("--out") + 1] = tmp_path / "run"
    steps = ["--set", "fit_flow.steps=1", "--set", "fit_reverse.steps=1"]
    code, _, err = biflow(*words[words.index("train") :], "--smoke", *steps)
    assert (code, err) == (0, "")


def test_a_flat_folder_is_shown_as_a_square(check, tmp_path):
    write_kinds(tmp_path / "images")
    code, out, _ = check(tmp_path / "images", "--size", 9, "--out", tmp_path / "sheet.png")
    assert code == 0
    assert "19 images in no classes" in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 8 * 10 - 1


def test_a_folder_of_broken_images_is_reported_too(check, tmp_path):
    for place in range(12):
        (tmp_path / f"{place}.png").write_text("none")
    code, out, _ = check(tmp_path)
    assert code == 0
    assert out.count("Cannot read") == 10
    assert "2 more unreadable files" in out
    code, _, err = check(tmp_path, "--out", tmp_path.parent / "sheet.png")
    assert code == 2
    assert "none can be read" in err


def test_names_that_the_output_cannot_encode_are_escaped(tmp_path, check, monkeypatch):
    folder = tmp_path / "日本"
    write_kinds(folder)
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", output)
    code, _, err = check(folder)
    output.flush()
    assert (code, err) == (0, "")
    assert rb"\u65e5\u672c" in output.buffer.getvalue()


def test_arrays_are_counted_and_the_command_fits_them(tmp_path, check):
    images = np.arange(6 * 36 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(6, 36, 40, 3)
    names = np.array(["ant", "bee", "cat"])
    np.savez(tmp_path / "x y.npz", arr_0=images, arr_1=[0, 1, 1, 0, 1, 1], class_names=names)
    code, out, _ = check(tmp_path / "x y.npz", "--out", tmp_path / "sheet.png")
    assert code == 0
    assert "6 images of 40x36 pixels, RGB, in 3 classes." in out
    assert [line.split() for line in out.splitlines() if "│ cat" in line] == [["│", "cat", "│", "0", "│"]]
    words = shlex.split(out.splitlines()[-1].partition("with: ")[2])
    assert words[1:2] + words[3:5] == ["train", "--out", "runs/x y"]
    assert {f"data=npz:{tmp_path / 'x y.npz'}", "model.num_classes=3"} <= {*words}
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB"


def test_a_folder_of_idx_files_is_recognised(tmp_path, check):
    _, out, _ = check(mnist(tmp_path / "set"))
    assert "9 images of 4x4 pixels, grey, in 3 classes." in out
    assert [line.split() for line in out.splitlines() if "│ 2" in line] == [["│", "2", "│", "2", "│", "1", "│"]]
    assert f"data=idx:{tmp_path / 'set'}" in out
