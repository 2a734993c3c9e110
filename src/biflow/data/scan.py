"""Find the image files of a folder, and which of them are readable."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image
from rich.console import Console

from biflow.console import counting
from biflow.data.decode import inspect, reason_of
from biflow.data.formats import IMAGE_SUFFIXES
from biflow.data.greys import Grey, doubts
from biflow.errors import InputError
from biflow.files import cache_folder, write_text

CHUNK = 64  # files per task of the thread pool
FILES_WITH_PROGRESS = 2000  # fewer are read too quickly for a progress bar
RECORD_VERSION = 2


class Facts(NamedTuple):
    """Properties of a readable image file; it is not decoded again while size and modification time are the same."""

    length: int  # bytes
    changed: int  # modification time, ns
    width: int
    height: int
    mode: str
    format: str
    white: int  # the value read as white, and the largest one of a file of more than 8 bits
    largest: int


class Scan(NamedTuple):
    """Image files of a folder by relative path."""

    readable: dict[str, Facts]
    rejected: dict[str, str]  # name -> reason

    def doubts(self) -> list[str]:
        """Warnings about how grey values were read."""
        return doubts(Grey(facts.white, facts.largest) for facts in self.readable.values())


def list_images(root: Path) -> list[str]:
    """Relative paths of all image files in a folder and its subfolders, sorted; hidden ones are skipped."""
    try:
        return list(_walk(root, "", ()))
    except OSError as error:
        raise InputError(
            f"Expected a readable folder; cannot read {error.filename} ({error.strerror}). "
            "Change its permissions, or move it away."
        ) from None


def scan(root: Path, names: Sequence[str], *, afresh: bool = False) -> Scan:
    """Decode files in parallel; those readable in an earlier scan and unchanged since are skipped unless `afresh`."""
    recorded, found = _read_record(root), Scan({}, {})
    decode_some = partial(_decode_some, root, {} if afresh else recorded)
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    threads = ThreadPoolExecutor(os.cpu_count())  # Pillow releases the GIL while decoding
    console = Console(stderr=True)
    shown = console.is_terminal and len(names) >= FILES_WITH_PROGRESS
    try:
        with counting(console, "checking images", len(names), shown=shown) as advance:
            for chunk, part in zip(chunks, threads.map(decode_some, chunks), strict=True):
                found.readable.update(part.readable)
                found.rejected.update(part.rejected)
                advance(len(chunk))
    finally:
        threads.shutdown(cancel_futures=True)
    if found.readable != recorded:
        _write_record(root, found.readable)
    return found


def write_rejected(path: Path, rejected: Mapping[str, str]) -> None:
    """Write a text file of tab-separated names and reasons."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{printable(name)}\t{reason}\n" for name, reason in rejected.items()))


def printable(name: str) -> str:
    """Escape unprintable characters of a file name.

    >>> printable("caf\\u00e9") == "caf\\u00e9", printable("a\\n\\udcff")
    (True, 'a\\\\n\\\\udcff')
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def some(texts: Sequence[str], most: int = 5) -> str:
    """The first texts, and the number of others.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def in_words(rejected: Mapping[str, str]) -> str:
    """List files with their faults, the first few by name.

    >>> in_words({"a.txt": "not an image", "b.png": "an empty file"})
    'a.txt (not an image), b.png (an empty file)'
    """
    return some([f"{printable(name)} ({reason})" for name, reason in rejected.items()])


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a parent folder
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if _is_folder(entry):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, here))
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and (entry.is_symlink() or entry.is_file()):
            yield prefix + entry.name  # broken links too: they are rejected as unreadable


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _decode_some(root: Path, known: Mapping[str, Facts], names: Sequence[str]) -> Scan:
    found = Scan({}, {})
    for name in names:
        try:
            status = (root / name).stat()
            facts = known.get(name)
            if facts is None or facts[:2] != (status.st_size, status.st_mtime_ns):
                facts = Facts(status.st_size, status.st_mtime_ns, *inspect(root / name))
            found.readable[name] = facts
        except Exception as error:  # Pillow's decoders raise many types
            found.rejected[name] = reason_of(error)
    return found


def _record_file(root: Path) -> Path:
    return cache_folder() / "scans" / f"{sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"


def _decoder() -> list[object]:
    """What a file's readability depends on besides its content, as JSON returns it."""
    return [RECORD_VERSION, PIL.__version__, Image.MAX_IMAGE_PIXELS]


def _read_record(root: Path) -> dict[str, Facts]:
    """Readable files of the last scan; empty if its record is missing, damaged or from another version."""
    try:
        saved = json.loads(_record_file(root).read_text(encoding="utf-8"))
        if saved["decoder"] != _decoder():
            return {}
        return {name: Facts(*facts) for name, facts in saved["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return {}


def _write_record(root: Path, readable: Mapping[str, Facts]) -> None:
    """Record a scan in the cache folder, never inside the image folder; failures are ignored."""
    with suppress(OSError, InputError, RuntimeError):
        path = _record_file(root)
        if path.resolve().is_relative_to(root.resolve()):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"folder": str(root.resolve()), "decoder": _decoder(), "files": readable}
        write_text(path, json.dumps(record))
