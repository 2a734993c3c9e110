"""What there is in a folder of images: numbers for a table, and a sheet of examples."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.data.decode import read_image
from biflow.data.folder import Layout, lay_out
from biflow.data.images import make_grid
from biflow.data.scan import Scan, printable, scan
from biflow.errors import InputError

SHEET_COLUMNS = 8
SHEET_CLASSES = 100  # more would make a picture that few programs open

Rows = list[list[str]]


class FolderCheck(NamedTuple):
    """A folder of images, with what reading all of it told."""

    root: Path
    layout: Layout
    found: Scan


def check_folder(root: Path) -> FolderCheck:
    """Read every file of a folder once, whatever was read before.  Raises if it is no folder that can be trained on."""
    layout = lay_out(root)
    return FolderCheck(root, layout, scan(root, layout.names, afresh=True))


def class_rows(check: FolderCheck, limit: int = 20) -> Rows:
    """How many images each class has, below a heading; where there is a test set, for training and for testing."""
    tested = check.layout.is_test
    places = tested or [False] * len(check.layout.names)
    counts: Counter[tuple[str, str]] = Counter()
    for name, kind, test in zip(check.layout.names, check.layout.classes, places, strict=True):
        counts[kind, "rejected" if name in check.found.rejected else "test" if test else "train"] += 1
    columns = ["train", "test", "rejected"] if tested else ["train", "rejected"]
    kinds = check.layout.class_names or ("",)
    rows = [[printable(kind) or "no classes", *(f"{counts[kind, column]:,}" for column in columns)] for kind in kinds]
    return [["class", *(columns if tested else ["images", "rejected"])], *_first(rows, limit)]


def size_rows(check: FolderCheck) -> Rows:
    """The smallest, the median and the largest width, height and shorter side of the images that can be read."""
    sizes = [(facts.width, facts.height) for facts in check.found.readable.values()]
    sides = {"width": [w for w, _ in sizes], "height": [h for _, h in sizes], "shorter side": [min(s) for s in sizes]}
    rows = [[what, str(min(side)), f"{median(side):g}", str(max(side))] for what, side in sides.items() if side]
    return [["pixels", "least", "median", "most"], *rows]


def common_size_rows(check: FolderCheck, limit: int = 5) -> Rows:
    """The sizes that most images have."""
    sizes = Counter(f"{facts.width}x{facts.height}" for facts in check.found.readable.values())
    return [["size", "images"], *_first(_counted(sizes), limit)]


def kind_rows(check: FolderCheck, limit: int = 20) -> Rows:
    """How many images there are of each file format and mode, by Pillow's names."""
    kinds = Counter(f"{facts.format} {facts.mode}" for facts in check.found.readable.values())
    return [["format and mode", "images"], *_first(_counted(kinds), limit)]


def contact_sheet(check: FolderCheck, size: int) -> Tensor:
    """A few images of each class, one class a row, or many of a folder without classes: uint8 (3, H, W).

    Only the first hundred classes have a row.  Where a class has fewer images than there are columns, it is black.
    """
    if not check.found.readable:
        raise InputError(f"Expected images for a contact sheet in {check.root}; none can be read. Leave out --out.")
    by_class: dict[str, list[str]] = {kind: [] for kind in check.layout.class_names or ("",)}
    for name, kind in zip(check.layout.names, check.layout.classes, strict=True):
        if name in check.found.readable:
            by_class[kind].append(name)
    each = SHEET_COLUMNS * (1 if check.layout.class_names else SHEET_COLUMNS)
    chosen = [_spread(names, each) for names in list(by_class.values())[:SHEET_CLASSES]]
    pixels = torch.zeros(len(chosen), each, 3, size, size, dtype=torch.uint8)
    for row, names in enumerate(chosen):
        for column, name in enumerate(names):
            pixels[row, column] = read_image(check.root / name, size, 3)
    return make_grid(pixels.flatten(0, 1), columns=SHEET_COLUMNS)


def _spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, evenly spread over them."""
    count = min(count, len(names))
    return [names[place * len(names) // count] for place in range(count)]


def _counted(counter: Counter[str]) -> Rows:
    return [[what, f"{count:,}"] for what, count in counter.most_common()]


def _first(rows: Rows, limit: int) -> Rows:
    """The first rows, and a line that says how many more there are."""
    if len(rows) <= limit:
        return rows
    return [*rows[:limit], [f"... and {len(rows) - limit:,} more", *[""] * (len(rows[0]) - 1)]]
