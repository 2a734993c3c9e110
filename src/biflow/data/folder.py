"""Image folders: one subfolder per class, or images without classes."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from biflow.config import ReadingConfig
from biflow.console import say_once
from biflow.data.datasets import ImageSource, Split
from biflow.data.decode import read_image, reason_of
from biflow.data.formats import IMAGE_SUFFIXES
from biflow.data.scan import Scan, in_words, list_images, printable, scan, some
from biflow.errors import InputError

SPLIT_FOLDERS = ({"train", "val"}, {"train", "test"})


@dataclass(frozen=True)
class FolderImages(ImageSource):
    """Images of a folder, decoded when they are read."""

    root: Path
    names: np.ndarray  # (N,) relative paths as bytes: one block of memory, shared by the workers
    labels: Tensor  # int64 (N,)
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    reading: ReadingConfig
    rejected: Mapping[str, str] = field()  # of the whole folder, not only of this split; has no default here

    def read(self, indices: Tensor) -> Tensor:
        """Read images by index (n,): uint8 (n, P, H, W)."""
        return torch.stack([self._read(os.fsdecode(self.names[i])) for i in indices.tolist()])

    def _read(self, name: str) -> Tensor:
        channels, size, _ = self.image_shape
        reading = self.reading
        try:
            return read_image(self.root / name, size, channels, crop=reading.crop, background=reading.background)
        except Exception as error:
            raise InputError(
                f"Expected to read {printable(str(self.root / name))}, which was readable when training started; got: "
                f"{reason_of(error)}. Restore the file, then resume with --resume."
            ) from None


class Layout(NamedTuple):
    """Image files of a folder with their classes and splits."""

    names: list[str]
    classes: list[str]  # "" without classes
    class_names: tuple[str, ...]
    is_test: list[bool] | None  # per image, if the folder has its own test split


def open_folder(path: Path, image_shape: tuple[int, int, int], reading: ReadingConfig) -> Split[FolderImages]:
    """Open an image folder; every file is decoded once to find unreadable ones, and nothing is written to it.

    The test split is the folder's own, or a share `reading.test_share`. Raises if more than a share
    `reading.rejected_share` of the files is unreadable.
    """
    if image_shape[0] not in {1, 3}:
        raise InputError(
            f"Expected a model of grey or RGB images, 1 or 3 channels; got {image_shape[0]}. Set model.channels."
        )
    layout = lay_out(path)
    found = scan(path, layout.names)
    check_rejected(path, found, reading.rejected_share)
    for doubt in found.doubts():
        say_once(f"Warning: {doubt}")
    is_test = layout.is_test or [is_held_out(name, reading.test_share) for name in layout.names]
    label_of = {name: label for label, name in enumerate(layout.class_names)}

    def split(test: bool) -> FolderImages:
        chosen = [
            (os.fsencode(name), label_of.get(kind, 0))
            for name, kind, held_out in zip(layout.names, layout.classes, is_test, strict=True)
            if name in found.readable and held_out is test
        ]
        names, labels = np.array([name for name, _ in chosen], np.bytes_), [label for _, label in chosen]
        shown = tuple(map(printable, layout.class_names))
        return FolderImages(
            path.resolve(), names, torch.tensor(labels).long(), shown, image_shape, reading, found.rejected
        )

    train = split(test=False)
    check_every_class(path, train)
    return Split(train, split(test=True))


def lay_out(root: Path) -> Layout:
    """Find the classes and splits of an image folder from its subfolder names."""
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"Expected a folder of images; {root} {state}. Check the path.")
    names = list_images(root)
    if not names:
        raise InputError(f"Expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {root}; found none.")
    inner = {name.partition("/")[0] if "/" in name else "" for name in names}
    if inner == {"train", "val", "test"}:
        raise InputError(
            f"Expected train/ and either val/ or test/ in {root}; got all three. Make a folder with links to the two "
            "that you want."
        )
    has_test = inner in SPLIT_FOLDERS
    parts = [f"{part}/" for part in sorted(inner)] if has_test else [""]  # in the order of the names
    below = {part: [name.removeprefix(part) for name in names if name.startswith(part)] for part in parts}
    classes = {part: _classes(root / part, below[part]) for part in parts}
    in_train = set(classes["train/" if has_test else ""])
    if unknown := {kind for kinds in classes.values() for kind in kinds} - in_train:
        what = f"the classes {_some(sorted(unknown))}" if "" not in unknown else "images without a class"
        raise InputError(
            f"Expected the same class folders in all splits of {root}; got {what} missing from train/. "
            "Add them, or move them out of the other split."
        )
    is_test = [not name.startswith("train/") for name in names] if has_test else None
    class_names = tuple(sorted(in_train - {""}, key=_in_natural_order))
    return Layout(names, [kind for part in parts for kind in classes[part]], class_names, is_test)


def is_held_out(name: str, share: float) -> bool:
    """Whether an image is in the test split; a hash of its name, so that adding images moves no others."""
    draw = int.from_bytes(sha256(os.fsencode(name)).digest()[:8], "big")
    return draw < share * 2**64


def check_rejected(path: Path, found: Scan, allowed: float) -> None:
    """Raise if the share of unreadable images is larger than allowed."""
    count, total = len(found.rejected), len(found.rejected) + len(found.readable)
    if count > allowed * total:
        raise InputError(
            f"Expected at most {allowed:.3g} of the images in {path} to be unreadable; got {count} of {total} such: "
            f"{in_words(found.rejected)}. List all with biflow data check {path}, or raise reading.rejected_share."
        )


def check_every_class(path: Path, train: FolderImages) -> None:
    """Raise unless every class has a training image."""
    if not len(train):
        raise InputError(f"Expected training images in {path}; all are held out. Lower reading.test_share.")
    counts = train.labels.bincount(minlength=len(train.class_names)).tolist()
    if empty := [name for name, count in zip(train.class_names, counts, strict=False) if not count]:
        raise InputError(
            f"Expected images in every class of {path}; those in {_some(empty)} are all unreadable or held "
            "out for testing. Add images, or move the folder away."
        )


def _classes(folder: Path, names: Sequence[str]) -> list[str]:
    """The class of each name: its first folder, or ""."""
    loose = [name for name in names if "/" not in name]
    if loose and len(loose) < len(names):
        folders = sorted({name.partition("/")[0] for name in names if "/" in name})
        raise InputError(
            f"Expected loose images or folders of images in {folder}, not both; got {_some(loose)} next to "
            f"{_some(folders)}. Move the loose images into a folder, or use one of the folders alone."
        )
    return [name.partition("/")[0] if "/" in name else "" for name in names]


def _in_natural_order(name: str) -> tuple[list[str | int], str]:
    """A sort key by which numbers in names sort by value."""
    parts = re.split(r"([0-9]+)", name)  # alternating text and digits
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _some(names: Sequence[str]) -> str:
    return some(list(map(printable, names)), most=3)
