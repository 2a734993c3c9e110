"""Looking through a folder of images: which files there are, and which of them can be read."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from biflow.data.decode import IMAGE_SUFFIXES, decode, reason_of
from biflow.errors import InputError
from biflow.files import cache_folder, write_text

CHUNK = 64  # files that a thread takes at a time
FILES_WITH_PROGRESS = 2000  # fewer are read too quickly for a bar
MEMORY_VERSION = 1


class Facts(NamedTuple):
    """What one readable image file is; while length and time of change stay, it is not read again to find out."""

    length: int  # bytes
    changed: int  # ns
    width: int
    height: int
    mode: str
    format: str


class Scan(NamedTuple):
    """The image files of a folder by name: those that can be read, and why the others cannot."""

    readable: dict[str, Facts]
    rejected: dict[str, str]


def check_is_folder(path: Path) -> None:
    """Raise unless the path is that of a folder."""
    if path.is_dir():
        return
    state = "is no folder" if path.exists() else "does not exist"
    raise InputError(f"Expected a folder of images; {path} {state}. Give the path of yours.")


def list_images(root: Path) -> list[str]:
    """Names, from the folder down, of all image files in it and in the folders in it; hidden ones are left out."""
    try:
        return list(_walk(root, "", ()))
    except OSError as error:
        raise InputError(
            f"Expected a folder of images that can be read; cannot read {error.filename} ({error.strerror}). "
            "Change its permissions, or move it away."
        ) from None


def scan(root: Path, names: Sequence[str], *, afresh: bool = False) -> Scan:
    """Decode every file once, several at a time.

    What was readable in an earlier scan, and has not changed since, is not decoded again unless `afresh`.
    """
    known = _recall(root)
    found = _decode_all(root, names, {} if afresh else known)
    if found.readable != known:
        _remember(root, found.readable)
    return found


def write_rejected(path: Path, rejected: Mapping[str, str]) -> None:
    """A text file with a line for each: name, tab, reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{printable(name)}\t{reason}\n" for name, reason in rejected.items()))


def printable(name: str) -> str:
    """A file's name as text of one line, whatever bytes it has.

    >>> printable("caf\\u00e9") == "caf\\u00e9", printable("a\\n\\udcff")
    (True, 'a\\\\n\\\\udcff')
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that holds it
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if _is_folder(entry):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, here))
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and (entry.is_symlink() or entry.is_file()):
            yield prefix + entry.name  # a link that leads nowhere is a file that cannot be read


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _decode_all(root: Path, names: Sequence[str], known: Mapping[str, Facts]) -> Scan:
    found = Scan({}, {})
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    threads = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes without holding the interpreter's lock
    try:
        with _progress(len(names)) as advance:
            for part in threads.map(partial(_decode_some, root, known), chunks):
                found.readable.update(part.readable)
                found.rejected.update(part.rejected)
                advance(len(part.readable) + len(part.rejected))
    finally:
        threads.shutdown(cancel_futures=True)
    return found


def _decode_some(root: Path, known: Mapping[str, Facts], names: Sequence[str]) -> Scan:
    found = Scan({}, {})
    for name in names:
        try:
            status = (root / name).stat()
            facts = known.get(name)
            if facts is None or facts[:2] != (status.st_size, status.st_mtime_ns):
                image, mode, kind = decode(root / name)
                facts = Facts(status.st_size, status.st_mtime_ns, *image.size, mode, kind)
            found.readable[name] = facts
        except Exception as error:  # Pillow's decoders raise a dozen types
            found.rejected[name] = reason_of(error)
    return found


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of files done; a bar shows them in a terminal, if they are many."""
    console = Console(stderr=True)
    shown = console.is_terminal and total >= FILES_WITH_PROGRESS
    with Progress(console=console, transient=True, disable=not shown) as bars:
        task = bars.add_task("checking images", total=total)
        yield lambda done: bars.advance(task, done)


def _memory_file(root: Path) -> Path:
    return cache_folder() / "scans" / f"{sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"


def _decoder() -> list[object]:
    """What a verdict depends on beside the file; as JSON gives it back."""
    return [MEMORY_VERSION, PIL.__version__, Image.MAX_IMAGE_PIXELS]


def _recall(root: Path) -> dict[str, Facts]:
    """What was readable in the last scan; nothing if that was by another version, or its record is damaged."""
    try:
        saved = json.loads(_memory_file(root).read_text(encoding="utf-8"))
        if saved["decoder"] != _decoder():
            return {}
        return {name: Facts(*facts) for name, facts in saved["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return {}


def _remember(root: Path, readable: Mapping[str, Facts]) -> None:
    """Keep what was found for the next scan, outside of the folder; where that is not possible, do without."""
    with suppress(OSError, InputError, RuntimeError):
        path = _memory_file(root)
        if path.resolve().is_relative_to(root.resolve()):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"folder": str(root.resolve()), "decoder": _decoder(), "files": readable}
        write_text(path, json.dumps(record))
