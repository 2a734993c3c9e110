"""What pages share: one self-contained HTML file with tables and figures, light or dark as the reader has it."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from torch import Tensor

from biflow.data.images import to_pil

INK, ACCENT, QUIET = "#1c1b22", "#b4441f", "#2f6f9f"
COLOURS = (QUIET, ACCENT, "#3f8f4f", "#9a5bb0", "#a8821c", "#5f7f8f")  # lines that are told apart; fair on both papers


def render_page(title: str, body: str) -> str:
    """A whole page around the HTML of its body."""
    template = Template((resources.files("biflow.evaluation") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=body)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """A table, given its head and its rows; cells are HTML."""
    head, *body = rows
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    return (
        f"<table><thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead><tbody>{lines}</tbody></table>"
    )


def style(axes: Any, title: str, x_label: str) -> None:
    """The look of all charts: a title at the left, no frame, a faint grid."""
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel(x_label, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def svg(figure: Any) -> str:
    """A figure as <svg>, with text as text; what is ink takes the colour of the page's own."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "biflow", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(rf"{INK}|#000000\b", "currentColor", text[text.index("<svg") :])


def picture(pixels: Tensor, name: str) -> str:
    """uint8 (P, H, W) -> an <img> that carries its own data."""
    buffer = io.BytesIO()
    to_pil(pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'
