"""Image folders."""

import os
import pickle
import shutil
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from biflow.cli import main as cli
from biflow.config import ReadingConfig
from biflow.data.datasets import indices_at, is_held_out, load_data
from biflow.data.decode import read_image
from biflow.data.folder import open_folder
from biflow.data.formats import fault_of
from biflow.data.listing import list_folder
from biflow.data.loader import is_kept
from biflow.data.open import canonical_name, check_apart, open_data
from biflow.data.reader import image_reader
from biflow.data.scan import scan
from biflow.errors import InputError
from tests.data.pictures import BROKEN, noise, state_of, write_broken, write_kinds

SHAPE = (3, 8, 8)
ALL_BUT_BROKEN = ReadingConfig(rejected_share=0.5)


@pytest.fixture
def images(tmp_path):
    """Two classes with every kind of image, and one with broken images and three intact ones."""
    folder = tmp_path / "images"
    for seed, kind in enumerate(("cat", "dog")):
        write_kinds(folder / kind, seed)
    write_broken(folder / "newt")
    write_grey(folder, "newt/a.png", "newt/b.png", "newt/deep/below/c.PNG")
    return folder


def write_grey(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(9, 8, seed=seed)).save(folder / name)


def names_of(source):
    return [os.fsdecode(name) for name in source.names.tolist()]


def test_a_folder_of_classes_gives_every_image_with_its_label(images):
    split = open_folder(images, SHAPE, ALL_BUT_BROKEN)
    train = split.train
    assert train.class_names == ("cat", "dog", "newt")
    assert train.labels.bincount().tolist() == [19, 19, 3]
    assert train.image_shape == SHAPE
    assert len(split.test) == 0
    pixels = train.read(torch.tensor([40, 0, 3]))
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, *SHAPE))
    assert names_of(train)[40] == "newt/deep/below/c.PNG"
    assert torch.equal(pixels[0], read_image(images / "newt/deep/below/c.PNG", 8, 3))


def test_unreadable_files_are_skipped_with_their_reasons(images):
    split = open_folder(images, SHAPE, ALL_BUT_BROKEN)
    rejected = dict(split.train.rejected)
    assert rejected.keys() == {f"newt/{name}" for name in BROKEN}
    assert "truncated" in rejected["newt/cut_off.jpg"]
    assert rejected["newt/text.png"] == fault_of(b"no image")
    assert rejected["newt/empty.webp"] == "an empty file"
    assert "100x1 pixels" in rejected["newt/strip.png"]
    assert "more than 89 megapixels" in rejected["newt/bomb.png"]


def test_more_unreadable_files_than_allowed_are_an_error_that_names_some(images):
    with pytest.raises(InputError, match=r"at most 0\.05 .* got 5 of 46 .*newt/bomb\.png \(more than 89.*data check"):
        open_folder(images, SHAPE, ReadingConfig())


def test_nothing_is_written_to_the_folder(images):
    before = state_of(images)
    split = open_folder(images, SHAPE, ALL_BUT_BROKEN)
    split.train.read(torch.arange(len(split.train)))
    assert state_of(images) == before


def test_a_flat_folder_has_no_classes(tmp_path):
    write_grey(tmp_path, "a.png", "b.jpg")
    train = open_folder(tmp_path, SHAPE, ReadingConfig()).train
    assert (train.class_names, train.labels.tolist(), len(train)) == ((), [0, 0], 2)


def test_numbers_in_class_names_sort_by_value(tmp_path):
    write_grey(tmp_path, *(f"{name}/x.png" for name in ("class10", "class9", "class", "1a")))
    assert open_folder(tmp_path, SHAPE, ReadingConfig()).train.class_names == ("1a", "class", "class9", "class10")


