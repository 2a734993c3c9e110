"""Data sets of `datasets`, made here and read from disk: the hub is out of reach."""

import gc
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from biflow.cli import main as cli
from biflow.config import FitConfig, ReadingConfig
from biflow.config.base import check_config
from biflow.data.datasets import digits
from biflow.data.decode import read_image, reason_of
from biflow.data.hub import decode_row
from biflow.data.hub_columns import Columns
from biflow.data.images import to_pil
from biflow.data.loader import make_reader, some_examples
from biflow.data.open import open_data
from biflow.data.reader import Reader
from biflow.data.stream import ShuffledStream, stream_reader
from biflow.distributed import World
from biflow.errors import InputError, Interrupted
from biflow.training.hooks import read_history
from biflow.training.run import open_run
from biflow.training.stages import train_model
from tests.builders import tiny_run
from tests.data.pictures import write_broken, write_kinds

datasets = pytest.importorskip("datasets")

COUNT, SHARDS, NAMES = 46, 4, ("ant", "bee", "cat")
SHAPE = (1, 4, 4)


@pytest.fixture(autouse=True)
def _cache_in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    gc.collect()  # workers of a reader that a caught error refers to end here, not while the next test starts its own


def grey(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), value, np.uint8))


def a_set(count: int = COUNT, **columns: object) -> "datasets.Dataset":
    """Images whose grey level is their place, of three classes in turn."""
    named = datasets.ClassLabel(names=list(NAMES))
    columns = columns or {"image": datasets.Image(), "label": named}
    values = {
        name: [grey(i) for i in range(count)] if isinstance(kind, datasets.Image) else [i % 3 for i in range(count)]
        for name, kind in columns.items()
    }
    return datasets.Dataset.from_dict(values, features=datasets.Features(columns))


def write_parquet(data: "datasets.Dataset", folder, *, shards: int = SHARDS, split: str = "train"):
    folder.mkdir(exist_ok=True)
    for i in range(shards):
        data.shard(shards, i, contiguous=True).to_parquet(folder / f"{split}-{i:05d}-of-{shards:05d}.parquet")
    return folder


@pytest.fixture
def parquet(tmp_path):
    return write_parquet(a_set(), tmp_path / "parquet")


def opened(path, **reading: object):
    return open_data(f"hf:{path}", SHAPE, ReadingConfig(**reading))


def stored(tmp_path, data, **reading: object):
    data.save_to_disk(tmp_path / "saved")
    return opened(tmp_path / "saved", **reading)


def values(images: torch.Tensor) -> list[int]:
    """The grey levels of images, which are their indices in the data set."""
    return images[:, 0, 0, 0].tolist()


