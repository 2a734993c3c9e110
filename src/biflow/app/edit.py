"""The Edit tab: one image, painted over, of another class, or varied."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from biflow.app.desk import SUFFIXES, Desk, new_seed, options_of, whole
from biflow.app.html import as_html, hint_html
from biflow.app.studio import MOST_RESULTS, NO_CLASS, VARY_ENDS, Studio
from biflow.app.uploads import EVERYTHING, HALVES, PAINTED, Picture, mask_of
from biflow.data.images import enlarge, to_pil

CANVAS = 320  # pixels of the picture's side on it, at least
MARGIN = 8  # the canvas goes on beside the picture by an 8th of it, so that strokes can begin there
SURROUND = "#c9c5bc"
RESULTS = "Results appear here."
PAINT = "rgba(180, 68, 31, 0.85)"


class Easel(NamedTuple):
    """The components that hold the image and say how it is edited."""

    held: Any  # a Picture
    canvas: Any
    name: Any  # of its class
    way: list[Any]
    said: Any


def edit_tab(desk: Desk, studio: Studio) -> None:
    """One image at the left, what is done with it at the right."""
    result = desk.result(RESULTS, "edit-result", render=False)
    with desk.left():
        easel = make_easel(desk, studio, result)
    with desk.right():
        with desk.gr.Tabs():
            for title, fill in EDITS.items():
                with desk.gr.Tab(title):
                    fill(desk, studio, easel, result)
        result.render()


def make_easel(desk: Desk, studio: Studio, result: Any) -> Easel:
    """Where the image comes from, where it is shown and painted on; another image clears the result."""
    gr = desk.gr
    with gr.Row(elem_classes="pair"):
        upload = gr.UploadButton("Upload", file_types=SUFFIXES, min_width=90, size="md", elem_id="edit-upload")
        draw = desk.button("Sample one", main=False, name="edit-sample")
    canvas = make_canvas(gr, enlarged_side(studio))
    said = gr.HTML(notes_of(["Upload or sample an image, then paint over what is to be redrawn."]), elem_id="edit-said")
    name = desk.one_class("Class of the image", studio.names[0] if studio.names else None, "Guessed after an upload")
    easel = Easel(gr.State(None), canvas, name, desk.way(), said)

    def take(file: str | None) -> tuple[Any, ...]:
        picture, notes = studio.open(file)
        guess = studio.guess(picture)
        guessed = f"Its class was guessed: {guess}. Correct it below if it is wrong."
        notes = [said_of(picture), *notes, *[guessed] * bool(guess)]
        return picture, canvas_of(picture), notes_of(notes), hint_html(RESULTS), guess or None

    def sample(name: str | None, guidance: float, _: Any, *method: Any) -> tuple[Any, ...]:
        picture = studio.sample_one(name or NO_CLASS, **options_of(guidance, new_seed(), *method))
        return picture, canvas_of(picture), notes_of([said_of(picture)]), hint_html(RESULTS)

    def restore(held: Picture | None, editor: dict[str, Any] | None) -> Any:
        gone = held is not None and (editor or {}).get("background") is None
        return canvas_of(held) if held and gone else gr.skip()

    desk.on(upload.upload, take, [upload], [easel.held, canvas, said, result, name])
    desk.on(draw.click, sample, [name, *easel.way], [easel.held, canvas, said, result])
    canvas.change(restore, [easel.held, canvas], [canvas], api_visibility="private", show_progress="hidden")
    return easel


def make_canvas(gr: Any, side: int) -> Any:
    """A square to paint on with one brush; images come onto it through the server alone."""
    brush = gr.Brush(default_size=side // 8, colors=[PAINT], default_color=PAINT, color_mode="fixed")
    bare: dict[str, Any] = {"sources": (), "transforms": (), "layers": False, "buttons": []}
    return gr.ImageEditor(
        **bare, brush=brush, type="numpy", format="png", canvas_size=(side, side), fixed_canvas=True,
        height=CANVAS + 80, label="Image", placeholder="No image yet", elem_id="canvas",
    )  # fmt: skip


def redraw_tab(desk: Desk, studio: Studio, easel: Easel, result: Any) -> None:
    """Inpainting; halves can be chosen without painting."""
    part = desk.gr.Radio([PAINTED, *HALVES, EVERYTHING], value=PAINTED, label="Part to redraw", elem_id="edit-part")
    proposals = desk.number("Proposals", MOST_RESULTS, 4)
    button = desk.button("Redraw", name="edit-redraw")

    def act(held: Picture | None, name: str | None, *rest: Any) -> str:
        editor, part, proposals, *chosen = rest
        layers = [without_margin(layer) for layer in (editor or {}).get("layers") or []]
        mask = mask_of(part, layers, studio.image_shape[1])
        count = whole(proposals, "number of proposals")
        return as_html(studio.inpaint(held, mask, name, proposals=count, **options_of(*chosen)))

    desk.on(button.click, act, [easel.held, easel.name, easel.canvas, part, proposals, *easel.way], [result])


def change_tab(desk: Desk, studio: Studio, easel: Easel, result: Any) -> None:
    """Change of class."""
    if not studio.names:
        desk.hint("This model has no classes to change.")
        return
    targets = desk.classes("Becomes", "One result for each")
    button = desk.button("Change", name="edit-change")

    def act(held: Picture | None, name: str | None, targets: list[str] | None, *chosen: Any) -> str:
        return as_html(studio.reclass(held, name, targets or [], **options_of(*chosen)))

    desk.on(button.click, act, [easel.held, easel.name, targets, *easel.way], [result])


def vary_tab(desk: Desk, studio: Studio, easel: Easel, result: Any) -> None:
    """Variations."""
    strength = desk.gr.Slider(0, 1, 0.3, step=0.05, label="Strength", info=VARY_ENDS, buttons=[])
    num = desk.number("Variations", MOST_RESULTS, 6)
    button = desk.button("Vary", name="edit-vary")

    def act(held: Picture | None, name: str | None, *rest: Any) -> str:
        strength, num, *chosen = rest
        count = whole(num, "number of variations")
        return as_html(studio.vary(held, name, strength=strength, num=count, **options_of(*chosen)))

    desk.on(button.click, act, [easel.held, easel.name, strength, num, *easel.way], [result])


EDITS: dict[str, Callable[[Desk, Studio, Easel, Any], None]] = {
    "Redraw a part": redraw_tab,
    "Change the class": change_tab,
    "Vary": vary_tab,
}


def enlarged_side(studio: Studio) -> int:
    """Pixels of the side of the canvas: a multiple of the image's, and a margin all around."""
    size = studio.image_shape[1]
    side = size * max(1, -(-CANVAS // size))
    return side + 2 * (side // MARGIN)


def canvas_of(picture: Picture) -> dict[str, Any]:
    """An image as the editor takes it, nothing painted on it yet, nothing in its margin."""
    image = to_pil(enlarge(picture.pixels, CANVAS)).convert("RGBA")
    margin = image.width // MARGIN
    framed = Image.new("RGBA", (image.width + 2 * margin, image.height + 2 * margin), SURROUND)
    framed.paste(image, (margin, margin))
    return {"background": framed, "layers": [], "composite": None}


def without_margin(layer: np.ndarray) -> np.ndarray:
    """The part of a layer of the canvas that is over the picture.

    >>> without_margin(np.zeros((10 * MARGIN + 20, 10 * MARGIN + 20, 4))).shape
    (80, 80, 4)
    """
    margin = round(len(layer) / (MARGIN + 2))
    return layer[margin:-margin, margin:-margin]


def said_of(picture: Picture) -> str:
    """What is on the canvas, and what to do with it."""
    return f"This is {picture.name}. Paint over what is to be redrawn."


def notes_of(notes: Sequence[str]) -> str:
    """Sentences as HTML."""
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
