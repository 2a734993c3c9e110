"""Folders as people have them: their classes, splits, and what is passed over."""

import inspect
import os
import shutil
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biflow.config import ReadingConfig
from biflow.data.check import check_folder, notes_on
from biflow.data.folder import open_folder
from biflow.data.layout import find_splits, lay_out
from biflow.data.listing import list_folder
from biflow.errors import InputError
from tests.data.pictures import noise

SHAPE = (1, 8, 8)
KINDS = ("cat", "dog")


def write(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 8, seed=seed)).save(folder / name)


def classes_in(*parts):
    return [f"{part}/{kind}/{i}.png" for part in parts for kind in KINDS for i in range(2)]


SPLITS = [("train", "valid"), ("train", "validation"), ("Train", "Test"), ("training", "testing"), ("TRAIN", "val")]


@pytest.mark.parametrize("around", ["", "set-main/", "a/b/"])
@pytest.mark.parametrize("parts", SPLITS, ids="-".join)
def test_the_usual_names_of_splits_are_read_in_any_case_and_inside_a_lone_folder(tmp_path, parts, around):
    write(tmp_path, *classes_in(*(around + part for part in parts)))
    layout = lay_out(tmp_path)
    assert layout.class_names == KINDS
    held_out = {name for name, test in zip(layout.names, layout.is_test, strict=True) if test}
    assert held_out == {*classes_in(around + parts[1])}
    assert [around in note for note in layout.notes] == [True] * bool(around)


def test_of_three_splits_validation_is_left_out_and_said_to_be(tmp_path):
    write(tmp_path, *classes_in("train", "valid", "test"))
    layout = lay_out(tmp_path)
    assert sorted(layout.names) == sorted(classes_in("train", "test"))
    assert [note.endswith("are used; valid/ is left out.") for note in layout.notes] == [True]


@pytest.mark.parametrize("around", ["my-dataset-main", "train", "Test", "photos/train"])
def test_a_lone_folder_around_the_classes_is_entered_and_said_to_be(tmp_path, around):
    write(tmp_path, *classes_in(around), "__MACOSX/cat/._0.png", "@eaDir/cat/0.png")
    layout = lay_out(tmp_path)
    assert (layout.class_names, layout.is_test, len(layout.names)) == (KINDS, None, 4)
    assert f"are in {around}/, which is read in its place." in layout.notes[0]


def test_a_lone_split_without_classes_has_none_but_a_lone_class_stays_one(tmp_path):
    write(tmp_path / "a", "train/x.png")
    write(tmp_path / "b", "cat/x.png", "cat/y.png", "cat/more/z.png")
    assert [lay_out(tmp_path / name).class_names for name in "ab"] == [(), ("cat",)]


def test_a_lone_folder_of_one_name_in_both_splits_is_entered_and_said_to_be(tmp_path):
    write(tmp_path, *classes_in("train/images", "val/images"))
    layout = lay_out(tmp_path)
    assert (layout.class_names, sum(layout.is_test)) == (KINDS, 4)
    assert layout.notes == (f"train/images/ and val/images/ of {tmp_path} are used.",)


def test_a_test_split_of_one_class_with_subfolders_keeps_it(tmp_path):
    write(tmp_path, *classes_in("train"), "test/cat/more/0.png")
    layout = lay_out(tmp_path)
    assert (layout.class_names, layout.classes[-1]) == (KINDS, "cat")


@pytest.mark.parametrize(
    "tops", ["train2017 val2017", "seg_train seg_test seg_pred", "Training_Set test_set", "train val2"]
)
def test_folders_called_like_splits_are_refused(tmp_path, tops):
    write(tmp_path, *(f"{top}/x.png" for top in tops.split()))
    with pytest.raises(InputError, match=r"which may be either. Rename them train, val and test if they are splits"):
        lay_out(tmp_path)


def test_classes_may_have_words_of_splits_in_their_names(tmp_path):
    write(tmp_path, "test tube/x.png", "beaker/x.png", "validator/x.png", "trainer/x.png")
    assert lay_out(tmp_path).class_names == ("beaker", "test tube", "trainer", "validator")


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, "bus/1.png", "train/1.png", "train/2.png")
    layout = lay_out(tmp_path)
    assert (layout.class_names, layout.is_test) == (("bus", "train"), None)
    assert layout.notes == (f"train/ in {tmp_path} is read as a class, as the folders beside it are.",)


