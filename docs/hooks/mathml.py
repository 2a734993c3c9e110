# ruff: noqa: RUF001 - signs of formulas look like letters and other signs
"""mkdocs hook: the LaTeX that pymdownx.arithmatex marks becomes MathML, which browsers show without a script."""

import html
import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert

MARKED = re.compile(
    r'<span class="arithmatex">\\\((?P<inline>.+?)\\\)</span>'
    r'|<div class="arithmatex">\s*\\\[(?P<block>.+?)\\\]\s*</div>',
    re.DOTALL,
)
OPENING, CLOSE = set("([{|‖"), set("([{)]},;.")
BINARY = set("=<>←∼,·+−/∣")
FACTORS = {"mi", "mn", "msub", "msup", "mfrac"}
THIN_SPACE = "0.1667em"


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas of a page; an unknown LaTeX command ends the build."""
    return MARKED.sub(_replacement, content)


def _replacement(found: re.Match[str]) -> str:
    if found["inline"] is not None:
        return to_mathml(html.unescape(found["inline"]))
    return f'<div class="formula">{to_mathml(html.unescape(found["block"]), display="block")}</div>'


def to_mathml(latex: str, display: str = "inline") -> str:
    r"""A formula as a `<math>` element, with its LaTeX as `alttext`; raises for a command that is not known.

    >>> to_mathml(r"x")
    '<math display="inline" alttext="x"><mrow><mi>x</mi></mrow></math>'
    """
    latex = " ".join(latex.split())
    text = convert(latex, display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    root = ElementTree.fromstring(text)
    for element in root.iter():
        if "\\" in (element.text or ""):
            raise ValueError(f"Expected LaTeX that latex2mathml can convert; got {element.text} in {latex!r}.")
        _classify(element)
    for row in list(root.iter()):
        if row.tag in {"math", "mrow"}:
            _space_operators(row)
            _space_functions(row)
    root.set("alttext", latex)
    return ElementTree.tostring(root, encoding="unicode")


def _classify(element: ElementTree.Element) -> None:
    """Correct what latex2mathml takes for an operator or an identifier; the space around them depends on it."""
    text = element.text or ""
    if element.tag == "mo" and (text == "∅" or (len(text) > 1 and text.isalpha())):
        element.tag = "mi"
        element.attrib.clear()
    elif element.tag == "mi" and text in {"~", ";"}:
        element.tag, element.text = "mo", text.replace("~", "∼")
    elif element.tag == "mi" and "Α" <= text <= "Ω":
        element.set("mathvariant", "normal")


def _space_operators(row: ElementTree.Element) -> None:
    """No space around a slash, behind a minus that is a sign, and around an operator that begins a row."""
    for before, element in pairwise([None, *row]):
        assert element is not None
        is_first = before is None or (before.tag == "mo" and before.text in OPENING | BINARY) or before.tag == "mspace"
        if element.tag == "mo" and (element.text == "/" or (is_first and element.text in BINARY)):
            element.attrib |= {"lspace": "0", "rspace": "0"}


def _space_functions(row: ElementTree.Element) -> None:
    """A thin space between a function and its argument, unless that is in brackets, and between a factor and it."""
    for one, following in reversed(list(pairwise(row))):
        after_function = _is_function(one) and not _is_bracket(following) and following.tag != "mspace"
        before_function = _is_function(following) and (one.tag in FACTORS or one.text in {")", "]"})
        if after_function or before_function:
            row.insert(list(row).index(following), ElementTree.Element("mspace", width=THIN_SPACE))


def _is_function(element: ElementTree.Element) -> bool:
    """Whether this is a name of several letters, with or without an index."""
    base = element[0] if element.tag in {"msub", "msup", "msubsup"} else element
    return base.tag == "mi" and len(base.text or "") > 1 and (base.text or "").isalpha()


def _is_bracket(element: ElementTree.Element) -> bool:
    """Whether this is a bracket or a sign that stands as close, or begins with one."""
    if element.tag == "mrow" and len(element):
        return _is_bracket(element[0])
    return element.tag == "mo" and (element.text or "") in CLOSE