def test_hidden_and_other_files_and_link_cycles_are_skipped(tmp_path):
    write_grey(tmp_path, "a/x.png", ".hidden.png", ".thumbs/x.png", "a/.x.png")
    for name in ("a/notes.txt", ".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_text("nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert list_folder(tmp_path).images == ["a/x.png", "b/x.png"]


def test_broken_links_are_rejected(tmp_path):
    write_grey(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "c.png").symlink_to(tmp_path / "pipe")
    rejected = scan(tmp_path, list_folder(tmp_path).images).rejected
    assert rejected == {"b.png": "No such file or directory", "c.png": "not a file"}


@pytest.mark.parametrize("other", ["val", "test"])
def test_a_folder_may_have_its_own_test_split(tmp_path, other):
    write_grey(tmp_path, "train/a/x.png", "train/b/y.png", "train/b/z.png", f"{other}/b/x.png")
    split = open_folder(tmp_path, SHAPE, ReadingConfig(test_share=0.9))
    assert names_of(split.train) == ["train/a/x.png", "train/b/y.png", "train/b/z.png"]
    assert names_of(split.test) == [f"{other}/b/x.png"]
    assert (split.train.labels.tolist(), split.test.labels.tolist()) == ([0, 1, 1], [1])
    assert split.train.class_names == split.test.class_names == ("a", "b")


def test_train_and_val_may_be_flat(tmp_path):
    write_grey(tmp_path, "train/x.png", "val/y.png")
    split = open_folder(tmp_path, SHAPE, ReadingConfig())
    assert (names_of(split.train), names_of(split.test), split.train.class_names) == (
        ["train/x.png"],
        ["val/y.png"],
        (),
    )


def test_a_share_of_each_class_is_held_out(tmp_path):
    write_grey(tmp_path, *(f"{kind}/{i}.png" for kind in "ab" for i in range(60)))
    split = open_folder(tmp_path, SHAPE, ReadingConfig(test_share=0.25))
    assert not set(names_of(split.train)) & set(names_of(split.test))
    assert len(split.train) + len(split.test) == 120
    assert all(8 <= count <= 22 for count in split.test.labels.bincount().tolist())


def test_new_images_do_not_move_others_between_training_and_test(tmp_path):
    reading = ReadingConfig(test_share=0.3)
    write_grey(tmp_path, *(f"a/{i}.png" for i in range(30)))
    before = open_folder(tmp_path, SHAPE, reading)
    write_grey(tmp_path, *(f"a/new{i}.png" for i in range(30)), *(f"0/{i}.png" for i in range(9)))
    after = open_folder(tmp_path, SHAPE, reading)
    assert set(names_of(before.train)) < set(names_of(after.train))
    assert set(names_of(before.test)) < set(names_of(after.test))


def test_a_larger_share_holds_out_the_same_images_and_more():
    names = [f"{i}.png" for i in range(1000)]
    some, more = ({name for name in names if is_held_out(name.encode(), share)} for share in (0.1, 0.3))
    assert some < more
    assert (abs(len(some) - 100) < 40, abs(len(more) - 300) < 60) == (True, True)
    assert not any(is_held_out(name.encode(), 0.0) for name in names)


def test_workers_read_the_same_images(images):
    source = open_folder(images, SHAPE, ALL_BUT_BROKEN).train
    readers = [image_reader(source, places_at, steps=4, workers=workers) for workers in (0, 2)]
    for step in range(4):
        alone, ahead = (read(step) for read in readers)
        assert torch.equal(alone.images, ahead.images)
        assert torch.equal(alone.labels, ahead.labels)
        assert alone.indices == ahead.indices


def places_at(step):
    return indices_at(step, 0, batch_size=6, num_images=41)


def first_place(_):
    return torch.tensor([0])


class Counted:
    """Images that count how often each is read."""

    def __init__(self, source):
        self.source, self.reads = source, Counter()
        self.labels, self.image_shape = source.labels, source.image_shape

    def __len__(self):
        return len(self.source)

    def read(self, places):
        self.reads.update(places.tolist())
        return self.source.read(places)


def test_cached_images_are_the_same_and_decoded_once(images):
    source = open_folder(images, SHAPE, ALL_BUT_BROKEN).train
    counted = Counted(source)
    cached, plain = (
        image_reader(each, places_at, steps=20, workers=0, keep=each is counted) for each in (counted, source)
    )
    for step in range(20):
        assert torch.equal(cached(step).images, plain(step).images)
    assert set(counted.reads.values()) == {1}


def test_which_images_are_cached_in_memory(images):
    source = open_folder(images, SHAPE, ALL_BUT_BROKEN).train
    assert is_kept(source, ReadingConfig())
    assert is_kept(source, ReadingConfig(cache="memory"))
    assert not is_kept(source, ReadingConfig(cache="none"))
    assert not is_kept(source, ReadingConfig(workers=2))
    assert not is_kept(replace(source, image_shape=(3, 10_000, 10_000)), ReadingConfig())
    assert not is_kept(load_data("digits").train, ReadingConfig(cache="memory"))
    with pytest.raises(ValueError, match="Expected one process to read, for cache 'memory'; got 2 worke"):
        ReadingConfig(cache="memory", workers=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_disappears_during_training_is_named_in_one_sentence(tmp_path, workers):
    write_grey(tmp_path, "a.png")
    source = open_folder(tmp_path, SHAPE, ReadingConfig()).train
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"^Expected to read .*a\.png, .* No such file .* --resume\.$") as fault:
        image_reader(source, first_place, steps=1, workers=workers, keep=not workers)(0)
    assert "\n" not in str(fault.value)


def test_images_can_be_pickled_and_drop_their_classes(images):
    source = pickle.loads(pickle.dumps(open_folder(images, SHAPE, ALL_BUT_BROKEN).train))
    plain = source.without_classes()
    assert (plain.class_names, plain.labels.unique().tolist()) == ((), [0])
    assert plain.rejected == source.rejected
    assert torch.equal(plain.read(torch.arange(4)), source.read(torch.arange(4)))


def test_reading_follows_its_settings(tmp_path):
    Image.fromarray(np.zeros((9, 21, 4), np.uint8)).save(tmp_path / "clear.png")
    Image.fromarray(noise(33, 50, 3)).save(tmp_path / "wide.png")
    for crop, background, value in (("adm", "black", 0), ("tarflow", "grey", 128)):
        train = open_folder(tmp_path, SHAPE, ReadingConfig(crop=crop, background=background)).train
        clear, wide = train.read(torch.tensor([0, 1]))
        assert (clear == value).all()
        assert torch.equal(wide, read_image(tmp_path / "wide.png", 8, 3, crop=crop))


def test_a_second_scan_decodes_only_changed_files(tmp_path, cache):
    write_grey(tmp_path, "a.png", "b.png", "c.png", "d.png")
    names = list_folder(tmp_path).images
    first = scan(tmp_path, names)
    assert len(list((cache / "biflow" / "scans").iterdir())) == 1
    for name in ("a.png", "b.png", "d.png"):  # broken, the first one without a change in size or time
        status = (tmp_path / name).stat()
        (tmp_path / name).write_bytes(bytes(status.st_size + (name == "d.png")))
        changed = status.st_mtime_ns + (name == "b.png")
        os.utime(tmp_path / name, ns=(changed, changed))
    second = scan(tmp_path, names)
    assert second.readable.keys() == {"a.png", "c.png"}
    assert second.readable["c.png"] == first.readable["c.png"]
    assert scan(tmp_path, names, afresh=True).readable.keys() == {"c.png"}


@pytest.mark.parametrize("damage", ["", "[]", '{"decoder": 3}', "cut", '{"files'])
def test_a_damaged_record_of_a_scan_is_ignored(tmp_path, cache, damage):
    write_grey(tmp_path, "a.png")
    first = scan(tmp_path, ["a.png"])
    (record,) = (cache / "biflow" / "scans").iterdir()
    text = record.read_text()
    record.write_text(damage if damage != "cut" else text.replace('"PNG", 255, 255', '"PNG"'))
    assert scan(tmp_path, ["a.png"]) == first
    assert record.read_text() == text


def test_an_unusable_cache_folder_is_not_an_error(tmp_path, monkeypatch):
    write_grey(tmp_path / "images", "a.png")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert scan(tmp_path / "images", ["a.png"]).readable
    before = state_of(tmp_path / "images")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "images"))
    assert scan(tmp_path / "images", ["a.png"]).readable
    assert state_of(tmp_path / "images") == before


