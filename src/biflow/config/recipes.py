"""Recipes: named runs that ship with the package, in `biflow/recipes/*.yaml`, or YAML files of the user's own."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from biflow.config.base import parse_config, to_yaml
from biflow.config.run import RunConfig
from biflow.config.training import Fit
from biflow.errors import InputError, nearest


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("biflow") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe, given its name or the path of a file of the user's own."""
    if name in recipe_names():
        return (resources.files("biflow") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not text in UTF-8"
            raise InputError(f"Expected a readable recipe file; got {name!r} ({why}).") from None
    raise InputError(f"Unknown recipe {name!r}; {nearest(name, recipe_names())}")


def load_recipe(name: str, overrides: Iterable[str] = (), *, small: bool = False) -> RunConfig:
    """A recipe by name or path, at its smoke size if small, with `path=value` overrides applied and checked.

    >>> load_recipe("biflow_digits", ["fit_flow.steps=10"]).fit_flow.steps
    10
    """
    origin, text = f"recipe {name!r}", recipe_text(name)
    if small:
        text = to_yaml(smoke(parse_config(RunConfig, text, origin=origin)))
    return parse_config(RunConfig, text, overrides, origin=origin)


def smoke(config: RunConfig) -> RunConfig:
    """The same recipe, small enough for a test on a CPU."""
    fits = {"fit_flow": smoke_fit(config.fit_flow), "fit_reverse": config.fit_reverse and smoke_fit(config.fit_reverse)}
    return config.model_copy(update=fits)


def smoke_fit(config: Fit) -> Fit:
    """The same training, a few steps of it."""
    small = {"steps": 20, "batch_size": 32, "warmup_steps": 5, "log_every": 5, "save_every": 10}
    return config.model_copy(update=small)
