"""Settings as text: frozen models, YAML in and out, `path=value` overrides, and every fault as one sentence."""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from biflow.errors import InputError, nearest
from biflow.inputs import brief, brief_repr, read_text


class Config(BaseModel):
    """Base of all configs: immutable, and a key that does not exist is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name].annotation if info.field_name else None
        if isinstance(value, bool) and bool not in {wanted, *get_args(wanted)}:
            raise ValueError(f"Expected a number or a word; got {str(value).lower()}.")
        return value


C = TypeVar("C", bound=Config)
MOST_FAULTS = 5  # named in one error

PLAIN = {"int_": "a whole number", "float_": "a number", "bool_": "true or false", "string_type": "text"}
"""pydantic's types of faults, by how they begin -> what was expected."""


def parse_values(text: str, origin: str) -> dict[str, Any]:
    """Text (YAML or JSON) -> keys and values, not checked yet."""
    values = _load_yaml(text, origin)
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise InputError(f"Expected keys and values in {origin}; got {found}. Write a line for each, key: value.")
    return values


def parse_config(kind: type[C], given: str | Mapping[str, Any], overrides: Iterable[str] = (), *, origin: str) -> C:
    """Text (YAML or JSON) or plain values -> a config of this kind; every fault is one `InputError`."""
    values = deepcopy(dict(given)) if isinstance(given, Mapping) else parse_values(given, origin)
    for override in (overrides := [*overrides]):
        _apply_override(kind, values, override)
    changed = f" with {', '.join(overrides)}" if overrides else ""
    return check_config(kind, values, origin=f"{origin}{changed}")