def test_a_known_file_is_decoded_again_when_the_limit_changes(tmp_path, monkeypatch):
    write_grey(tmp_path, "a.png")
    assert scan(tmp_path, ["a.png"]).readable
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert "megapixels" in scan(tmp_path, ["a.png"]).rejected["a.png"]


def test_file_names_of_any_bytes_are_read_and_escaped(tmp_path):
    name = os.fsdecode(b"a\xff\n.png")
    (tmp_path / "c\udcff").mkdir()
    write_grey(tmp_path, f"c\udcff/{name}")
    train = open_folder(tmp_path, SHAPE, ReadingConfig()).train
    assert train.class_names == (r"c\udcff",)
    assert train.read(torch.tensor([0])).shape == (1, *SHAPE)


def test_a_folder_of_nearly_black_images_is_told(tmp_path, capsys):
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "a.png")
    open_folder(tmp_path, SHAPE, ReadingConfig())
    assert "Warning: No 16-bit image has a value above 4000 of 65535" in capsys.readouterr().err
    open_folder(tmp_path, SHAPE, ReadingConfig())  # known from the first time
    assert "above 4000" in capsys.readouterr().err
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "b.png")
    open_folder(tmp_path, SHAPE, ReadingConfig())
    assert "Warning" not in capsys.readouterr().err


