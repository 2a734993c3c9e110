"""Data sets on the Hugging Face hub or saved on disk by `datasets`: by index, or as a stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biflow.config import ReadingConfig
from biflow.console import some
from biflow.data.datasets import ImageSet, ImageSource, ImageStream, RawExample, Source, Split, digest
from biflow.data.decode import as_seen, at_size, read_image, reason_of
from biflow.data.hub_columns import Columns, HubData, find_columns
from biflow.data.labels import match_classes, note_classes, number_classes
from biflow.errors import InputError
from biflow.extras import require

TEST_NAMES = ("validation", "test")
GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are equidistributed, whatever the order of the classes
ROWS_PER_COUNT = 1000

SAMPLED = 64
MATCH = "Remove these images with filter, or give integers the names of the classes with cast_column."

Shape = tuple[int, int, int]


def open_hub_set(name: str, image_shape: Shape, reading: ReadingConfig) -> Split[Source]:
    """Open a data set on the hub (`NAME` or `NAME,CONFIG`) or in a folder, at image_shape (P, H, W).

    The test set is the first split of "validation" and "test" that has labels, else `reading.test_share` of the
    training images.
    """
    splits = _load(name, streaming=reading.streaming)
    if "train" not in splits:
        raise InputError(
            f"Expected a split named train in {name!r}; got {', '.join(splits)}. Save it as DatasetDict(train=...)."
        )
    columns = find_columns(splits["train"], reading, name)
    tests = [splits[split] for split in TEST_NAMES if split in splits and columns.are_in(splits[split])]
    if reading.streaming:
        stream = open_stream(splits["train"], columns, image_shape, reading)
        empty = ImageSet(torch.empty(0, *image_shape, dtype=torch.uint8), torch.empty(0).long(), stream.class_names)
        return Split(stream, stream.for_testing(tests[0]) if tests else empty)
    images = open_stored(splits["train"], columns, image_shape, reading)
    for test in tests:
        if columns.labels_of(test).ge(0).all():
            held_out = open_stored(test, columns, image_shape, reading, class_names=images.class_names)
            return Split(images, held_out)
    if not reading.test_share:
        return Split(images, images.take(torch.zeros(len(images), dtype=torch.bool)))
    is_test = columns.originals(splits["train"]).double().mul(GOLDEN).frac() < reading.test_share
    return Split(images.take(~is_test), images.take(is_test))


@dataclass(frozen=True)
class HubImages(ImageSource):
    """A stored data set; an image that cannot be decoded is an error when it is read."""

    dataset: HubData
    columns: Columns
    labels: Tensor
    class_names: tuple[str, ...]
    image_shape: Shape
    reading: ReadingConfig

    def read(self, indices: Tensor) -> Tensor:
        """The images at these indices (n,): uint8 (n, P, H, W)."""
        rows = self.dataset[indices.tolist()][self.columns.image]
        numbered, settings = zip(indices.tolist(), rows, strict=True), (self.image_shape, self.reading)
        return torch.stack([decode_row(row, f"image {i} of {self.columns.origin!r}", *settings) for i, row in numbered])

    def listing_digest(self) -> str:
        """A digest of the labels, the class names and some of the images, at most `SAMPLED`, evenly spaced."""
        rows = self.dataset[:: max(1, len(self) // SAMPLED)][self.columns.image] if len(self) else []
        stored = [(row["bytes"] or Path(row["path"] or "").name.encode()) if row else b"" for row in rows]
        return digest(super().listing_digest(), [sha256(each).hexdigest() for each in stored])

    def fingerprint(self) -> str:
        """A digest of the labels, the class names and what `datasets` knows of the stored files."""
        return digest(self.listing_digest(), self.dataset._fingerprint)

    def take(self, mask: Tensor) -> "HubImages":
        """The images where `mask` (N,) is true."""
        indices = mask.nonzero().flatten().tolist()
        return replace(self, dataset=self.dataset.select(indices), labels=self.labels[mask])


def open_stored(
    data: HubData, columns: Columns, image_shape: Shape, reading: ReadingConfig, *, class_names: tuple[str, ...] = ()
) -> HubImages:
    """Open a split of a stored data set, by default with its own class names; integer labels name their classes."""
    labels, own = columns.labels_of(data), columns.class_names_of(data)
    if columns.label and not own:
        labels, own = number_classes(labels)
    if wrong := ((labels < 0) | (labels >= max(1, len(own)))).nonzero().flatten().tolist():
        _check_label(int(labels[wrong[0]]), own, f"image {wrong[0]} of {columns.origin!r}")
    if not class_names:
        note_classes(labels, own, columns.origin)
    elif class_names != own:
        labels = match_classes(labels, own, class_names, columns.origin, repair=MATCH)
    return HubImages(columns.of(data), columns, labels, class_names or own, image_shape, reading)


def open_stream(data: HubData, columns: Columns, image_shape: Shape, reading: ReadingConfig) -> "HubStream":
    """Open a split as a stream, whose labels must have names: they cannot be counted beforehand."""
    class_names = columns.class_names_of(data)
    if columns.label and not class_names:
        raise InputError(
            f"Expected labels of type ClassLabel in a stream, {columns.origin!r}; got integers in {columns.label!r}. "
            "Set reading.streaming=false."
        )
    return HubStream(columns.of(data), columns, class_names, image_shape, reading)


@dataclass(frozen=True)
class HubStream(ImageStream):
    """A data set that is streamed shard by shard."""

    dataset: HubData
    columns: Columns
    class_names: tuple[str, ...]
    image_shape: Shape
    reading: ReadingConfig

    @property
    def num_shards(self) -> int:
        """Number of shards, usually files."""
        return int(self.dataset.num_shards)

    def encoded(self, shard: int, start: int) -> Iterator[RawExample]:
        """The examples of a shard, from index `start` on."""
        rows = self._shard(shard).skip(start) if start else self._shard(shard)
        for i, row in enumerate(rows, start=start):
            name = f"image {i} of shard {shard} of {self.columns.origin!r}"
            label = row[self.columns.label] if self.columns.label else 0
            yield RawExample(name, row[self.columns.image], -1 if label is None else label)

    def count(self, shard: int) -> int:
        """Number of examples in a shard, counted without decoding images."""
        return sum(len(table) for table in self._shard(shard).with_format("arrow").iter(ROWS_PER_COUNT))

    def decode(self, examples: Sequence[RawExample]) -> tuple[Tensor, Tensor]:
        """n examples -> images, uint8 (n, P, H, W), and labels (n,)."""
        labels = [_check_label(label, self.class_names, name) for name, _, label in examples]
        images = [decode_row(row, name, self.image_shape, self.reading) for name, row, _ in examples]
        return torch.stack(images), torch.tensor(labels)

    def for_testing(self, data: HubData) -> "HubStream":
        """Another split as a stream; raises unless it names the same classes in the same order."""
        if (names := self.columns.class_names_of(data)) != self.class_names:
            raise InputError(
                f"Expected the classes of the training split, {some(self.class_names)}, in the test split of "
                f"{self.columns.origin!r}, in this order; got {some(names) or 'no names'}. "
                "Set reading.streaming=false, which matches classes by name."
            )
        return replace(self, dataset=self.columns.of(data))

    def without_classes(self) -> "HubStream":
        """The same images without classes: every label is 0."""
        return replace(self, columns=self.columns._replace(label=None), class_names=())

    def _shard(self, shard: int) -> HubData:
        return self.dataset.shard(num_shards=self.num_shards, index=shard)


def decode_row(row: Any, name: str, image_shape: Shape, reading: ReadingConfig) -> Tensor:
    """An image as stored by `datasets` -> uint8 (P, H, W)."""
    from datasets import Image

    channels, size, _ = image_shape
    try:
        if row is None or not (row["bytes"] or row["path"]):
            raise InputError("an empty cell")
        if not row["bytes"] and "://" in row["path"]:  # a file on the hub
            image = as_seen(Image().decode_example(row), reading.background)
            return at_size(image, size, channels, crop=reading.crop)
        stored = BytesIO(row["bytes"]) if row["bytes"] else Path(row["path"])
        return read_image(stored, size, channels, crop=reading.crop, background=reading.background)
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise InputError(
            f"Expected a readable image at {name}; got: {reason_of(error)}. Remove it with select and save_to_disk."
        ) from None


def _check_label(label: int, class_names: Sequence[str], name: str) -> int:
    last = max(1, len(class_names)) - 1
    if not 0 <= label <= last:
        raise InputError(f"Expected a label from 0 to {last} for {name}; got {label}. Remove it with filter.")
    return label


def _load(name: str, *, streaming: bool) -> Mapping[str, HubData]:
    """The splits of a data set by name, as streams if `streaming`."""
    datasets = require("datasets")
    folder = Path(name).expanduser()
    is_local = folder.is_dir()
    try:
        if is_local and any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(folder))
            stored = {"train": saved} if isinstance(saved, datasets.Dataset) else saved
            if not streaming:
                return stored
            shards = {split: max(1, min(len(data.cache_files), len(data))) for split, data in stored.items()}
            return {split: data.to_iterable_dataset(num_shards=shards[split]) for split, data in stored.items()}
        path, _, config = (str(folder), "", "") if is_local else name.partition(",")
        splits: Mapping[str, HubData] = datasets.load_dataset(path, config or None, streaming=streaming)
    except Exception as error:  # hub, network and file errors of a dozen types
        raise InputError(_describe_failure(name, error, offline=datasets.config.HF_HUB_OFFLINE)) from None
    return splits


def _describe_failure(name: str, error: Exception, *, offline: bool) -> str:
    reason = reason_of(error)
    if "gated" in reason:
        repair = "Accept the terms on its page, then log in with hf auth login."
    elif isinstance(error, ConnectionError):
        repair = "Give the path of a local folder, hf:PATH, or connect to the network"
        repair += ", with HF_HUB_OFFLINE unset." if offline else "."
    else:
        repair = "Check the name and its configuration after the comma, or give a folder of parquet files, hf:PATH."
    return f"Expected a data set on the hub or a local folder; cannot open {name!r} ({reason}). {repair}"
