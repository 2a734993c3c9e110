"""Settings explained from the docstrings of their fields: a whole config with comments, one key, the reference page."""

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter

from biflow.config.base import Config, nested_configs
from biflow.config.run import RunConfig
from biflow.config.training import DistanceConfig
from biflow.errors import choose

PAGE_HEAD = """# Settings

Every key of a run, with its default and its meaning. Set one with `--set key=value` (`--set fit_flow.steps=1000`): text
stands as it is, `null` for none; numbers, flags and lists are YAML. Or set it in a recipe of your own, which holds what
differs from the defaults or from the recipe that it extends:

```yaml
extends: biflow_digits
data: folder:photos
model: {num_classes: 3}
```

`biflow recipes NAME` prints a recipe whole, `biflow recipes NAME --explain fit_flow.steps` explains a key.
This page is written by `python -m biflow.config.explain > docs/settings.md`.
"""


REQUIRED, BELOW = "required", "as below"


class Setting(NamedTuple):
    """A key of a config."""

    key: str
    default: str  # as YAML, or one of the words above
    meaning: str
    choices: str  # what it accepts


def settings_of(kind: type[Config], prefix: str = "") -> Iterator[Setting]:
    """All keys of a kind of config, nested ones with their path."""
    for name, field in kind.model_fields.items():
        nested = next(nested_configs(kind, name), None)
        key, meaning = f"{prefix}{name}", " ".join((field.description or "").split())
        if meaning or nested is None:
            own = REQUIRED if field.is_required() else BELOW if isinstance(field.default, Config) else None
            yield Setting(key, own or as_yaml(field.default), meaning, accepts(kind, name))
        if nested:
            yield from settings_of(nested, f"{key}.")


def accepts(kind: type[Config], name: str) -> str:
    """What a key accepts, from its type.

    >>> accepts(RunConfig, "stage")
    'both, joint, flow, reverse'
    """
    schema = kind.model_json_schema()["properties"][name]
    options = [option for part in schema.get("anyOf", [schema]) for option in part.get("enum", [])]
    return ", ".join(map(str, options))


def explain(key: str, config: RunConfig | None = None) -> str:
    """A key's meaning, default and choices, and its value in a config."""
    known = {setting.key: setting for setting in settings_of(RunConfig)}
    inside = ", ".join(name.removeprefix(f"{key}.") for name in known if name.startswith(f"{key}."))
    if key not in known and inside:
        return f"{key} holds {inside}."
    setting = choose(known, key, "key")
    lines = [f"{key}: {setting.meaning}", f"default: {setting.default}"]
    lines += [f"one of: {setting.choices}"] * bool(setting.choices) + [f"holds: {inside}"] * bool(inside)
    if config is not None:
        lines.append(f"here: {as_yaml(value_at(config, key))}")
    return "\n".join(lines)


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key; none below what is not set, and below a list a value for each item."""
    value: Any = config
    for part in key.split("."):
        value = [getattr(each, part) for each in value] if isinstance(value, tuple) else getattr(value, part, None)
    return value


def annotated(config: Config, indent: str = "") -> str:
    """A config as YAML, the meaning of each key beside it."""
    lines = []
    for name, field in type(config).model_fields.items():
        value, meaning = getattr(config, name), first_sentence(field.description or "")
        if isinstance(value, Config):
            lines += [f"{indent}{name}:  # {first_sentence(value.__doc__ or '')}", annotated(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name}: {as_yaml(value)}" + f"  # {meaning}" * bool(meaning))
    return "\n".join(lines)


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends one."""
    return re.split(r"\. (?=[A-Z\"])", " ".join(text.split()))[0].rstrip(".")


def as_yaml(value: Any) -> str:
    """A value on one line of YAML; configs in a list without their defaults."""
    plain = TypeAdapter(Any).dump_python(value, mode="json", exclude_defaults=isinstance(value, tuple))
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("\n...\n").strip()


def settings_page() -> str:
    """The reference page, in Markdown."""
    groups: dict[str, list[Setting]] = defaultdict(list)
    for setting in settings_of(RunConfig):
        groups[setting.key.rpartition(".")[0]].append(setting)
    groups.pop("fit_finish.features", None)  # those of a distance
    groups["fit_reverse.distances"] = [*settings_of(DistanceConfig)]
    parts = [PAGE_HEAD]
    for prefix, settings in groups.items():
        parts.append(f"## {prefix or 'The run'}\n")
        rows = ["| key | default | meaning |", "| --- | --- | --- |"]
        for key, default, meaning, choices in settings:
            text = meaning.replace("|", "\\|") + f" One of {choices}." * bool(choices)
            rows.append(f"| `{key}` | {default if default in (REQUIRED, BELOW) else f'`{default}`'} | {text} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(settings_page())
