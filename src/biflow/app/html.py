"""Renders results as HTML, with the images inlined as data URIs."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape

from biflow.app.backend import Figure, Section, TabResult
from biflow.data.images import enlarge, to_pil

SMALL = 64  # pixels; the browser enlarges narrower images without smoothing
QUANTITY = re.compile(r"(-?[\d.]+ (?:bits/dim|nats|ms|s))(?!\w)")


def result_html(result: TabResult) -> str:
    """Summary, notes and sections of a result."""
    sections = "".join(map(section_html, result.sections))
    return f'<p class="summary" role="status">{text_html(result.summary)}</p>{notes_html(result.notes)}{sections}'


def hint_html(text: str) -> str:
    """Placeholder text of an empty output."""
    return f'<p class="hint">{escape(text)}</p>'


def error_html(message: str) -> str:
    """An error message, shown in place of a result."""
    return f'<p class="error" role="alert">{escape(message)}</p>'


def notes_html(notes: Sequence[str]) -> str:
    """One paragraph per note."""
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def section_html(section: Section) -> str:
    """An optional heading and a grid of figures."""
    heading = f"<h3>{escape(section.heading)} <span>{text_html(section.details)}</span></h3>" if section.heading else ""
    return f'{heading}<div class="figures">{"".join(map(figure_html, section.figures))}</div>'


def figure_html(figure: Figure) -> str:
    """An image with its caption."""
    lines = "".join(line_html("span", line) for line in figure.lines)
    title = line_html("b", figure.title) if figure.title else ""
    kind = ' class="small"' if figure.pixels.shape[-1] < SMALL else ""
    image = f'<img{kind} src="{data_uri(figure)}" alt="{escape(figure.title or "image")}">'
    return f"<figure>{image}<figcaption>{title}{lines}</figcaption></figure>"


def line_html(tag: str, line: str) -> str:
    """One line of a caption; the tooltip holds the full text where CSS truncates it."""
    return f'<{tag} title="{escape(line)}">{text_html(line)}</{tag}>'


def text_html(text: str) -> str:
    """Escaped text, without line breaks between numbers and their units.

    >>> text_html("<3.45 bits/dim>")
    '&lt;<i class="quantity">3.45 bits/dim</i>&gt;'
    """
    return QUANTITY.sub(r'<i class="quantity">\1</i>', escape(text))


def data_uri(figure: Figure) -> str:
    """The image as a PNG data URI; small images are enlarged, so that a saved copy is large enough to view."""
    file = io.BytesIO()
    to_pil(enlarge(figure.pixels, SMALL)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