def check_config(kind: type[C], values: Mapping[str, Any], *, origin: str) -> C:
    """Plain values -> a config of this kind; every fault is one `InputError`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {_explain(kind, error)}") from None


def to_yaml(config: Config) -> str:
    """The config as YAML that `parse_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def check_recorded(path: Path, config: Config, repair: str, *, free: Sequence[str] = ()) -> None:
    """Raise unless the config recorded in a file is this one.

    repair: the sentence that ends the error. free: keys that may differ.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError):
        raise InputError(f"Expected settings in {path}; cannot read them. {repair}") from None
    recorded = parse_config(type(config), text, origin=str(path))
    if difference := first_difference(recorded.model_copy(update={key: getattr(config, key) for key in free}), config):
        key, old, new = difference
        raise InputError(f"Expected {key}={old}, as in {path}; got {new}. {repair}")


def first_difference(one: Config, other: Config, path: str = "") -> tuple[str, Any, Any] | None:
    """The first key whose values differ, with both; none if the configs are equal."""
    for key in type(one).model_fields:
        a, b = getattr(one, key), getattr(other, key)
        if isinstance(a, Config) and isinstance(b, Config) and a != b:
            return first_difference(a, b, f"{path}{key}.")
        if a != b:
            return f"{path}{key}", a, b
    return None


def _apply_override(kind: type[Config], values: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals:
        raise InputError(f"Expected an override of the form key.sub=value; got {override!r}.")
    root, keys = kind, path.split(".")
    for i, key in enumerate(keys):
        here = ".".join(keys[: i + 1])
        if key.isdigit():
            repair = f"Set the list: {'.'.join(keys[:i])}=[...]."
            raise InputError(f"Expected the key of a whole list; got {path!r}, an item of one. {repair}")
        if key not in kind.model_fields:
            same = [each for each in dotted_keys(root) if each.rpartition(".")[2] == key]
            beside = [".".join([*keys[:i], each]) for each in kind.model_fields]
            hint = f"did you mean {' or '.join(same[:3])}?" if same else nearest(here, beside)
            raise InputError(f"Unknown key {here!r}; {hint}")
        if here == path:
            values[key] = _value_of(kind, key, value, f"the override {override!r}")
        else:
            if not isinstance(values.get(key), dict):
                values[key] = {}
            values, kind = values[key], _field_config(kind, key)


def _value_of(kind: type[Config], key: str, value: str, origin: str) -> Any:
    """The value of an override: text stands as it is where the field is text, everything else is YAML.

    Text that may be absent is absent when written null, or left empty.
    """
    annotation = kind.model_fields[key].annotation
    choices = {type(None) if each is None else each for each in get_args(annotation) or (annotation,)}
    if not all(each in {str, type(None)} or isinstance(each, str) for each in choices):
        return _load_yaml(value, origin)
    return None if type(None) in choices and value in {"", "null"} else value


def _field_config(kind: type[Config], key: str) -> type[Config]:
    """The config class of a nested field, also when the field may be absent."""
    if config := next(nested_configs(kind, key), None):
        return config
    raise InputError(f"Expected a key that has sub-keys; got {key!r}, which holds a single value.")


def dotted_keys(kind: type[Config], prefix: str = "") -> Iterator[str]:
    """All keys of a kind of config, nested ones with their path."""
    for key in kind.model_fields:
        yield f"{prefix}{key}"
        for nested in nested_configs(kind, key):
            yield from dotted_keys(nested, f"{prefix}{key}.")


def nested_configs(kind: type[Config], key: str) -> Iterator[type[Config]]:
    """The config classes that a field may hold, not those of lists."""
    annotation = kind.model_fields[key].annotation
    for candidate in getattr(annotation, "__args__", ()) or (annotation,):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            yield candidate


def _explain(kind: type[Config], error: ValidationError) -> str:
    explained: dict[str, str] = {}  # of each key the first fault: a field of several types has one for each type
    for fault in error.errors():
        path = ".".join(_keys(kind, fault["loc"], unknown=fault["type"] == "extra_forbidden"))
        explained.setdefault(path, _explain_one(kind, path, fault))
    more = f"; and {len(explained) - MOST_FAULTS} more" if len(explained) > MOST_FAULTS else ""
    return "; ".join([*explained.values()][:MOST_FAULTS]) + more


def _keys(kind: type[Config] | None, location: Sequence[str | int], *, unknown: bool) -> Iterator[str]:
    """The keys of a fault's place, without the names of types that pydantic puts between them."""
    for place, key in enumerate(location):
        if isinstance(key, int) or (unknown and place == len(location) - 1):
            yield str(key)
        elif kind and key in kind.model_fields:
            yield key
            kind = next(nested_configs(kind, key), None)


def _explain_one(kind: type[Config], path: str, fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        *parents, last = path.split(".")
        for key in parents:
            kind = kind if key.isdigit() else _field_config(kind, key)
        return f"unknown key {brief(repr(path))}; {nearest(last, kind.model_fields)}"
    if fault["type"] == "missing":
        return f"key {path!r} is missing"
    message = fault["msg"].removeprefix("Value error, ").replace("valid tuple", "list, such as [a, b]")
    message = message.replace("Input should be", "expected").replace("expected greater than", "expected more than")
    if expected := next((PLAIN[start] for start in PLAIN if fault["type"].startswith(start)), None):
        message = f"expected {expected}"
    if fault["type"] == "model_type":
        return f"{path}: expected keys of its own; got {brief_repr(fault['input'])}"
    if fault["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message[:1].lower()}{message[1:]}; got {brief_repr(fault['input'])}"


class _Loader(yaml.SafeLoader):
    """YAML without tags, in which a repeated key is a fault, and numbers are decimal: 1:30 is no number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for node_of_key, _ in node.value:
            key = self.construct_object(node_of_key, deep=True)
            if isinstance(key, Hashable) and key in seen:
                problem = f"the key {brief_repr(key)} twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node_of_key.start_mark)
            seen |= {key} if isinstance(key, Hashable) else set()
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _form in {
    "int": r"[-+]?(0|[1-9][0-9]*)$",
    "float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_form), list("-+.0123456789"))


def _load_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = brief(getattr(error, "problem", None) or "text that cannot be read")
        raise InputError(f"Expected valid YAML in {origin}; got a fault{where}: {problem}.") from None
    except ValueError:  # Python converts at most 4,300 digits
        raise InputError(f"Expected valid YAML in {origin}; got a number of too many digits.") from None
    except RecursionError:
        raise InputError(f"Expected valid YAML in {origin}; got lists or keys nested too deep.") from None