KINDS = {
    "typed": ({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}, NAMES),
    "typed, whatever the names": ({"x": datasets.Image(), "y": datasets.ClassLabel(names=list(NAMES))}, NAMES),
    "integers": ({"jpg": datasets.Image(), "cls": datasets.Value("int32")}, ("0", "1", "2")),
    "no labels": ({"img": datasets.Image()}, ()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_classes_are_found(tmp_path, kind):
    columns, names = KINDS[kind]
    train = stored(tmp_path, a_set(9, **columns)).train
    assert train.class_names == names
    assert train.labels.tolist() == [i % 3 if names else 0 for i in range(9)]
    assert values(train.read(torch.tensor([5, 0, 5]))) == [5, 0, 5]
    assert train.image_shape == SHAPE


def test_columns_can_be_named(tmp_path):
    coarse = datasets.ClassLabel(names=["x", "y", "z"])
    kinds = {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.Value("int64"), "coarse": coarse}
    train = stored(tmp_path, a_set(6, **kinds), image_column="mask", label_column="coarse").train
    assert (train.columns.image, train.class_names) == ("mask", ("x", "y", "z"))


def test_bytes_are_images_if_their_column_is_named_so(tmp_path):
    files = []
    for i in range(3):
        grey(i).save(tmp_path / "x.png")
        files.append((tmp_path / "x.png").read_bytes())
    data = datasets.Dataset.from_dict({"png": files, "image": ["a", "b", "c"]})
    assert values(stored(tmp_path, data).train.read(torch.arange(3))) == [0, 1, 2]


def test_pixels_are_those_of_the_files_in_a_folder(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 13, 17, 3), np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    data = datasets.Dataset.from_dict({"image": [str(file) for file in files]}).cast_column("image", datasets.Image())
    data.save_to_disk(tmp_path / "saved")
    for streaming in (False, True):
        train = open_data(f"hf:{tmp_path / 'saved'}", (3, 8, 8), ReadingConfig(streaming=streaming)).train
        images = train.decode(list(train.encoded(0, 0)))[0] if streaming else train.read(torch.arange(3))
        assert torch.equal(images, torch.stack([read_image(file, 8, 3) for file in files]))


def test_images_without_classes_have_label_0(parquet):
    plain = opened(parquet).train.without_classes()
    assert (plain.class_names, plain.labels.sum().item(), len(plain)) == ((), 0, COUNT)
    stream = opened(parquet, streaming=True).train.without_classes()
    assert stream.class_names == ()
    assert {example.label for example in stream.encoded(1, 0)} == {0}


def test_a_validation_split_is_the_test_set(tmp_path):
    folder = write_parquet(a_set(), tmp_path / "both")
    write_parquet(a_set(7), folder, shards=1, split="validation")
    write_parquet(a_set(5), folder, shards=1, split="test")
    split = opened(folder, test_share=0.5)
    assert (len(split.train), len(split.test)) == (COUNT, 7)
    stream = opened(folder, streaming=True).test
    assert stream.count(0) == 7


def test_a_split_without_labels_is_not_the_test_set(tmp_path):
    secret = datasets.Dataset.from_dict({"image": [grey(0)] * 4, "label": [-1] * 4}, features=a_set(1).features)
    datasets.DatasetDict(train=a_set(9), test=secret).save_to_disk(tmp_path / "saved")
    assert len(opened(tmp_path / "saved").test) == 0


NUMBERED = {
    "unsigned": ("uint8", [0, 1, 2, 1], [0, 1, 2, 1], ("0", "1", "2")),
    "from one": ("int64", [1, 2, 3, 1], [0, 1, 2, 0], ("1", "2", "3")),
    "far and with gaps": ("uint64", [3000, 1000, 2500, 1000], [2, 0, 1, 0], ("1000", "2500", "3000")),
}


@pytest.mark.parametrize(("kind", "given", "labels", "names"), NUMBERED.values(), ids=NUMBERED.keys())
def test_integer_labels_name_classes_without_gaps(tmp_path, capsys, kind, given, labels, names):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    train, test = (
        datasets.Dataset.from_dict({"image": [grey(0)] * len(values), "label": values}, features=features)
        for values in (given, given[2:])
    )
    split = stored(tmp_path, datasets.DatasetDict(train=train, test=test))
    assert (split.train.labels.tolist(), split.train.class_names) == (labels, names)
    assert (split.test.labels.tolist(), split.test.class_names) == (labels[2:], names)
    assert ("named by their labels" in capsys.readouterr().err) == (names[0] != "0")


def of(names: list[str], labels: list[int]) -> "datasets.Dataset":
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": [grey(0)] * len(labels), "label": labels}, features=features)


def test_a_stream_for_testing_must_name_the_same_classes_in_the_same_order(tmp_path):
    both = datasets.DatasetDict(train=of(["a", "b"], [0, 1]), test=of(["b", "a"], [0, 1]))
    with pytest.raises(InputError, match=r"training split, a, b, in the .* got b, a\. Set reading\.streaming=false"):
        stored(tmp_path, both, streaming=True)
    both["test"] = of(["a", "b"], [1, 1])
    both.save_to_disk(tmp_path / "same")
    assert opened(tmp_path / "same", streaming=True).test.count(0) == 2


def test_class_names_are_printable(tmp_path):
    assert stored(tmp_path, of(["a\x1b[31m", "b"], [0, 1])).train.class_names == (r"a\x1b[31m", "b")


def test_classes_of_a_test_split_are_matched_by_name(tmp_path):
    both = datasets.DatasetDict(train=of(["a", "b"], [0, 1]), test=of(["b", "a", "c"], [0, 1, 1]))
    assert stored(tmp_path, both).test.labels.tolist() == [1, 0, 0]
    both["test"] = of(["b", "c"], [0, 1])
    both.save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match=r"classes of the training images .* got c\. Remove"):
        opened(tmp_path / "other")


def test_classes_without_images_are_told(tmp_path, capsys):
    assert stored(tmp_path, a_set(2)).train.class_names == NAMES
    assert "1 of 3 classes of" in (told := capsys.readouterr().err)
    assert "have no images: cat." in told


def as_files(images, folder):
    folder.mkdir()
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(len(images))]


