"""Files that others wrote, at the door: regular files, bounded JSON."""

import errno
import json
from io import BufferedReader
from pathlib import Path
from reprlib import Repr
from typing import Any

from biflow.console import printable
from biflow.errors import InputError

MOST_BYTES = 16 * 2**20  # of a text: class names and a training's record take a few MB at most
MOST_DEPTH = 32
LONGEST = 100  # characters of a name in an error
SHORT = Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = LONGEST


def check_regular(path: Path, repair: str) -> None:
    """Raise unless there is a regular file: a pipe would block, and a device never end."""
    if kind := _irregular(path):
        raise InputError(f"Expected a file; {path} is {kind}. {repair}")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read; anything else is an `OSError` that says what it is."""
    if kind := _irregular(path):
        raise OSError(errno.EINVAL, f"it is {kind}", str(path))
    return path.open("rb")


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The text of a regular file, in UTF-8, of at most so many bytes; raises `OSError` or `UnicodeDecodeError`."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most / 2**20:g} MiB", str(path))
    return content.decode("utf-8")


def _irregular(path: Path) -> str:
    """What there is in a regular file's place; empty for a file, or for nothing."""
    try:
        return "a folder" if path.is_dir() else "a device or a pipe" if path.exists() and not path.is_file() else ""
    except (OSError, ValueError):  # a name that no file can have
        return "no name of a file"


def read_json(path: Path, repair: str) -> Any:
    """The contents of a JSON file; every fault is one `InputError` that ends with the repair."""
    try:
        found = json.loads(read_text(path), object_pairs_hook=_once)
        if _is_deeper(found, MOST_DEPTH):
            raise ValueError("nested too deep")
    except OSError as error:
        raise InputError(f"Expected JSON in {path}; cannot read it ({error.strerror}). {repair}") from None
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or not what anyone would write
        raise InputError(f"Expected JSON in {path}; the file is damaged. {repair}") from None
    return found


def brief(text: str) -> str:
    """Text for an error: without control characters, cut after 100."""
    return printable(text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")


def brief_repr(value: object) -> str:
    """A value as Python writes it, cut after 100 characters; of a large one, only its beginning is looked at."""
    return brief(SHORT.repr(value))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a repeated key")
    return found


def _is_deeper(value: Any, most: int) -> bool:
    """Whether lists and mappings are nested deeper than this."""
    level = [value]
    for _ in range(most):
        level = [
            each
            for outer in level
            if isinstance(outer, dict | list)
            for each in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
