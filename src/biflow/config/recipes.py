"""Recipes: named YAML files with what differs from the defaults, or from the recipe that they `extends: NAME`."""

from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

from biflow.config.base import parse_config, parse_values
from biflow.config.run import RunConfig
from biflow.config.training import FinishFitConfig, Fit
from biflow.errors import InputError, nearest
from biflow.inputs import read_text

EXTENDS = "extends"
MOST_BYTES = 256 * 1024  # of a recipe; YAML is read slowly


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("biflow") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe, given its name or the path of a file."""
    if name in recipe_names():
        return (resources.files("biflow") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return read_text(path, most=MOST_BYTES)
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not text in UTF-8"
            raise InputError(f"Expected a readable recipe file; got {name!r} ({why}).") from None
    raise InputError(f"Unknown recipe {name!r}; {nearest(name, recipe_names())}")


def recipe_head(name: str) -> str:
    """The comment that a recipe begins with: its source, command and result."""
    return "\n".join(takewhile(lambda line: line.startswith("#"), recipe_text(name).splitlines()))


def load_recipe(name: str, overrides: Iterable[str] = (), *, small: bool = False) -> RunConfig:
    """A recipe by name or path, at its smoke size if small, with `path=value` overrides applied and checked.

    >>> load_recipe("biflow_digits", ["fit_flow.steps=10"]).fit_flow.steps
    10
    """
    origin, values = f"recipe {name!r}", recipe_values(name)
    if small:
        values = smoke(parse_config(RunConfig, values, origin=origin)).model_dump(mode="json")
    return parse_config(RunConfig, values, overrides, origin=origin)


def recipe_values(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a recipe says, with what the recipes that it extends say."""
    if name in above:
        circle = " -> ".join([*above, name])
        raise InputError(f"Expected recipes not to extend each other in a circle; got {circle}. Remove one extends.")
    try:
        values = parse_values(recipe_text(name), f"recipe {name!r}")
    except InputError as error:
        raise InputError(f"recipe {above[-1]!r} extends {name!r}: {error}" if above else str(error)) from None
    for key in values.keys() - RunConfig.model_fields.keys() - {EXTENDS}:
        raise InputError(
            f"recipe {name!r}: unknown key {key!r}; {nearest(str(key), [EXTENDS, *RunConfig.model_fields])}"
        )
    if EXTENDS not in values:
        return values
    if not isinstance(base := values.pop(EXTENDS), str):
        raise InputError(f"Expected the name of a recipe after {EXTENDS} in recipe {name!r}; got {base!r}. Give one.")
    beside = Path(name).parent / base  # of a file of yours
    return merge(recipe_values(str(beside) if beside.is_file() else base, (*above, name)), values)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with others on top; lists are replaced whole.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def smoke(config: RunConfig) -> RunConfig:
    """The same recipe, small enough for a test on a CPU."""
    fits = {name: getattr(config, name) for name in ("fit_flow", "fit_reverse", "fit_finish")}
    fits = {name: fit and smoke_fit(fit) for name, fit in fits.items()}
    return config.model_copy(update=fits)


def smoke_fit(config: Fit) -> Fit:
    """The same training, a few steps of it."""
    small = {"steps": 20, "batch_size": 32, "warmup_steps": 5, "log_every": 5, "save_every": 10}
    if isinstance(config, FinishFitConfig):
        small["population"] = 100
    return config.model_copy(update=small)
