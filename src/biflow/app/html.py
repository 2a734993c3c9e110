"""What a tab answers, as HTML: pictures are in the page itself, and everything is readable without them."""

import base64
import io
import re
from html import escape

from biflow.app.studio import Figure, Part, Shown
from biflow.data.images import enlarge, to_pil

SMALL = 64  # pixels; a narrower picture is enlarged by the browser, every pixel to a square
MEASURE = re.compile(r"(-?[\d.]+ (?:bits/dim|nats|ms|s))(?!\w)")


def as_html(shown: Shown) -> str:
    """The sentence, the notes, the figures."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in shown.notes)
    parts = "".join(map(part_html, shown.parts))
    return f'<p class="said" role="status">{text_html(shown.said)}</p>{notes}{parts}'


def hint_html(text: str) -> str:
    """What will be here."""
    return f'<p class="hint">{escape(text)}</p>'


def error_html(sentence: str) -> str:
    """What was wrong with the input, where the result would have been."""
    return f'<p class="wrong" role="alert">{escape(sentence)}</p>'


def part_html(part: Part) -> str:
    """A heading, if there is one, and its figures."""
    heading = f"<h3>{escape(part.heading)} <span>{text_html(part.facts)}</span></h3>" if part.heading else ""
    return f'{heading}<div class="figures">{"".join(map(figure_html, part.figures))}</div>'


def figure_html(figure: Figure) -> str:
    """A picture with its lines of text."""
    lines = "".join(line_html("span", line) for line in figure.lines)
    title = line_html("b", figure.title) if figure.title else ""
    kind = ' class="small"' if figure.pixels.shape[-1] < SMALL else ""
    image = f'<img{kind} src="{data_uri(figure)}" alt="{escape(figure.title or "image")}">'
    return f"<figure>{image}<figcaption>{title}{lines}</figcaption></figure>"


def line_html(tag: str, line: str) -> str:
    """A line of text below a picture; where it is cut, a pointer over it reads it whole."""
    return f'<{tag} title="{escape(line)}">{text_html(line)}</{tag}>'


def text_html(text: str) -> str:
    """Text of which no unit is parted from its number.

    >>> text_html("<3.45 bits/dim>")
    '&lt;<i class="measure">3.45 bits/dim</i>&gt;'
    """
    return MEASURE.sub(r'<i class="measure">\1</i>', escape(text))


def data_uri(figure: Figure) -> str:
    """The picture as PNG; a small one so large that a browser that saves it has something to show."""
    file = io.BytesIO()
    to_pil(enlarge(figure.pixels, SMALL)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
