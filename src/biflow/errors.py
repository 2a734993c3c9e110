"""What ends a command without being a bug: bad input, and a person who stops it."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

FEW = 4  # names: a hint lists all of them

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
    """A hint for a misspelt name: the closest known names; and all of them, if they are few or none is close.

    >>> nearest("biflow_digit", ["biflow_digits", "tarflow_digits", "a", "b", "c"])
    'did you mean biflow_digits or tarflow_digits?'
    >>> nearest("jacoby", ["reverse", "jacobi"])
    'did you mean jacobi? Choose one of reverse, jacobi.'
    """
    known = list(known)
    close, every = get_close_matches(name, known, n=3, cutoff=0.5), f"choose one of {', '.join(known)}."
    if not close:
        return every
    return f"did you mean {' or '.join(close)}?" + f" {every[0].upper()}{every[1:]}" * (len(known) <= FEW)


def choose(options: Mapping[K, V], name: K, what: str) -> V:
    """The option of this name, or an error that names the nearest.

    >>> choose({"mean": 1, "importance": 2}, "mean", "average")
    1
    """
    if name not in options:
        raise InputError(f"Unknown {what} {name!r}; {nearest(name, options)}")
    return options[name]
