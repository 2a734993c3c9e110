"""What a tab answers, as HTML: pictures are in the page itself, and everything is readable without them."""

import base64
import io
from html import escape

from biflow.app.studio import Figure, Part, Shown
from biflow.data.images import enlarge, to_pil

SMALL = 64  # pixels; a narrower picture is enlarged by the browser, every pixel to a square


def as_html(shown: Shown) -> str:
    """The sentence, the notes, the figures."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in shown.notes)
    parts = "".join(map(part_html, shown.parts))
    return f'<p class="said" role="status">{escape(shown.said)}</p>{notes}{parts}'


def part_html(part: Part) -> str:
    """A heading, if there is one, and its figures."""
    heading = f"<h3>{escape(part.heading)} <span>{escape(part.facts)}</span></h3>" if part.heading else ""
    return f'{heading}<div class="figures">{"".join(map(figure_html, part.figures))}</div>'


def figure_html(figure: Figure) -> str:
    """A picture with its lines of text."""
    lines = "".join(f"<span>{escape(line)}</span>" for line in figure.lines)
    title = f"<b>{escape(figure.title)}</b>" if figure.title else ""
    kind = ' class="small"' if figure.pixels.shape[-1] < SMALL else ""
    image = f'<img{kind} src="{data_uri(figure)}" alt="{escape(figure.title or "image")}">'
    return f"<figure>{image}<figcaption>{title}{lines}</figcaption></figure>"


def data_uri(figure: Figure) -> str:
    """The picture as PNG; a small one so large that a browser that saves it has something to show."""
    file = io.BytesIO()
    to_pil(enlarge(figure.pixels, SMALL)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
