"""The classes and splits of an image folder, read off the names of its subfolders."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple

from biflow.console import printable, some
from biflow.data.formats import IMAGE_SUFFIXES
from biflow.data.listing import Listing, list_folder
from biflow.errors import InputError

SPLITS = {"train": ("train", "training"), "valid": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}  # in any case


class Layout(NamedTuple):
    """Image files of a folder with their classes and splits."""

    names: list[str]
    classes: list[str]  # "" without classes
    class_names: tuple[str, ...]
    is_test: list[bool] | None  # per image, if the folder has its own test split
    notes: tuple[str, ...] = ()  # how it was read, where that is not obvious; in sentences


def lay_out(root: Path) -> Layout:
    """Find the classes and splits of an image folder from its subfolder names."""
    _check_folder(root)
    listing = list_folder(root)
    if not listing.images:
        found = f"{listing.passed_over()}. Convert them" if listing.passed else "found none. Check the path"
        raise InputError(f"Expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {root}; {found}.")
    inside = wrapper(listing.images)
    below = [name.removeprefix(inside) for name in listing.images]
    splits = find_splits(root / inside, below)
    parts = {part: [name.removeprefix(part) for name in below if name.startswith(part)] for part in splits.values()}
    classes = {part: _classes(root / inside / part, names) for part, names in parts.items()}
    train = splits["train"]
    _check_same_classes(root / inside, classes, train)
    class_names = tuple(sorted({*classes[train]} - {""}, key=_in_natural_order))
    return Layout(
        [inside + part + name for part, names in parts.items() for name in names],
        [kind for kinds in classes.values() for kind in kinds],
        class_names,
        [part != train for part, names in parts.items() for _ in names] if len(parts) > 1 else None,
        (*_notes(root, inside, splits, listing), *_notes_on(class_names)),
    )


def _check_folder(root: Path) -> None:
    try:
        fault = "" if S_ISDIR(root.stat().st_mode) else "is not a folder"
    except FileNotFoundError:
        fault = "does not exist"
    except (OSError, ValueError) as error:  # a name that is too long, or none
        fault = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if fault:
        raise InputError(f"Expected a folder of images; {root} {fault}. Check the path.")


def wrapper(names: Sequence[str]) -> str:
    """The lone folder around class folders, splits or images of a lone split, with a slash; empty if there is none.

    >>> wrapper(["set-main/cat/1.png", "set-main/dog/1.png"]), wrapper(["cat/1.png", "cat/2.png"])
    ('set-main/', '')
    >>> wrapper(["train/1.png", "train/2.png"])
    'train/'
    """
    folders = {name.rpartition("/")[0] for name in names}
    common = os.path.commonpath(folders) if "" not in folders else ""
    is_class = common in folders and common.rpartition("/")[2].lower() not in SPLIT_OF
    around = common.rpartition("/")[0] if is_class else common
    return f"{around}/" if around else ""


def find_splits(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The splits to use, train first, each with its subfolder and a slash; {"train": ""} without such subfolders.

    A lone folder of the same name in both splits is entered.
    """
    tops = sorted({name.partition("/")[0] if "/" in name else "" for name in names})
    found: dict[str, list[str]] = defaultdict(list)
    for top in tops:
        if top.lower() in SPLIT_OF:
            found[SPLIT_OF[top.lower()]].append(top)
    _check_no_splits_inside(folder, names)
    splits = [top for same in found.values() for top in same]
    others = [top or "loose images" for top in tops if top not in splits]
    if not found or (others and len(splits) == 1 and not _has_folders(splits[0], names)):
        _check_unlike_splits(folder, tops)
        return {"train": ""}  # also the class "train" beside "bus"
    if others or "train" not in found or max(map(len, found.values())) > 1:
        raise InputError(
            f"Expected in {folder} either class folders, or train/ with val/ or test/ and nothing else; got "
            f"{_some([*splits, *others])}. Move the others out, or make a folder with links to those that you want."
        )
    chosen = [f"{found[split][0]}/" for split in ("train", "test" if "test" in found else "valid")]
    around = {wrapper([name.removeprefix(top) for name in names if name.startswith(top)]) for top in chosen}
    inside = around.pop() if len(around) == 1 else ""
    return dict(zip(("train", "test"), (top + inside for top in chosen), strict=True))


