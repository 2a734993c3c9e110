"""What the reference shows of classes, defaults and docstrings: a griffe extension, and a mkdocs hook for its lists."""

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
SKIP = re.compile(r" *# doctest: .*$", re.MULTILINE)
ENTRY = re.compile(r"(?:^|(?<=[.;] ))(\w+(?:, \w+)*): ")
EMPTY = re.compile(r'\s*\u2013\s*<div class="doc-md-description">\s*</div>')


def on_page_content(content: str, **_: Any) -> str:
    """No dash behind a field that has no description."""
    return EMPTY.sub("", content)


class Docstrings(griffe.Extension):
    """Fields are listed with their class, constants give way to their values, examples become code."""

    def on_class_members(self, *, node: ast.AST | griffe.ObjectNode, cls: griffe.Class, **_: Any) -> None:
        """Drop what methods assign to self; take the comment beside a field as its docstring."""
        if not isinstance(node, ast.ClassDef):
            return
        lines = {
            target.id: line.end_lineno or 0
            for line in node.body
            if isinstance(line, ast.AnnAssign | ast.Assign)
            for target in (line.targets if isinstance(line, ast.Assign) else [line.target])
            if isinstance(target, ast.Name)
        }
        comments = comments_of(Path(str(cls.filepath)))
        for field in fields_of(cls):
            if field.docstring:
                continue
            if field.name not in lines:
                cls.del_member(field.name)
            elif comment := comments.get(lines[field.name]):
                field.docstring = griffe.Docstring(comment, parent=field)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Once all is read: values for names of constants, then everything else."""
        everything = list(walk(pkg))
        for each in everything:
            if isinstance(each, griffe.Function):
                for parameter in each.parameters:
                    parameter.default = value_of(parameter.default)
            elif isinstance(each, griffe.Attribute) and each.parent and each.parent.is_class:
                each.value = value_of(each.value)
        for each in everything:
            each.labels &= {"classmethod", "property", "staticmethod"}
            if isinstance(each, griffe.Class):
                list_fields(each)
            elif isinstance(each, griffe.Attribute) and each.parent and each.parent.is_module and is_aside(each):
                each.parent.del_member(each.name)
            elif each.docstring:
                names = {parameter.name for parameter in each.parameters} if isinstance(each, griffe.Function) else ()
                each.docstring.value = as_markdown(each.docstring.value, set(names))


def walk(parent: griffe.Module | griffe.Class) -> Iterator[griffe.Object]:
    """All objects of a package."""
    yield parent
    for member in parent.members.values():
        if isinstance(member, griffe.Module | griffe.Class):
            yield from walk(member)
        elif isinstance(member, griffe.Object):
            yield member


@cache
def comments_of(file: Path) -> dict[int, str]:
    """The comments at the ends of a file's lines, by line."""
    with tokenize.open(file) as lines:
        found = [token for token in tokenize.generate_tokens(lines.readline) if token.type == tokenize.COMMENT]
    return {token.start[0]: token.string.lstrip("# ") for token in found if "noqa" not in token.string}


def is_aside(each: griffe.Attribute) -> bool:
    """Whether this is a constant or a type variable."""
    return each.name.isupper() or str(each.value).startswith("TypeVar(")


def value_of(default: Any) -> Any:
    """The value of a constant, given its name; anything else as it is."""
    if not isinstance(default, griffe.ExprName) or not default.name.isupper():
        return default
    try:
        found = default.parent.modules_collection[default.canonical_path]  # type: ignore[union-attr]
        return found.value if found.is_attribute else default
    except (KeyError, griffe.AliasResolutionError):  # one of several names that are assigned at once
        return default


def fields_of(kind: griffe.Class) -> list[griffe.Attribute]:
    """The attributes of a class that are no properties."""
    found = [each for each in kind.members.values() if isinstance(each, griffe.Attribute)]
    return [each for each in found if "property" not in each.labels]


def list_fields(kind: griffe.Class) -> None:
    """Make the public fields of a class a list below its docstring, instead of one heading each."""
    fields = {each.name: each for each in fields_of(kind)}
    docstring = kind.docstring = kind.docstring or griffe.Docstring("", parent=kind)
    meanings = {name: each.docstring.value for name, each in fields.items() if each.docstring}
    parts = [split(part, set(fields) - set(meanings)) for part in docstring.value.split("\n\n")]
    meanings |= {name: entry.text for part in parts for entry in part.entries for name in entry.names}
    text = "\n\n".join(filter(None, (part.text for part in parts)))
    initial = kind.members.get("__init__")
    names = {parameter.name for parameter in initial.parameters} if isinstance(initial, griffe.Function) else ()
    docstring.value = as_markdown(text, set(names))
    for name, each in fields.items():
        if each.annotation is None and name not in meanings:  # the template shows a value only beside a type
            meanings[name] = f"`{each.value}`"
    rows = [
        griffe.DocstringParameter(
            name, annotation=plain(each.annotation), value=each.value, description=meanings.get(name, "")
        )
        for name, each in fields.items()
        if not name.startswith("_") and name != "model_config"
    ]
    if rows:
        shown = griffe.DocstringSectionParameters(rows, title="Fields:")
        docstring.__dict__["parsed"] = [griffe.DocstringSectionText(docstring.value), shown]
    for name in fields:
        kind.del_member(name)


def plain(annotation: Any) -> Any:
    """An annotation without what pydantic checks: T for Annotated[T, ...]."""
    if isinstance(annotation, griffe.ExprSubscript) and annotation.canonical_name == "Annotated":
        return annotation.slice.elements[0] if isinstance(annotation.slice, griffe.ExprTuple) else annotation
    return annotation


class Entry(NamedTuple):
    """What a docstring says of some arguments or fields."""

    names: list[str]
    text: str


class Part(NamedTuple):
    """A paragraph: what comes first, and then of arguments."""

    text: str
    entries: list[Entry]


def split(paragraph: str, names: set[str]) -> Part:
    """Part a paragraph that says `name: meaning.` of arguments or fields.

    >>> split("Both are moved. size: of a part.  start, end: what is read.", {"size", "start", "end"}).entries
    [Entry(names=['size'], text='of a part.'), Entry(names=['start', 'end'], text='what is read.')]
    """
    text = " ".join(paragraph.split())
    found = [match for match in ENTRY.finditer(text) if names.issuperset(match[1].split(", "))]
    if not found or paragraph.lstrip().startswith(">>>"):
        return Part(paragraph, [])
    ends = [*(match.start() for match in found[1:]), len(text)]
    entries = [
        Entry(match[1].split(", "), text[match.end() : end].strip()) for match, end in zip(found, ends, strict=True)
    ]
    return Part(text[: found[0].start()].strip(), entries)


def as_markdown(text: str, names: set[str]) -> str:
    """A docstring with its examples as code, and what it says of arguments as a list."""
    parts = []
    for part in (split(paragraph, names) for paragraph in text.split("\n\n")):
        entries = [f"- {', '.join(f'**{name}**' for name in entry.names)}: {entry.text}" for entry in part.entries]
        parts += [part.text, "\n".join(entries)]
    return DOCTEST.sub(lambda found: f"```pycon\n{SKIP.sub('', found[0])}\n```", "\n\n".join(filter(None, parts)))
