"""What the HTML reports share: a self-contained page with tables and figures, in light or dark mode."""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any, TypeVar

from torch import Tensor

from biflow.data.images import to_pil

K = TypeVar("K")

INK, ACCENT, QUIET = "#1c1b22", "#b4441f", "#2f6f9f"
COLOURS = (QUIET, ACCENT, "#3f8f4f", "#9a5bb0", "#a8821c", "#5f7f8f")  # distinct lines, on light and dark backgrounds


def render_page(title: str, body: str) -> str:
    """A whole page around the HTML of its body."""
    template = Template((resources.files("biflow.evaluation") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=body)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """A table from its header and its rows; cells are HTML."""
    head, *body = rows
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    return (
        f"<table><thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead><tbody>{lines}</tbody></table>"
    )


def html_facts(facts: Mapping[str, str]) -> str:
    """A list of names and their values, both plain text."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in facts.items())}</dl>"


def significant(value: float, digits: int) -> str:
    """A number with this many significant digits, or as a whole number if it is larger.

    >>> significant(0.123456, 3), significant(49, 3), significant(12345.6, 3)
    ('0.123', '49.0', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}".rstrip(".")


def charts(titles: Mapping[K, str], x_label: str, draw: Callable[[Any, K], None]) -> str:
    """Charts side by side as one <svg>, with a title for each key; `draw(axes, key)` draws one of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.9), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        draw(axes, key)
        style(axes, title, x_label)
    return svg(figure)


def style(axes: Any, title: str, x_label: str) -> None:
    """The style of all charts: title on the left, no frame, a faint grid."""
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel(x_label, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def svg(figure: Any) -> str:
    """A figure as <svg>, with selectable text; black and INK become the text colour of the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "biflow", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(rf"{INK}|#000000\b", "currentColor", text[text.index("<svg") :])


def picture(pixels: Tensor, name: str) -> str:
    """uint8 (P, H, W) -> an <img> with inlined PNG data."""
    buffer = io.BytesIO()
    to_pil(pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'
