"""Shorthand for settings: a value, then `key=value` or flags: `2.5,annealed,on=shift`, `jacobi,groups=[16,8]`."""

import re
from dataclasses import asdict, fields
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from biflow.errors import InputError, nearest

T = TypeVar("T")


def split_shorthand(text: str) -> tuple[str, dict[str, Any]]:
    """Split a shorthand into its value and settings.

    >>> split_shorthand("2.5,annealed,on=shift")
    ('2.5', {'annealed': True, 'on': 'shift'})
    """
    head, *rest = re.split(r",(?![^\[]*\])", text)  # not inside brackets
    settings = {}
    for word in rest:
        key, equals, value = word.strip().partition("=")
        try:
            settings[key] = yaml.safe_load(value) if equals else True
        except yaml.YAMLError:
            raise InputError(f"Expected key=value in {text!r}; cannot read {word.strip()!r}.") from None
    return head.strip(), settings


def with_settings(default: T, settings: dict[str, Any]) -> T:
    """Copy a dataclass object with some settings changed, validated against the types of its fields."""
    known = [field.name for field in fields(default)]  # type: ignore[arg-type]
    for key, value in settings.items():
        if key not in known:
            options = nearest(key, known) if known else "it has none."
            raise InputError(f"Unknown setting {key!r}; {options}")
        if isinstance(value, bool) and not isinstance(getattr(default, key), bool):
            raise InputError(f"Expected {key}=value; got {key} alone, which is not a flag.")
    try:
        return TypeAdapter(type(default)).validate_python({**asdict(default), **settings})  # type: ignore[call-overload]
    except ValidationError as error:
        fault = error.errors()[0]
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "value_error":
            raise InputError(message) from None
        raise InputError(f"{fault['loc'][0]}: {message[:1].lower()}{message[1:]}; got {fault['input']!r}.") from None