@pytest.mark.parametrize("stored_as", ["bytes", "files"])
def test_copies_stay_on_one_side_of_the_test_share(tmp_path, stored_as):
    images = [grey(i % 60) for i in range(240)]
    given = images if stored_as == "bytes" else as_files(images, tmp_path / "files")
    data = datasets.Dataset.from_dict({"image": given}, features=datasets.Features({"image": datasets.Image()}))
    split = stored(tmp_path, data, test_share=0.25)
    train, test = ({*values(part.read(torch.arange(len(part))))} for part in (split.train, split.test))
    assert (train & test, len(train | test), 12 <= len(test) <= 18) == (set(), 60, True)


def test_images_that_are_missing_or_elsewhere_are_no_copies(tmp_path):
    (tmp_path / "empty.png").touch()
    given = [None, None, {"bytes": None, "path": str(tmp_path / "none.png")}, grey(1), grey(1), None]
    given += [{"bytes": b"", "path": None}, {"bytes": b"", "path": str(tmp_path / "empty.png")}, grey(2)]
    data = datasets.Dataset.from_dict({"image": given}, features=datasets.Features({"image": datasets.Image()}))
    for some in (data, data.select([*range(1, 9), 0]).select([8, *range(8)])):
        assert Columns("image", None, "").originals(some).tolist() == [0, 1, 2, 3, 3, 5, 6, 7, 8]


def test_the_test_share_is_chosen_by_index_and_evenly_over_classes(tmp_path):
    split = stored(tmp_path, a_set(240), test_share=0.25)
    train, test = (values(part.read(torch.arange(len(part)))) for part in (split.train, split.test))
    assert 57 <= len(test) <= 63
    assert sorted(train + test) == list(range(240))
    assert all(18 <= count <= 22 for count in split.test.labels.bincount().tolist())
    shorter = datasets.Dataset.from_dict(a_set(100).to_dict(), features=a_set(1).features)
    shorter.save_to_disk(tmp_path / "shorter")
    fewer = opened(tmp_path / "shorter", test_share=0.25).test
    assert values(fewer.read(torch.arange(len(fewer)))) == [i for i in test if i < 100]


def test_reading_ahead_changes_nothing(parquet):
    fit, world = FitConfig(steps=12, batch_size=8), World(0, 1, torch.device("cpu"))
    for streaming in (False, True):
        train = opened(parquet, streaming=streaming).train
        readers = [
            make_reader(train, fit, ReadingConfig(workers=workers, shuffle_buffer=10), 0, "flow", world=world)
            for workers in (0, 2)
        ]
        for step in (0, 1, 2, 7, 8, 3, 11):
            one, two = (read(step) for read in readers)
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.labels, two.labels)
            assert one.indices == two.indices


def reader_of(train, *keys, part=(0, 1), block_size=7, batch_size=5, steps=60, workers=0) -> Reader:
    stream = stream_of(train, *keys, part=part, block_size=block_size)
    return stream_reader(stream, batch_size=batch_size, steps=steps, workers=workers)


def stream_of(train, *keys, part=(0, 1), block_size=7) -> ShuffledStream:
    return ShuffledStream(train, *(keys or (0, "flow")), rank=part[0], size=part[1], block_size=block_size)


def shown(read: Reader, images: int) -> list[int]:
    """The first images that a reader of single images shows."""
    return [value for step in range(images) for value in values(read(step).images)]


def of_process(parquet, rank: int, size: int, images: int, **settings: object) -> list[int]:
    train = opened(parquet, streaming=True).train
    return shown(reader_of(train, part=(rank, size), batch_size=1, **settings), images)


