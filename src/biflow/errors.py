"""What ends a command without being a bug: bad input, and a person who stops it."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from math import inf
from numbers import Integral, Real
from typing import Any, TypeVar

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


def check_choice(name: str, options: Iterable[str], what: str) -> None:
    """Raise unless the name is one of the options.

    >>> check_choice("grey", ["draw", "grey"], "start")
    """
    if name not in (known := list(options)):
        raise InputError(f"Unknown {what} {name!r}; {nearest(str(name), known)}")


def choose(options: Mapping[K, V], name: K, what: str) -> V:
    """The option of this name, or an error that names the nearest.

    >>> choose({"mean": 1, "importance": 2}, "mean", "average")
    1
    """
    check_choice(name, options, what)
    return options[name]


def check_number(
    value: Any,
    name: str,
    *,
    least: float = 0,
    most: float | None = None,
    above: bool = False,
    whole: bool = False,
    hint: str = "",
) -> None:
    """Raise unless the value is a finite number from least (or above it) to most.

    >>> check_number(0.5, "strength", most=1)
    >>> check_number(-1, "seed", whole=True)
    Traceback (most recent call last):
    biflow.errors.InputError: Expected seed to be a whole number, 0 or more; got -1.
    """
    if isinstance(value, Integral if whole else Real) and not isinstance(value, bool):
        found: Any = value  # comparable, which the type of numbers does not say
        if found < inf and (least < found <= (inf if most is None else most) or (found == least and not above)):
            return
    if above:
        span = f" above {least:g}" if most is None else f" above {least:g}, up to {most:g}"
    else:
        span = f", {least:g} or more" if most is None else f" from {least:g} to {most:g}"
    what = "a whole number" if whole else "a number"
    raise InputError(f"Expected {name} to be {what}{span}; got {value!r}." + f" {hint}" * bool(hint))
