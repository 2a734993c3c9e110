"""Atomic writes: a file or folder is replaced as a whole or not at all."""

import csv
import errno
import io
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError

from biflow.errors import InputError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.part", re.DOTALL)  # see `_temporary_folder`
LEFTOVER_AGE = 86_400  # seconds, after which no process is still writing to a temporary folder
REPLACED = "replaced"  # folder in a temporary folder, with what is replaced, until that has succeeded
FORBIDDEN = {os.strerror(number) for number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)}
NAME_BYTES = 200  # of a temporary name; file systems allow 255 in total
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
DISK_FAULTS = DISK_FULL | {errno.EFBIG, errno.EIO, errno.EROFS, errno.ENAMETOOLONG}


class CannotWrite(InputError):
    """A file or folder cannot be written, for `reason`: a full disk, a limit, a missing permission."""

    reason = ""


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path`, or a symlink's target, if the block succeeds."""
    path = path.resolve()
    _check_replaceable(path, "file")
    with writing(path), _temporary_folder(path) as temporary:
        yield temporary / "new"
        _flush(temporary / "new")
        (temporary / "new").replace(path)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """The same for a folder; an existing folder is replaced at the end, or kept if that fails."""
    path = path.resolve()
    _check_replaceable(path, "folder")
    with writing(path), _temporary_folder(path) as temporary:
        new, old = temporary / "new", temporary / REPLACED / path.name
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            old.parent.mkdir()
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


def delete_folder(path: Path) -> None:
    """Delete a folder under a temporary name, so that a process killed meanwhile leaves no part of it behind."""
    with writing(path), _temporary_folder(path) as temporary:
        path.rename(temporary / "deleted")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write to this path or below it, by the system or libraries of tensors, into `CannotWrite`."""
    try:
        yield
    except (CannotWrite, OSError, RuntimeError, SafetensorError) as error:
        if reason := _why_not_written(error, path):
            repair = "Choose" if reason in FORBIDDEN else "Free some space, or choose"
            fault = f"Expected to write {path}; got: {reason}. {repair} another output path."
            failure = CannotWrite(fault)
            failure.reason = reason
            raise failure from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV atomically."""
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
    if has_files(folder):
        raise InputError(f"Expected a new or empty folder; {folder} has files. Choose another output path.")


def has_files(folder: Path) -> bool:
    """Whether the folder has anything but the lock and the temporary names of a process that was killed."""
    return folder.is_dir() and any(
        each.name != LOCK_FILE and not LEFTOVER.fullmatch(each.name) for each in folder.iterdir()
    )


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete what killed processes left in a folder, of one output or of all, and restore what they replaced."""
    for each in folder.iterdir() if folder.is_dir() else ():
        leftover = LEFTOVER.fullmatch(each.name)
        if leftover and name in {None, leftover["name"]}:
            _delete_abandoned(each)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; raises if another one holds it, and says which.

    The system releases the lock however the process ends. Windows and some file systems have no such locks.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("a+b", buffering=0)
    with lock as file:
        if _lock(file.fileno()) is False:
            file.seek(0)
            holder = file.read(NAME_BYTES).decode(errors="replace").strip() or "another process"
            raise InputError(
                f"Expected a folder that no other process writes to; {folder} is in use by {holder}. "
                "Wait for it or stop it, or choose another folder."
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError):  # a full disk
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()} since {now}\n".encode())
        yield


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


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside the path, of this attempt alone, and locked until it is deleted.

    Its name has no process id: in containers they repeat.
    """
    name = os.fsdecode(os.fsencode(path.name)[:NAME_BYTES])
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, name)
    while True:
        temporary = path.with_name(f".{name}.{secrets.token_hex(4)}.part")
        temporary.mkdir()
        with _locked(temporary) as is_ours:
            if is_ours is False or not temporary.exists():  # just deleted, as if abandoned, by another process
                continue
            try:
                yield temporary
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return


def _delete_abandoned(leftover: Path) -> None:
    """Delete a temporary folder that no process is writing to any more: nothing holds its lock, or it is old."""
    with _locked(leftover) as is_free, suppress(FileNotFoundError):  # another process does the same
        if is_free is False or (is_free is None and leftover.stat().st_mtime > time.time() - LEFTOVER_AGE):
            return
        for replaced in (leftover / REPLACED).glob("*"):  # killed between two renames
            if not leftover.with_name(replaced.name).exists():
                replaced.rename(leftover.with_name(replaced.name))
        _delete(leftover)


@contextmanager
def _locked(folder: Path) -> Iterator[bool | None]:
    """Try to lock a folder for the time of the block; yields what `_lock` returns."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # it is gone; or on Windows, which opens no folders
        yield None
        return
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed: whether no other process holds it; None without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _why_not_written(error: Exception, path: Path) -> str | None:
    """Why writing to this path failed; None for an error of another kind, or with another file."""
    if isinstance(error, CannotWrite):
        return error.reason
    if isinstance(error, OSError):
        named = isinstance(error.filename, str | bytes)
        return error.strerror if error.errno in DISK_FAULTS or (named and _is_part(error.filename, path)) else None
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # of safetensors
        return os.strerror(int(number[1]))
    torch_failed = any(word in str(error) for word in ("inline_container", "PytorchStreamWriter", "iostream error"))
    return os.strerror(errno.ENOSPC) if torch_failed else None


def _is_part(file: str | bytes, path: Path) -> bool:
    """Whether a file is the output path, in it, or its temporary form."""
    names = Path(os.fsdecode(file)).parts[len(path.parent.parts) :]
    return Path(os.fsdecode(file)).is_relative_to(path.parent) and (
        not names or names[0] == path.name or bool(LEFTOVER.fullmatch(names[0]))
    )


def _flush(path: Path) -> None:
    """Sync the file to disk, so that a power failure after the rename cannot leave it empty."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