@pytest.mark.parametrize("shards", [1, 3, 4], ids=["fewer shards than processes", "uneven shards", "even shards"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_shown_once_an_epoch_by_one_of_the_processes(tmp_path, shards, workers):
    folder = write_parquet(a_set(), tmp_path / "parquet", shards=shards)
    train = opened(folder, streaming=True).train
    everywhere: list[list[int]] = [[], [], []]
    for rank in range(2):
        read = reader_of(train, part=(rank, 2), batch_size=1, steps=400, workers=workers)
        stream = stream_of(train, part=(rank, 2))
        first = 0
        for epoch in range(3):  # what the process shows in an epoch is what its own shards hold
            total = sum(train.count(shard) for shard in stream._shards(epoch))
            images = len(range(stream.first, total, stream.stride))
            everywhere[epoch] += [value for i in range(images) for value in values(read(first + i).images)]
            first += images
    assert [sorted(epoch) for epoch in everywhere] == [list(range(COUNT))] * 3
    assert everywhere[0] != everywhere[1]


def test_labels_stay_with_their_images(parquet):
    read = reader_of(opened(parquet, streaming=True).train)
    for step in range(20):
        found = read(step)
        assert found.labels.tolist() == [value % 3 for value in values(found.images)]


def test_numbers_of_examples_are_never_used_twice(parquet):
    readers = [reader_of(opened(parquet, streaming=True).train, part=(rank, 2)) for rank in range(2)]
    numbers = Counter(i for read in readers for step in range(30) for i in read(step).indices)
    assert set(numbers.values()) == {1}


def test_every_batch_is_full_across_the_ends_of_epochs(parquet):
    read = reader_of(opened(parquet, streaming=True).train)
    seen = [value for step in range(46) for value in values(read(step).images)]
    assert Counter(seen) == dict.fromkeys(range(COUNT), 5)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_a_stream_resumed_at_any_step_equals_the_unbroken_one(tmp_path, shards, part):
    folder = write_parquet(a_set(), tmp_path / "parquet", shards=shards)
    train = opened(folder, streaming=True).train
    unbroken = reader_of(train, part=part)
    steps = [unbroken(step) for step in range(40)]  # of 46 images in blocks of 7: over blocks and epochs
    for start in (0, 1, 3, 4, 5, 8, 9, 10, 18, 23, 37):
        for resumed in (reader_of(train, part=part), unbroken):  # which has read the lengths of the shards
            for step in range(start, min(start + 3, 40)):
                found, expected = resumed(step), steps[step]
                assert torch.equal(found.images, expected.images), (start, step)
                assert torch.equal(found.labels, expected.labels)
                assert found.indices == expected.indices


def test_the_order_differs_between_seeds_stages_epochs_and_from_the_files(parquet):
    orders = [of_process(parquet, 0, 1, COUNT, steps=COUNT), list(range(COUNT))]
    for keys in ((1, "flow"), (0, "reverse")):
        orders.append(shown(reader_of(opened(parquet, streaming=True).train, *keys, batch_size=1), COUNT))
    orders.append(of_process(parquet, 0, 1, 2 * COUNT, steps=2 * COUNT)[COUNT:])
    assert len({tuple(order) for order in orders}) == len(orders)
    assert all(sorted(order) == list(range(COUNT)) for order in orders)


def test_shards_are_dealt_anew_in_every_epoch(parquet):
    stream = stream_of(opened(parquet, streaming=True).train, part=(0, 2))
    dealt = [stream._shards(epoch) for epoch in range(8)]
    assert all(len(set(shards)) == SHARDS // 2 for shards in dealt)
    assert len({frozenset(shards) for shards in dealt}) > 2


def test_processes_that_share_a_shard_shuffle_it_apart(tmp_path):
    folder = write_parquet(a_set(), tmp_path / "parquet", shards=1)
    first, second = (of_process(folder, rank, 2, COUNT // 2, steps=COUNT // 2) for rank in range(2))
    assert sorted(first + second) == list(range(COUNT))
    assert [value // 2 for value in first] != [value // 2 for value in second]


def test_a_saved_data_set_streams_as_its_files_of_parquet_do(tmp_path, parquet):
    a_set().save_to_disk(tmp_path / "saved", num_shards=SHARDS)
    one, two = (opened(path, streaming=True).train for path in (parquet, tmp_path / "saved"))
    assert one.num_shards == two.num_shards == SHARDS
    assert shown(reader_of(one), 20) == shown(reader_of(two), 20)


def test_some_examples_are_random_or_the_first_of_a_stream(parquet):
    for streaming, count in ((False, COUNT), (True, 512)):
        batches = list(some_examples(opened(parquet, streaming=streaming).train, 512, 0))
        assert sum(len(batch.indices) for batch in batches) == count
        assert {value for batch in batches for value in values(batch.images)} == set(range(COUNT))


@pytest.fixture
def digits_folder(tmp_path):
    data = digits().train
    names = datasets.ClassLabel(names=list(data.class_names))
    features = datasets.Features({"image": datasets.Image(), "label": names})
    rows = {"image": [to_pil(image) for image in data.images[:300]], "label": data.labels[:300].tolist()}
    return write_parquet(datasets.Dataset.from_dict(rows, features=features), tmp_path / "digits")


def train_on(monkeypatch, folder, out, *settings: str) -> int:
    command = ["train", "biflow_digits", "--smoke", "--out", str(out), "--set", f"data=hf:{folder}"]
    monkeypatch.setattr(sys, "argv", ["biflow", *command, *(word for each in settings for word in ("--set", each))])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


def test_training_on_a_stream_is_the_same_with_workers(tmp_path, monkeypatch, digits_folder, capsys):
    stream = ("reading.streaming=true", "reading.shuffle_buffer=64", "stage=flow", "fit_flow.steps=12")
    assert train_on(monkeypatch, digits_folder, tmp_path / "one", *stream) == 0, capsys.readouterr()
    assert train_on(monkeypatch, digits_folder, tmp_path / "two", *stream, "reading.workers=2") == 0
    one, two = (read_history(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["loss"] for line in one] == [line["loss"] for line in two]
    assert (tmp_path / "one" / "model").is_dir()


def test_training_on_a_stream_resumes_exactly(tmp_path):
    train = stored(tmp_path, a_set(), streaming=True).train
    config = tiny_run(data="hf:here", reading=ReadingConfig(streaming=True, shuffle_buffer=7))

    def weights(folder: str, stop_at: int = 0, *, resume: bool = False) -> dict[str, torch.Tensor]:
        with open_run(config, train, tmp_path / folder, resume=resume, console=Console(quiet=True)) as run:
            steps = iter(range(1, 100))
            return train_model(replace(run, should_stop=lambda: next(steps) == stop_at)).model.reverse.state_dict()

    unbroken = weights("unbroken")
    with pytest.raises(Interrupted):
        weights("broken", 3)
    with pytest.raises(Interrupted):
        weights("broken", 5, resume=True)
    resumed = weights("broken", resume=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in unbroken.items())


def test_both_stages_train_on_a_stream(tmp_path, monkeypatch, digits_folder, capsys):
    assert train_on(monkeypatch, digits_folder, tmp_path / "run", "reading.streaming=true") == 0, capsys.readouterr()


def bad_name(tmp_path):  # noqa: ARG001
    open_data("hf:someone/nothing", SHAPE, ReadingConfig())


def no_files(tmp_path):
    (tmp_path / "empty").mkdir()
    opened(tmp_path / "empty")


def no_images(tmp_path):
    stored(tmp_path, a_set(3, number=datasets.Value("int64")))


def images_of_numbers(tmp_path):
    stored(tmp_path, a_set(3, image=datasets.Value("int64")), image_column="image")


def two_images(tmp_path):
    stored(tmp_path, a_set(3, left=datasets.Image(), right=datasets.Image()))


def two_labels(tmp_path):
    kinds = {name: datasets.ClassLabel(names=list(NAMES)) for name in ("colour", "shape")}
    stored(tmp_path, a_set(3, image=datasets.Image(), **kinds))


def label_of_strings(tmp_path):
    stored(tmp_path, datasets.Dataset.from_dict({"image": [grey(0)], "label": ["cat"]}))


def no_such_column(tmp_path):
    stored(tmp_path, a_set(3), label_column="lable")


def label_out_of_range(tmp_path):
    rows = {"image": [grey(0)] * 2, "label": [0, -1]}
    stored(tmp_path, datasets.Dataset.from_dict(rows, features=a_set(1).features))


def no_train(tmp_path):
    datasets.DatasetDict(test=a_set(3)).save_to_disk(tmp_path / "saved")
    opened(tmp_path / "saved")


def stream_of_unnamed_classes(tmp_path):
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64")}
    stored(tmp_path, a_set(3, **kinds), streaming=True)


def stream_with_test_share(tmp_path):  # noqa: ARG001
    check_config(ReadingConfig, {"streaming": True, "test_share": 0.1}, origin="here")


def stream_of_digits(tmp_path):  # noqa: ARG001
    open_data("digits", SHAPE, ReadingConfig(streaming=True))


def broken(tmp_path, **reading: object):
    image = {"bytes": b"no image", "path": None}
    rows = {"image": [{"bytes": (tmp_path / "x.png").read_bytes(), "path": None}, image], "label": [0, 1]}
    return stored(tmp_path, datasets.Dataset.from_dict(rows, features=a_set(1).features), **reading).train


def broken_image(tmp_path):
    grey(0).save(tmp_path / "x.png")
    broken(tmp_path).read(torch.tensor([0, 1]))


def an_empty_cell(tmp_path):
    rows = {"image": [grey(0), None], "label": [0, 1]}
    data = datasets.Dataset.from_dict(rows, features=a_set(1).features)
    stored(tmp_path, data).train.read(torch.tensor([0, 1]))


def broken_image_in_a_worker(tmp_path):
    grey(0).save(tmp_path / "x.png")
    fit, world = FitConfig(steps=1, batch_size=2), World(0, 1, torch.device("cpu"))
    make_reader(broken(tmp_path), fit, ReadingConfig(workers=1), 0, world=world)(0)


def broken_image_of_a_stream(tmp_path):
    grey(0).save(tmp_path / "x.png")
    reader_of(broken(tmp_path, streaming=True), workers=1)(0)


def more_processes_than_images(tmp_path):
    reader_of(stored(tmp_path, a_set(2), streaming=True).train, part=(2, 3))(0)


FAULTS = {
    bad_name: r"'someone/nothing' \(Couldn't reach .*Give the path of a local folder, hf:PATH,.*HF_HUB_OFFLINE unset",
    no_files: r"cannot open .*empty.*folder of parquet files",
    no_images: r"column of images in .*got number\. Cast .*reading.image_column=NAME",
    images_of_numbers: r"images in column 'image' .*got none",
    two_images: r"got left, right\. Set reading.image_column=left",
    two_labels: r"got colour, shape\. Set reading.label_column=colour",
    label_of_strings: r"integer labels in column 'label' .*got string\. .*class_encode_column",
    no_such_column: r"label_column to be one of image, label.*got 'lable'",
    label_out_of_range: r"label from 0 to 2 for image 1 of .*got -1",
    no_train: r"split named train in .*got test\. Save it",
    stream_of_unnamed_classes: r"type ClassLabel .*got integers in 'label'\. Set reading.streaming=false",
    stream_with_test_share: r"test_share 0 for a stream.*got 0.1\. Set reading.test_share=0",
    stream_of_digits: r"hf:NAME to stream; got 'digits'",
    broken_image: r"readable image at image 1 of .*not a PNG, JPEG",
    an_empty_cell: r"readable image at image 1 of .*an empty cell",
    broken_image_in_a_worker: r"^Expected a readable image at image 1 of .*not a PNG, JPEG",
    broken_image_of_a_stream: r"^Expected a readable image at image 1 of shard 0 of .*not a PNG, JPEG",
    more_processes_than_images: r"images for each of 3 processes; there is none for process 2",
}


def test_a_stored_image_is_read_or_refused_like_the_same_file(tmp_path):
    write_kinds(tmp_path / "files")
    write_broken(tmp_path / "files")
    grey(9).convert("P").save(tmp_path / "files" / "x.gif")
    settings = {"crop": "tarflow", "background": "black"}
    read = partial(decode_row, name="row 1", image_shape=(3, 4, 4), reading=ReadingConfig(**settings))
    for path in sorted((tmp_path / "files").iterdir()):
        try:
            wanted = read_image(path, 4, 3, **settings)
        except Exception as error:
            if path.stat().st_size:  # an empty file is a row without bytes
                with pytest.raises(InputError, match=re.escape(reason_of(error))):
                    read({"bytes": path.read_bytes(), "path": None})
        else:
            for row in ({"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}):
                assert torch.equal(read(row), wanted), path.name


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_bad_input_is_explained_in_a_sentence(tmp_path, fault):
    with pytest.raises(InputError, match=FAULTS[fault]) as raised:
        fault(tmp_path)
    assert "\n" not in str(raised.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'biflow\[data\]'"):
        open_data("hf:ILSVRC/imagenet-1k", SHAPE, ReadingConfig())