FAULTS = {
    "loose next to classes": (["x.png", "a/y.png"], {}, r"loose images or folders.*x\.png next to a\. Move"),
    "splits and others": (["train/a/x.png", "test/a/x.png", "extra/x.png"], {}, r"got test, train, extra\. Move"),
    "a split and folders": (["train/a/x.png", "bus/x.png"], {}, r"got train, bus\. Move"),
    "no training split": (["val/a/x.png", "test/a/x.png"], {}, r"got test, val\. Move"),
    "two of one split": (["train/x.png", "val/x.png", "Valid/x.png"], {}, r"got Valid, val, train\. Move"),
    "test split with other classes": (["train/a/x.png", "val/b/x.png"], {}, "the classes b missing from train/"),
    "test split without classes": (["train/a/x.png", "val/x.png"], {}, "images without a class missing from train/"),
    "nothing": ([], {}, "found none"),
    "a class without images": (["a/bad.png", *[f"b/{i}.png" for i in range(20)]], {}, "those in a are all"),
    "all held out": (["x.png"], {"test_share": 0.999999}, "all are held out"),
    "none readable": (["b/bad.png", "b/bad.jpg"], {}, "2 of 2"),
}


@pytest.mark.parametrize(("names", "settings", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_folder_that_cannot_be_trained_on_is_refused_in_one_line(tmp_path, names, settings, message):
    write_grey(tmp_path, *names)
    for bad in tmp_path.rglob("bad.*"):
        bad.write_text("none")
    with pytest.raises(InputError, match=message) as fault:
        open_folder(tmp_path, SHAPE, ReadingConfig(**settings))
    assert "\n" not in str(fault.value)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"passed over: 1 \.txt\. Convert them"):
        open_folder(tmp_path, SHAPE, ReadingConfig())


def test_the_folder_must_exist_and_the_channels_be_those_of_images(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="does not exist"):
        open_data(f"folder:{tmp_path}/none", SHAPE, ReadingConfig())
    with pytest.raises(InputError, match=r"cannot be read .File name too long"):
        open_data(f"folder:{'x' * 300}", SHAPE, ReadingConfig())
    with pytest.raises(InputError, match="a known user; got '~nobody-of-this-name/x'"):
        open_data("folder:~nobody-of-this-name/x", SHAPE, ReadingConfig())
    with pytest.raises(InputError, match="is not a folder"):
        open_data(f"folder:{tmp_path}/file", SHAPE, ReadingConfig())
    with pytest.raises(InputError, match="1 or 3 channels; got 4"):
        open_data(f"folder:{tmp_path}", (4, 8, 8), ReadingConfig())


def test_an_output_inside_the_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="outside of"):
        check_apart(f"folder:{tmp_path}", tmp_path / "runs" / "x")
    check_apart(f"folder:{tmp_path}/images", tmp_path / "runs")
    check_apart("digits", tmp_path)


