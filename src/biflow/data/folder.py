"""A folder of the user's own images: one folder in it for each class, or all of one kind."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from biflow.config import ReadingConfig
from biflow.data.datasets import Split
from biflow.data.decode import IMAGE_SUFFIXES, read_image, reason_of
from biflow.data.scan import Scan, check_is_folder, list_images, printable, scan
from biflow.errors import InputError

SPLIT_FOLDERS = ({"train", "val"}, {"train", "test"})


@dataclass(frozen=True)
class FolderImages:
    """Images of a folder, each read from its file when it is asked for."""

    root: Path
    names: np.ndarray  # (N,) from the root down, as bytes: one block of memory for all processes that read
    labels: Tensor  # int64 (N,)
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    reading: ReadingConfig
    rejected: Mapping[str, str]  # of the whole folder

    def __len__(self) -> int:
        return len(self.names)

    def read(self, places: Tensor) -> Tensor:
        """The images at these places (n,): uint8 (n, P, H, W)."""
        names = [os.fsdecode(self.names[place]) for place in places.tolist()]
        return torch.stack([self._read(name) for name in names])

    def without_classes(self) -> "FolderImages":
        """The images alone, every one of label 0, which is "no class" where there are no classes."""
        return replace(self, labels=torch.zeros_like(self.labels), class_names=())

    def _read(self, name: str) -> Tensor:
        channels, size, _ = self.image_shape
        reading = self.reading
        try:
            return read_image(self.root / name, size, channels, crop=reading.crop, background=reading.background)
        except Exception as error:
            raise InputError(
                f"Expected to read {printable(str(self.root / name))} as when training began; got: "
                f"{reason_of(error)}. Put the file back, then go on with --resume."
            ) from None


class Layout(NamedTuple):
    """How a folder is laid out: its image files, by name, and what their folders say of each."""

    names: list[str]
    classes: list[str]  # "" where there are none
    class_names: tuple[str, ...]
    tested: list[bool] | None  # where the folder has a test set of its own: whether an image is of it


def open_folder(path: Path, image_shape: tuple[int, int, int], reading: ReadingConfig) -> Split[FolderImages]:
    """The images of a folder for training, and those of each class held out, after every file was read once.

    Raises if more files are unreadable than `reading.rejected_share` allows.  The folder is never written to.
    """
    if image_shape[0] not in {1, 3}:
        raise InputError(f"Expected a model of grey or RGB images, 1 or 3 channels; got {image_shape[0]}.")
    layout = lay_out(path)
    found = scan(path, layout.names)
    check_rejected(path, found, reading.rejected_share)
    tested = layout.tested or [is_held_out(name, reading.test_share) for name in layout.names]
    labels = {name: label for label, name in enumerate(layout.class_names)}

    def part(wanted: bool) -> FolderImages:
        chosen = [
            (os.fsencode(name), labels.get(kind, 0))
            for name, kind, test in zip(layout.names, layout.classes, tested, strict=True)
            if name in found.readable and test is wanted
        ]
        names, numbers = np.array([name for name, _ in chosen], np.bytes_), [number for _, number in chosen]
        shown = tuple(map(printable, layout.class_names))
        return FolderImages(
            path.resolve(), names, torch.tensor(numbers).long(), shown, image_shape, reading, found.rejected
        )

    split = Split(part(False), part(True))
    check_every_class(path, split.train)
    return split


def lay_out(root: Path) -> Layout:
    """Which classes a folder's images are of, and which of them are a test set: told by folders alone."""
    check_is_folder(root)
    names = list_images(root)
    if not names:
        raise InputError(f"Expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {root}; there is none.")
    inner = {name.partition("/")[0] if "/" in name else "" for name in names}
    if inner == {"train", "val", "test"}:
        raise InputError(
            f"Expected train/ and either val/ or test/ in {root}; got all three. Make a folder with links to the two "
            "that you want, or give train/ alone."
        )
    if inner in SPLIT_FOLDERS:
        return _lay_out_split(root, names)
    classes = _classes(root, names)
    return Layout(names, classes, _sorted_classes(classes), None)


def is_held_out(name: str, share: float) -> bool:
    """Whether the image of this name is for testing: drawn by the name alone, so that others do not matter."""
    draw = int.from_bytes(sha256(os.fsencode(name)).digest()[:8], "big")
    return draw < share * 2**64


def check_rejected(path: Path, found: Scan, allowed: float) -> None:
    """Raise if no image can be read, or a larger share is unreadable than is allowed."""
    count, total = len(found.rejected), len(found.rejected) + len(found.readable)
    if count <= allowed * total:
        return
    first = [f"{printable(name)} ({reason})" for name, reason in list(found.rejected.items())[:3]]
    raise InputError(
        f"Expected at most {allowed:.3g} of the images in {path} to be unreadable; got {count} of {total} "
        f"({count / total:.3g}): {', '.join(first)}{', ...' if count > len(first) else ''}. "
        f"See all of them with biflow data check {path}, or raise reading.rejected_share."
    )


def check_every_class(path: Path, train: FolderImages) -> None:
    """Raise unless there is an image of every class to train on."""
    if not len(train):
        raise InputError(f"Expected images to train on in {path}; all are held out. Lower reading.test_share.")
    counts = train.labels.bincount(minlength=len(train.class_names)).tolist()
    if empty := [name for name, count in zip(train.class_names, counts, strict=False) if not count]:
        raise InputError(
            f"Expected images to train on in every class folder of {path}; those in {_some(empty)} are all "
            "unreadable or held out for testing. Add images to it, or move it away."
        )


def _lay_out_split(root: Path, names: list[str]) -> Layout:
    """The layout of train/ beside val/ or test/: each laid out as a folder, of the same classes."""
    tops = sorted({name.partition("/")[0] for name in names})  # the names come in this order
    below = {top: [name.removeprefix(f"{top}/") for name in names if name.startswith(f"{top}/")] for top in tops}
    classes = {top: _classes(root / top, below[top]) for top in tops}
    if strange := {kind for kinds in classes.values() for kind in kinds} - set(classes["train"]):
        what = f"the classes {_some(sorted(strange))}" if "" not in strange else "images of no class"
        raise InputError(
            f"Expected the same class folders in {root}/train and beside it; got {what} that train/ has not. "
            "Give both the same class folders."
        )
    joined = [kind for top in tops for kind in classes[top]]
    return Layout(names, joined, _sorted_classes(classes["train"]), [not name.startswith("train/") for name in names])


def _classes(folder: Path, names: Sequence[str]) -> list[str]:
    """The class of each name: the first folder on its way."""
    loose = [name for name in names if "/" not in name]
    if loose and len(loose) < len(names):
        folders = sorted({name.partition("/")[0] for name in names if "/" in name})
        raise InputError(
            f"Expected loose images or folders of images in {folder}, not both; got {_some(loose)} beside "
            f"{_some(folders)}. Move the loose images into a folder, or give one of the folders alone."
        )
    return [name.partition("/")[0] if "/" in name else "" for name in names]


def _sorted_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of classes, with numbers in them in the order of their values."""
    return tuple(sorted(set(classes) - {""}, key=_in_natural_order))


def _in_natural_order(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", name)  # text and digits take turns
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(printable(name) for name in names[:3]) + more
