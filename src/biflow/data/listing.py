"""The image files of a folder, and what is passed over."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from biflow.console import printable, some
from biflow.data.formats import IMAGE_SUFFIXES
from biflow.errors import InputError

LEFTOVERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}  # folders that archives, servers and Windows leave behind
KINDS_NAMED = 5


class Listing(NamedTuple):
    """The visible contents of a folder and its subfolders."""

    images: list[str]  # relative paths, sorted
    passed: Counter[str]  # what is no image -> number of files
    folders: list[str]  # relative paths of subfolders

    def passed_over(self) -> str:
        """What was passed over, in words; empty if nothing was.

        >>> Listing([], Counter({".txt": 2, "hidden": 1, ".heic": 50}), []).passed_over()
        'passed over: 50 .heic, 2 .txt, 1 hidden'
        """
        kinds = [f"{count:,} {printable(kind)}" for kind, count in self.passed.most_common()]
        return f"passed over: {some(kinds, most=KINDS_NAMED)}" if kinds else ""


def list_folder(root: Path) -> Listing:
    """List a folder and its subfolders; hidden files and folders are skipped."""
    listing = Listing([], Counter(), [])
    try:
        for name, entry in _walk(root):
            if _is_folder(entry):
                listing.folders.append(name)
            elif kind := _kind_passed_over(entry):
                listing.passed[kind] += 1
            else:
                listing.images.append(name)
    except OSError as error:
        raise InputError(
            f"Expected a readable folder; cannot read {error.filename} ({error.strerror}). "
            "Change its permissions, or move it away."
        ) from None
    return listing


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Relative paths and entries, each folder before its contents; a link to a folder above is not followed."""
    above: tuple[tuple[int, int], ...] = (_identity(root),)
    pending = [("", entry, above) for entry in _entries(root)]
    while pending:
        prefix, entry, above = pending.pop()
        name = prefix + entry.name
        if not _is_folder(entry):
            yield name, entry
        elif not entry.name.startswith(".") and entry.name not in LEFTOVERS:
            yield name, entry
            if (here := _identity(root / name)) not in above:
                pending += [(f"{name}/", inner, (*above, here)) for inner in _entries(root / name)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The contents of a folder, the last name first."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name, reverse=True)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _kind_passed_over(entry: os.DirEntry[str]) -> str:
    """What a file is that is no image file, in a word; empty for one."""
    suffix = Path(entry.name).suffix.lower()
    if entry.name.startswith("."):
        return "hidden"
    if suffix not in IMAGE_SUFFIXES:
        broken = entry.is_symlink() and not Path(entry.path).exists()
        return "broken links" if broken else suffix or "without an ending"
    regular = entry.is_symlink() or entry.is_file()  # broken links too: they are rejected as unreadable
    return "" if regular else "devices or pipes"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