def test_training_on_a_folder_writes_a_model_and_lists_rejected_files(images, tmp_path, monkeypatch, capsys):
    before = state_of(images)
    settings = ["model.num_classes=3", "reading.rejected_share=0.2", "reading.flip=true", "reading.workers=1"]
    settings += [f"data=folder:{images}", "fit_flow.steps=3", "fit_reverse.steps=3"]
    arguments = ["biflow", "train", "biflow_digits", "--smoke", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", [*arguments, *(word for each in settings for word in ("--set", each))])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    assert (stop.value.code or 0) == 0, printed.err
    assert printed.out.count("Warning: skipped 5 unreadable images") == 1
    lines = dict(line.split("\t") for line in (tmp_path / "run" / "rejected.txt").read_text().splitlines())
    assert lines.keys() == {f"newt/{name}" for name in BROKEN}
    assert lines["newt/empty.webp"] == "an empty file"
    assert '"cat"' in (tmp_path / "run" / "model" / "config.json").read_text()
    assert state_of(images) == before


def test_the_number_of_classes_must_match_the_folder(images, tmp_path, monkeypatch, capsys):
    arguments = [
        "--set",
        f"data=folder:{images}",
        "--set",
        "reading.rejected_share=0.2",
        "--out",
        str(tmp_path / "run"),
    ]
    monkeypatch.setattr(sys, "argv", ["biflow", "train", "biflow_digits", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert "Set model.num_classes=3." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_listing_changes_with_names_sizes_and_classes_and_a_fingerprint_with_times(tmp_path):
    write_grey(tmp_path / "one", "a/x.png", "b/y.png")
    copied = shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copy2)

    def digests():
        data = open_folder(copied, SHAPE, ReadingConfig()).train
        return data.listing_digest(), data.fingerprint()

    first = open_folder(tmp_path / "one", SHAPE, ReadingConfig()).train
    assert digests() == (first.listing_digest(), first.fingerprint())
    assert first.without_classes().listing_digest() != first.listing_digest()
    os.utime(copied / "a/x.png", ns=(1, 1))
    touched = digests()
    assert (touched[0], touched[1] != first.fingerprint()) == (first.listing_digest(), True)
    (copied / "a/x.png").rename(copied / "a/z.png")
    renamed = digests()
    (copied / "a/z.png").rename(copied / "b/z.png")
    write_grey(copied, "a/x.png")
    moved = digests()
    (copied / "b").rename(copied / "c")
    assert len({first.listing_digest(), renamed[0], moved[0], digests()[0]}) == 4


@pytest.mark.parametrize("spelling", ["folder:photos", "folder:./photos/", "folder:x/../photos", "folder:~/photos"])
def test_a_folder_has_one_name_however_it_is_spelt(tmp_path, monkeypatch, spelling):
    (tmp_path / "photos").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert canonical_name(spelling) == canonical_name("folder:linked") == f"folder:{(tmp_path / 'photos').resolve()}"
