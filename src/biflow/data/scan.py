"""Which image files of a folder are readable."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeVar

import PIL
from PIL import Image
from rich.console import Console

from biflow.console import counting, printable, some
from biflow.data.decode import inspect, reason_of
from biflow.data.greys import Grey, doubts
from biflow.errors import InputError
from biflow.files import cache_folder, write_text

CHUNK = 64  # files per task of the thread pool
FILES_WITH_PROGRESS = 2000  # fewer are read too quickly for a progress bar
RECORD_VERSION = 3

R = TypeVar("R")


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
    digest: str = ""  # of the content, where it was compared with others


class Scan(NamedTuple):
    """Image files of a folder by relative path."""

    readable: dict[str, Facts]
    rejected: dict[str, str]  # name -> reason

    def doubts(self) -> list[str]:
        """Warnings about how grey values were read."""
        return doubts(Grey(facts.white, facts.largest) for facts in self.readable.values())


def scan(root: Path, names: Sequence[str], *, afresh: bool = False) -> Scan:
    """Decode files in parallel; those readable in an earlier scan and unchanged since are skipped unless `afresh`."""
    recorded, found = read_scan(root), Scan({}, {})
    decode_some = partial(_decode_some, root, {} if afresh else recorded)
    for part in in_chunks(names, decode_some, "checking images"):
        found.readable.update(part.readable)
        found.rejected.update(part.rejected)
    if found.readable != recorded:
        write_scan(root, found.readable)
    return found


def in_chunks(names: Sequence[str], work: Callable[[Sequence[str]], R], title: str) -> Iterator[R]:
    """Results of work on a few names each, by several threads, in order; with a progress bar if there are many."""
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    threads = ThreadPoolExecutor(os.cpu_count())  # Pillow and digests release the GIL
    console = Console(stderr=True, emoji=False)
    shown = console.is_terminal and len(names) >= FILES_WITH_PROGRESS
    try:
        with counting(console, title, len(names), shown=shown) as advance:
            for chunk, part in zip(chunks, threads.map(work, chunks), strict=True):
                yield part
                advance(len(chunk))
    finally:
        threads.shutdown(cancel_futures=True)


def write_rejected(path: Path, rejected: Mapping[str, str]) -> None:
    """Write a text file of tab-separated names and reasons."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{printable(name)}\t{reason}\n" for name, reason in rejected.items()))


def in_words(rejected: Mapping[str, str]) -> str:
    """List files with their faults, the first few by name.

    >>> in_words({"a.txt": "not an image", "b.png": "an empty file"})
    'a.txt (not an image), b.png (an empty file)'
    """
    return some([f"{printable(name)} ({reason})" for name, reason in rejected.items()])


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


def read_scan(root: Path) -> dict[str, Facts]:
    """Readable files of the last scan; empty if its record is missing, damaged or from another version."""
    try:
        saved = json.loads(_record_file(root).read_text(encoding="utf-8"))
        if saved["decoder"] != _decoder():
            return {}
        return {name: Facts(*facts) for name, facts in saved["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return {}


def write_scan(root: Path, readable: Mapping[str, Facts]) -> None:
    """Record a scan in the cache folder, never inside the image folder; failures are ignored."""
    with suppress(OSError, InputError, RuntimeError):
        path = _record_file(root)
        if path.resolve().is_relative_to(root.resolve()):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"folder": str(root.resolve()), "decoder": _decoder(), "files": readable}
        write_text(path, json.dumps(record))