def test_a_class_is_the_same_however_its_accents_are_encoded(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write(tmp_path, f"train/{composed}/x.png", f"train/{apart}/y.png", "train/thé/x.png", f"val/{apart}/x.png")
    split = open_folder(tmp_path, SHAPE, ReadingConfig())
    assert (split.train.class_names, split.train.labels.tolist()) == ((composed, "thé"), [0, 0, 1])
    assert split.test.labels.tolist() == [0]


def test_names_that_differ_in_case_or_spaces_alone_are_told(tmp_path):
    write(tmp_path, "Cat/x.png", "cat/x.png", " cat/x.png", "dog/x.png")
    assert lay_out(tmp_path).notes == ("' cat', 'Cat', 'cat' are different classes, by the names of their folders.",)


def test_what_is_passed_over_is_counted_by_kind(tmp_path, capsys):
    write(tmp_path, "cat/x.png", "cat/.ipynb_checkpoints/x-checkpoint.png", "cat/photo.png/y.png", "cat/.x.png")
    for name in (*(f"{i}.RAW9" for i in range(50)), "README", "x.svg"):
        (tmp_path / "cat" / name).write_text("nothing")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "owl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "bird" / "small").mkdir(parents=True)
    (tmp_path / "bird" / "small" / "x.svg").write_text("nothing")
    listing = list_folder(tmp_path)
    assert listing.images == ["cat/photo.png/y.png", "cat/x.png"]
    expected = {".raw9": 50, ".svg": 2, "without an ending": 1, "hidden": 1, "broken links": 1, "devices or pipes": 1}
    assert listing.passed == Counter(expected)
    open_folder(tmp_path, SHAPE, ReadingConfig())
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"Note: in {tmp_path}, passed over: 50 .raw9, 2 .svg, 1 ")
    assert told[1] == f"Note: no images in bird/ of {tmp_path}."


def test_folders_may_be_nested_more_deeply_than_calls(tmp_path):
    deep = "a/" * 90  # few enough for shutil, which pytest calls to remove them
    (tmp_path / deep).mkdir(parents=True)
    write(tmp_path, f"{deep}x.png")
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack(0)) + 60)
        found = list_folder(tmp_path).images
    finally:
        sys.setrecursionlimit(limit)
    assert found == [f"{deep}x.png"]


@pytest.fixture
def copied(tmp_path):
    """Forty images in two classes, each with a copy beside it."""
    names = [f"{kind}/{i}.png" for kind in KINDS for i in range(20)]
    write(tmp_path, *names)
    for name in names:
        shutil.copy(tmp_path / name, tmp_path / name.replace(".", " (1)."))
    return tmp_path


def test_copies_stay_on_one_side_of_the_test_share_in_every_scan(copied, cache):
    def sides():
        split = open_folder(copied, SHAPE, ReadingConfig(test_share=0.3))
        return [[os.fsdecode(name).replace(" (1)", "") for name in part.names] for part in (split.train, split.test)]

    train, test = sides()
    assert (set(train) & set(test), set(Counter(train + test).values())) == (set(), {2})
    assert 10 <= len(test) <= 40
    assert sides() == [train, test]
    (record,) = (cache / "biflow" / "scans").iterdir()
    assert record.read_text().count('"PNG", ""') == 0
    for name in copied.rglob("* (1).png"):
        name.unlink()
    alone = sides()
    assert [set(alone[0]), set(alone[1])] == [set(train), set(test)]


def test_files_of_equal_size_and_other_content_are_no_copies(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.bmp")
    assert check_folder(tmp_path).copies == []


def test_check_counts_copies_and_says_what_they_spoil(copied):
    shutil.copy(copied / "cat" / "3.png", copied / "dog" / "cat3.png")
    notes = notes_on(check_folder(copied))
    assert notes[0].startswith("41 files are copies of others, byte for byte: cat/0 (1).png of cat/0.png, ....")
    assert notes[1] == "1 image is in more than one class."


def test_training_images_in_a_test_split_are_told(tmp_path, capsys):
    write(tmp_path, "train/a/1.png", "train/a/2.png", "val/a/1.png")
    write(tmp_path / "val", "a/4.png", "a/5.png", "a/6.png")
    (tmp_path / "val/a/4.png").unlink()
    shutil.copy(tmp_path / "train/a/1.png", tmp_path / "val/a/9.png")
    shared = sum(
        file.read_bytes() in {each.read_bytes() for each in tmp_path.glob("train/a/*")}
        for file in tmp_path.glob("val/a/*")
    )
    open_folder(tmp_path, SHAPE, ReadingConfig())
    assert f"Warning: {shared} of 4 test images of {tmp_path} are also training images." in capsys.readouterr().err
    assert f"{shared} of 4 test images are also training images." in notes_on(check_folder(tmp_path))


@pytest.mark.parametrize("classes", [("cat/train", "cat/val", "dog"), ("x/Train/a", "x/test/a", "y")])
def test_splits_within_classes_are_refused(classes):
    names = [f"{folder}/{i}.png" for folder in classes for i in range(2)]
    with pytest.raises(InputError, match=r"got splits within (cat|x)\. Give one of these folders"):
        find_splits(Path("set"), names)
