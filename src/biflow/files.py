"""Atomic writes: a file or folder is replaced as a whole or not at all."""

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from biflow.errors import InputError


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path`, or a symlink's target, if the block succeeds."""
    path = path.resolve()
    _check_replaceable(path, "file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """The same for a folder; an existing folder is replaced at the end, or kept if that fails."""
    path = path.resolve()
    _check_replaceable(path, "folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())


def check_writable(folder: Path) -> None:
    """Raise unless this folder, which need not exist yet, is writable; leaves nothing behind."""
    existing = folder
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            raise InputError(f"Expected a folder to write to; {existing} is a file. Choose another output path.")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"Expected a writable folder; cannot write to {folder} ({error.strerror}). Choose another output path."
        ) from None


def check_new_folder(folder: Path) -> None:
    """Raise unless the folder is new or empty, so that no user file is overwritten."""
    check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"Expected a new or empty folder; {folder} has files. Choose another output path.")


def check_file_output(path: Path) -> None:
    """Raise unless this path, whose folders need not exist yet, is writable."""
    check_writable(path.parent)
    _check_replaceable(path, "file")


def check_outside(path: Path, folder: Path) -> None:
    """Raise if this output would land in a folder that is only read from."""
    if path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"Expected an output outside of {folder}, which is only read; got {path}. Choose another.")


def cache_folder() -> Path:
    """The cache folder: biflow/ in $XDG_CACHE_HOME, else in ~/.cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "biflow"


def _check_replaceable(path: Path, expected: str) -> None:
    """Raise if something of another kind is at this path: a rename would replace a device with a regular file."""
    kind = "folder" if path.is_dir() else "file" if path.is_file() else "device or a pipe"
    if path.exists() and kind != expected:
        raise InputError(f"Expected a {expected} to write; {path} is a {kind}. Choose another name.")


def _flush(path: Path) -> None:
    """Sync the file to disk, so that a power failure after the rename cannot leave it empty."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
