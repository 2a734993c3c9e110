"""Image folders: one subfolder per class, or images without classes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from biflow.config import ReadingConfig
from biflow.console import counted, printable, quote, say_once, some
from biflow.data.copies import count_shared, find_copies, originals
from biflow.data.datasets import ImageSource, Split, digest, is_held_out
from biflow.data.decode import check_channels, read_image, reason_of
from biflow.data.layout import Layout, lay_out
from biflow.data.scan import Scan, in_words, scan
from biflow.errors import InputError


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
    sizes_digest: str  # of the files' sizes in bytes
    times_digest: str  # of their modification times

    def read(self, indices: Tensor) -> Tensor:
        """Read images by index (n,): uint8 (n, P, H, W)."""
        return torch.stack([self._read(os.fsdecode(self.names[i])) for i in indices.tolist()])

    def listing_digest(self) -> str:
        """A digest of the files' names and sizes, their classes and the class names."""
        names = sha256(self.names.tobytes()).hexdigest()
        return digest(self.class_names, self.labels, names, self.sizes_digest)

    def fingerprint(self) -> str:
        """The same with the files' modification times."""
        return digest(self.listing_digest(), self.times_digest)

    def _read(self, name: str) -> Tensor:
        channels, size, _ = self.image_shape
        reading = self.reading
        try:
            return read_image(self.root / name, size, channels, crop=reading.crop, background=reading.background)
        except Exception as error:  # Pillow's decoders raise many types
            raise InputError(
                f"Expected to read {printable(str(self.root / name))}, which was readable when training started; got: "
                f"{reason_of(error)}. Restore the file, then resume with --resume."
            ) from None


def open_folder(path: Path, image_shape: tuple[int, int, int], reading: ReadingConfig) -> Split[FolderImages]:
    """Open an image folder; every file is decoded once to find unreadable ones, and nothing is written to it.

    The test split is the folder's own, or a share `reading.test_share`. Raises if more than a share
    `reading.rejected_share` of the files is unreadable.
    """
    check_channels(image_shape)
    layout = lay_out(path)
    found = scan(path, layout.names)
    check_rejected(path, found, reading.rejected_share)
    is_test = hold_out(path, layout, found, reading.test_share)
    for doubt in found.doubts():
        say_once(f"Warning: {doubt}")
    for note in layout.notes:
        say_once(f"Note: {note}")
    label_of = {name: label for label, name in enumerate(layout.class_names)}

    def split(test: bool) -> FolderImages:
        chosen = [
            (os.fsencode(name), label_of.get(kind, 0))
            for name, kind, held_out in zip(layout.names, layout.classes, is_test, strict=True)
            if name in found.readable and held_out is test
        ]
        names, labels = np.array([name for name, _ in chosen], np.bytes_), [label for _, label in chosen]
        facts = [found.readable[os.fsdecode(name)] for name, _ in chosen]
        return FolderImages(
            path.resolve(),
            names,
            torch.tensor(labels).long(),
            tuple(map(printable, layout.class_names)),
            image_shape,
            reading,
            found.rejected,
            sizes_digest=digest(torch.tensor([each.length for each in facts])),
            times_digest=digest(torch.tensor([each.changed for each in facts])),
        )

    train = split(test=False)
    check_every_class(path, train)
    return Split(train, split(test=True))


def hold_out(path: Path, layout: Layout, found: Scan, share: float) -> list[bool]:
    """Whether each image is a test image: of the folder's own split, else of a share, in which copies stay together."""
    if layout.is_test is None and not share:
        return [False] * len(layout.names)
    copies = find_copies(path, found.readable)
    if layout.is_test is None:
        first = originals(copies)
        return [is_held_out(os.fsencode(first.get(name, name)), share) for name in layout.names]
    test = {name for name, held_out in zip(layout.names, layout.is_test, strict=True) if held_out}
    if shared := count_shared(copies, test):
        say_once(f"Warning: {shared:,} of {counted(len(test), 'test image')} of {path} are also training images.")
    return layout.is_test


def check_rejected(path: Path, found: Scan, allowed: float) -> None:
    """Raise if the share of unreadable images is larger than allowed."""
    count, total = len(found.rejected), len(found.rejected) + len(found.readable)
    if count > allowed * total:
        raise InputError(
            f"Expected at most {allowed:.3g} of the images in {path} to be unreadable; got {count} of {total} such: "
            f"{in_words(found.rejected)}. List all with biflow data check {quote(path)}, or raise "
            "reading.rejected_share."
        )


def check_every_class(path: Path, train: FolderImages) -> None:
    """Raise unless every class has a training image."""
    if not len(train):
        raise InputError(f"Expected training images in {path}; all are held out. Lower reading.test_share.")
    counts = train.labels.bincount(minlength=len(train.class_names)).tolist()
    if empty := [name for name, count in zip(train.class_names, counts, strict=False) if not count]:
        raise InputError(
            f"Expected images in every class of {path}; those in {some(empty, most=3)} are all unreadable or held "
            "out for testing. Add images, or move the folder away."
        )
