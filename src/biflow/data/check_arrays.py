"""Statistics and a contact sheet of images in .npz or IDX files."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.data.arrays import READERS, Found, classes_of, labels_among
from biflow.data.check import SHEET_CLASSES, SHEET_COLUMNS, Rows, first_rows
from biflow.data.images import make_grid


class ArraysCheck(NamedTuple):
    """Images in arrays, their path, and the name of the data set that they make."""

    path: Path
    data: str
    sets: list[Found]  # the training set, and the test set if there is one

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the training set."""
        return classes_of(self.sets[0])[1]


def check_arrays(path: Path) -> ArraysCheck | None:
    """Read a .npz file or a folder of .npz or IDX files; None if it is something else."""
    if path.suffix == ".npz" or (path / "train.npz").is_file():
        return ArraysCheck(path, f"npz:{path}", READERS["npz"](path))
    if any(path.glob("*images*idx*")):
        return ArraysCheck(path, f"idx:{path}", READERS["idx"](path))
    return None


def class_rows(check: ArraysCheck, limit: int = 20) -> Rows:
    """Images per class of each set, below a heading."""
    names = check.class_names
    counts = [labels_among(found, names).bincount(minlength=len(names)).tolist() for found in check.sets]
    rows = [[name, *map("{:,}".format, each)] for name, *each in zip(names or ("no classes",), *counts, strict=True)]
    return [["class", *(["train", "test"] if len(counts) > 1 else ["images"])], *first_rows(rows, limit)]


def contact_sheet(check: ArraysCheck) -> Tensor:
    """The first training images of each class, one class per row: uint8 (P, H, W); missing images are black."""
    pixels, (labels, names) = check.sets[0].pixels, classes_of(check.sets[0])
    if not names:
        return make_grid(pixels[: SHEET_COLUMNS**2], columns=SHEET_COLUMNS)
    rows = torch.zeros(min(len(names), SHEET_CLASSES), SHEET_COLUMNS, *pixels.shape[1:], dtype=torch.uint8)
    for label, row in enumerate(rows):
        chosen = pixels[(labels == label).nonzero().flatten()[:SHEET_COLUMNS]]
        row[: len(chosen)] = chosen
    return make_grid(rows.flatten(0, 1), columns=SHEET_COLUMNS)
