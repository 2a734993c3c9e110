"""Files that are written whole or not at all."""

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
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends well.

    A link stays one: the file that it points to is replaced.
    """
    path = path.resolve()
    _check_replaceable(path, path.is_file(), "file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """The same for a folder of files; a folder that stood there is replaced at the end, or stays if that fails."""
    path = path.resolve()
    _check_replaceable(path, path.is_dir(), "folder")
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
    """Write a whole text file, or nothing."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())


def check_writable(folder: Path) -> None:
    """Raise unless files can be written into this folder, which need not exist yet; leaves nothing behind."""
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
            f"Expected a place to write to; cannot write to {folder} ({error.strerror}). Choose another output path."
        ) from None


def check_new_folder(folder: Path) -> None:
    """Raise unless a folder can be made here without touching files of the user's: it is new or empty."""
    check_writable(folder.parent)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"Expected a new or empty folder; {folder} has files. Choose another output path.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected a folder to write to; {folder} is a file. Choose another output path.")


def check_file_output(path: Path) -> None:
    """Raise unless a file can be written to this path, whose folders need not exist yet."""
    check_writable(path.parent)
    _check_replaceable(path, path.is_file(), "file")


def check_outside(path: Path, folder: Path) -> None:
    """Raise if this output would land in a folder of the user's that is only ever read."""
    if path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"Expected an output outside of {folder}, where nothing is ever written; got {path}. Choose another path."
        )


def cache_folder() -> Path:
    """Where what can be made again is kept between runs: biflow/ in $XDG_CACHE_HOME, or else in ~/.cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "biflow"


def _check_replaceable(path: Path, same_kind: bool, wanted: str) -> None:
    """Raise where the path is taken by something else: a rename would put an ordinary file in a device's place."""
    if path.exists() and not same_kind:
        kind = "a folder" if path.is_dir() else "a file" if path.is_file() else "a device or a pipe"
        raise InputError(f"Expected a {wanted} to write; {path} is {kind}. Choose another name.")


def _flush(path: Path) -> None:
    """Wait until the file is on the disk, so that a power failure after the rename cannot leave it empty."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