def _check_no_splits_inside(folder: Path, names: Iterable[str]) -> None:
    """Raise if a folder that is no split holds splits, such as cat/train and cat/val."""
    inner: dict[str, set[str]] = defaultdict(set)
    for name in names:
        top, *rest = name.split("/")
        if len(rest) > 1 and (kind := SPLIT_OF.get(rest[0].lower())):
            inner[top].add(kind)
    if torn := [top for top, kinds in inner.items() if "train" in kinds and len(kinds) > 1]:
        raise InputError(
            f"Expected in {folder} class folders, or train/ with val/ or test/; got splits within {_some(torn)}. "
            "Give one of these folders, or sort the images into train/ and val/ first."
        )


def _check_unlike_splits(folder: Path, tops: Iterable[str]) -> None:
    """Raise if folders are called like splits, such as train2017 and val2017, but not as they must be."""
    words = {top: re.findall("[a-z]+", top.lower()) for top in tops}
    alike = {top: {SPLIT_OF[word] for word in words[top] if word in SPLIT_OF} for top in tops}
    if "train" in (kinds := set().union(*alike.values())) and len(kinds) > 1:
        raise InputError(
            f"Expected in {folder} class folders, or train/ with val/ or test/; got "
            f"{_some([top for top in tops if alike[top]])}, which may be either. Rename them train, val and test if "
            "they are splits, else give the classes other names."
        )


def _has_folders(top: str, names: Iterable[str]) -> bool:
    return any("/" in name.removeprefix(f"{top}/") for name in names if name.startswith(f"{top}/"))


def _classes(folder: Path, names: Sequence[str]) -> list[str]:
    """The class of each name: its first folder, or ""."""
    loose = [name for name in names if "/" not in name]
    if loose and len(loose) < len(names):
        folders = sorted({name.partition("/")[0] for name in names if "/" in name})
        raise InputError(
            f"Expected loose images or folders of images in {folder}, not both; got {_some(loose)} next to "
            f"{_some(folders)}. Move the loose images into a folder, or use one of the folders alone."
        )
    return [unicodedata.normalize("NFC", name.partition("/")[0]) if "/" in name else "" for name in names]


def _check_same_classes(folder: Path, classes: dict[str, list[str]], train: str) -> None:
    """Raise unless every class of a test split is one of the training split."""
    if unknown := {kind for kinds in classes.values() for kind in kinds} - {*classes[train]}:
        what = f"the classes {_some(sorted(unknown))}" if "" not in unknown else "images without a class"
        raise InputError(
            f"Expected the same class folders in all splits of {folder}; got {what} missing from {train}. "
            "Add them, or move them out of the other split."
        )


def _notes(root: Path, inside: str, splits: dict[str, str], listing: Listing) -> Iterable[str]:
    """What is not obvious about where images are read from, and what is not read."""
    if inside:
        yield f"all images of {root} are in {printable(inside)}, which is read in its place."
    tops = {name.removeprefix(inside).partition("/")[0] for name in listing.images}
    if train := printable(splits["train"]):
        left = [f"; {top}/ is left out" for top in tops - {part.partition("/")[0] for part in splits.values()}]
        if left or train.count("/") > 1:
            yield f"{train} and {printable(splits['test'])} of {root / inside} are used{''.join(left)}."
    elif odd := [top for top in tops if top.lower() in SPLIT_OF]:
        yield f"{odd[0]}/ in {root / inside} is read as a class, as the folders beside it are."
    if listing.passed:
        yield f"in {root}, {listing.passed_over()}."
    if empty := _without_images(listing):
        yield f"no images in {_some(empty)} of {root}."


def _without_images(listing: Listing) -> list[str]:
    """Subfolders without images, the topmost."""
    full = {""}
    for name in listing.images:
        while (name := name.rpartition("/")[0]) not in full:
            full.add(name)
    return [f"{name}/" for name in listing.folders if name not in full and name.rpartition("/")[0] in full]


def _notes_on(class_names: Sequence[str]) -> Iterable[str]:
    """A sentence on class names that differ in case or spaces alone."""
    groups = defaultdict(list)
    for name in class_names:
        groups["".join(name.casefold().split())].append(repr(printable(name)))
    if alike := [name for group in groups.values() if len(group) > 1 for name in group]:
        yield f"{some(alike)} are different classes, by the names of their folders."


def _in_natural_order(name: str) -> tuple[list[str | int], str]:
    """A sort key by which numbers in names sort by value."""
    parts = re.split(r"([0-9]+)", name)  # alternating text and digits
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _some(names: Sequence[str]) -> str:
    return some(list(map(printable, names)), most=3)
