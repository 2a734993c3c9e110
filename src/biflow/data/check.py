"""Statistics and a contact sheet of a folder of images."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.config import load_recipe
from biflow.console import counted, printable
from biflow.data.copies import count_shared, find_copies
from biflow.data.decode import read_image
from biflow.data.images import make_grid
from biflow.data.layout import Layout, lay_out
from biflow.data.scan import Facts, Scan, scan
from biflow.errors import InputError

SHEET_COLUMNS = 8
SHEET_CLASSES = 100  # most image viewers cannot open more
GREY = {"1", "L", "LA", "La", "I", "F"}  # Pillow's modes, beside I;16 and the like
RECIPES = {
    8: ("biflow_digits", 2),
    16: ("small_32", 2),
    28: ("fashion_mnist", 4),
    32: ("small_32", 4),
    64: ("small_64", 8),
}
"""Image size -> a recipe for one machine, of that size or less, and the patch size."""

Rows = list[list[str]]


class FolderCheck(NamedTuple):
    """A folder of images and the result of scanning it."""

    root: Path
    layout: Layout
    found: Scan
    copies: list[list[str]]  # names of equal files


def check_folder(root: Path) -> FolderCheck:
    """Scan all files of a folder anew; raise if it cannot be trained on."""
    layout = lay_out(root)
    found = scan(root, layout.names, afresh=True)
    return FolderCheck(root, layout, found, find_copies(root, found.readable))


def notes_on(check: FolderCheck) -> list[str]:
    """Sentences about how the folder is read, what is passed over, and equal files."""
    layout, notes = check.layout, [f"{note[0].upper()}{note[1:]}" for note in check.layout.notes]
    if not (groups := check.copies):
        return notes
    extra, (first, second, *_) = sum(map(len, groups)) - len(groups), groups[0]
    notes.append(
        f"{counted(extra, 'file')} {'is a copy' if extra == 1 else 'are copies'} of others, byte for byte: "
        f"{printable(second)} of {printable(first)}" + ", ..." * (extra > 1) + "."
    )
    if layout.is_test is None:
        notes[-1] += " reading.test_share keeps copies on one side."
    else:
        test = {name for name, held_out in zip(layout.names, layout.is_test, strict=True) if held_out}
        if shared := count_shared(groups, test):
            notes.append(f"{shared:,} of {counted(len(test), 'test image')} are also training images.")
    class_of = dict(zip(layout.names, layout.classes, strict=True))
    if torn := sum(len({class_of[name] for name in group}) > 1 for group in groups):
        notes.append(f"{counted(torn, 'image')} {'is' if torn == 1 else 'are'} in more than one class.")
    return notes


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
    return [["class", *(columns if tested else ["images", "rejected"])], *first_rows(rows, limit)]


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


def fitting_settings(check: FolderCheck) -> tuple[str, dict[str, object]]:
    """A recipe near the folder's size and colours, and the settings that make it fit."""
    images = check.found.readable.values()
    side = int(median(min(facts.width, facts.height) for facts in images))
    grey = all(facts.mode.partition(";")[0] in GREY for facts in images)
    return fitting_recipe(side, 1 if grey else 3, len(check.layout.class_names))


def fitting_recipe(side: int, channels: int, num_classes: int) -> tuple[str, dict[str, object]]:
    """A recipe for images with this side, and the settings that make it fit."""
    fitting = [size for size in RECIPES if size <= side] or [min(RECIPES)]
    recipe, patch_size = RECIPES[size := max(fitting)]
    wanted = {"image_size": size, "channels": channels, "patch_size": patch_size}
    model = load_recipe(recipe).model
    changed = {f"model.{key}": value for key, value in wanted.items() if getattr(model, key) != value}
    return recipe, {**changed, "model.num_classes": num_classes}


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Select `count` names, evenly spaced."""
    count = min(count, len(names))
    return [names[i * len(names) // count] for i in range(count)]


def _counts(check: FolderCheck, heading: str, name_of: Callable[[Facts], str], limit: int) -> Rows:
    """Images per name, the most frequent first."""
    rows = [[name, f"{count:,}"] for name, count in Counter(map(name_of, check.found.readable.values())).most_common()]
    return [[heading, "images"], *first_rows(rows, limit)]


def first_rows(rows: Rows, limit: int) -> Rows:
    """The first rows, and a line that counts the rest."""
    if len(rows) <= limit:
        return rows
    return [*rows[:limit], [f"... and {len(rows) - limit:,} more", *[""] * (len(rows[0]) - 1)]]
