"""Statistics and a contact sheet of a folder of images."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.data.decode import read_image
from biflow.data.folder import Layout, lay_out
from biflow.data.images import make_grid
from biflow.data.scan import Facts, Scan, printable, scan
from biflow.errors import InputError

SHEET_COLUMNS = 8
SHEET_CLASSES = 100  # most image viewers cannot open more

Rows = list[list[str]]


class FolderCheck(NamedTuple):
    """A folder of images and the result of scanning it."""

    root: Path
    layout: Layout
    found: Scan


def check_folder(root: Path) -> FolderCheck:
    """Scan all files of a folder anew; raise if it cannot be trained on."""
    layout = lay_out(root)
    return FolderCheck(root, layout, scan(root, layout.names, afresh=True))


def class_rows(check: FolderCheck, limit: int = 20) -> Rows:
    """Images per class, below a heading; if there is a test set, for training and testing."""
    tested = check.layout.is_test
    is_test = tested or [False] * len(check.layout.names)
    counts: Counter[tuple[str, str]] = Counter()
    for name, kind, test in zip(check.layout.names, check.layout.classes, is_test, strict=True):
        counts[kind, "rejected" if name in check.found.rejected else "test" if test else "train"] += 1
    columns = ["train", "test", "rejected"] if tested else ["train", "rejected"]
    kinds = check.layout.class_names or ("",)
    rows = [[printable(kind) or "no classes", *(f"{counts[kind, column]:,}" for column in columns)] for kind in kinds]
    return [["class", *(columns if tested else ["images", "rejected"])], *_first(rows, limit)]


def size_rows(check: FolderCheck) -> Rows:
    """Minimum, median and maximum width, height and shorter side of the readable images."""
    sizes = [(facts.width, facts.height) for facts in check.found.readable.values()]
    sides = {"width": [w for w, _ in sizes], "height": [h for _, h in sizes], "shorter side": [min(s) for s in sizes]}
    rows = [[name, str(min(side)), f"{median(side):g}", str(max(side))] for name, side in sides.items() if side]
    return [["pixels", "min", "median", "max"], *rows]


def common_size_rows(check: FolderCheck, limit: int = 5) -> Rows:
    """The most common sizes."""
    return _counts(check, "size", lambda facts: f"{facts.width}x{facts.height}", limit)


def kind_rows(check: FolderCheck, limit: int = 20) -> Rows:
    """Images per file format and mode, by Pillow's names."""
    return _counts(check, "format and mode", lambda facts: f"{facts.format} {facts.mode}", limit)


def contact_sheet(check: FolderCheck, size: int) -> Tensor:
    """A few images per class, one class per row, or many of a folder without classes: uint8 (3, H, W).

    Only the first hundred classes are shown; missing images are black.
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
    """Select `count` names, evenly spaced."""
    count = min(count, len(names))
    return [names[i * len(names) // count] for i in range(count)]


def _counts(check: FolderCheck, heading: str, name_of: Callable[[Facts], str], limit: int) -> Rows:
    """Images per name, the most frequent first."""
    rows = [[name, f"{count:,}"] for name, count in Counter(map(name_of, check.found.readable.values())).most_common()]
    return [[heading, "images"], *_first(rows, limit)]


def _first(rows: Rows, limit: int) -> Rows:
    """The first rows, and a line that counts the rest."""
    if len(rows) <= limit:
        return rows
    return [*rows[:limit], [f"... and {len(rows) - limit:,} more", *[""] * (len(rows[0]) - 1)]]
