"""What ends a command without being a bug: bad input, and a person who stops it."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

K = TypeVar("K", bound=str)
V = TypeVar("V")


class InputError(ValueError):
    """Bad input from the user: one sentence that says what was expected and how to repair it."""

    alone: bool | None = None  # of several processes: True if only this one may have met it, False if the main one did


class Interrupted(Exception):
    """Training was asked to stop, and has saved its state; `terminated` by SIGTERM, or by a person."""

    terminated = False


class Diverged(Exception):
    """Training met numbers that are not finite, step after step; the text says where they grew."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the closest known names, or all of them.

    >>> nearest("biflow_digit", ["biflow_digits", "tarflow_digits"])
    'did you mean biflow_digits or tarflow_digits?'
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose one of {', '.join(known)}."


def choose(options: Mapping[K, V], name: K, what: str) -> V:
    """The option of this name, or an error that names the nearest.

    >>> choose({"mean": 1, "importance": 2}, "mean", "average")
    1
    """
    if name not in options:
        raise InputError(f"Unknown {what} {name!r}; {nearest(name, options)}")
    return options[name]
