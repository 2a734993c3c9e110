"""The Edit tab: one image, painted over, of another class, or varied."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from biflow.app.desk import SUFFIXES, Desk, options_of
from biflow.app.html import as_html
from biflow.app.studio import MOST_RESULTS, NO_CLASS, Studio
from biflow.app.uploads import HALVES, PAINTED, Picture, mask_of
from biflow.data.images import enlarge, to_pil

CANVAS = 320  # pixels of its side, at least
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
    with desk.left():
        easel = make_easel(desk, studio)
    with desk.right():
        result = desk.result("Results appear here.", "edit-result", render=False)
        with desk.gr.Tabs():
            for title, fill in EDITS.items():
                with desk.gr.Tab(title):
                    fill(desk, studio, easel, result)
        result.render()


def make_easel(desk: Desk, studio: Studio) -> Easel:
    """Where the image comes from, where it is shown and painted on."""
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
        notes += [guessed] if guess else []
        return picture, canvas_of(picture), notes_of(notes), guess or None

    def sample(name: str | None, *chosen: Any) -> tuple[Any, ...]:
        picture = studio.sample_one(name or NO_CLASS, **options_of(*chosen))
        return picture, canvas_of(picture), notes_of([f"This is {picture.name}. Paint over what is to be redrawn."])

    desk.on(upload.upload, take, [upload], [easel.held, canvas, said, name])
    desk.on(draw.click, sample, [name, *easel.way], [easel.held, canvas, said])
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
    part = desk.gr.Radio([PAINTED, *HALVES], value=PAINTED, label="Part to redraw", elem_id="edit-part")
    proposals = desk.number("Proposals", MOST_RESULTS, 4)
    button = desk.button("Redraw", name="edit-redraw")

    def act(held: Picture | None, name: str | None, *rest: Any) -> str:
        editor, part, proposals, *chosen = rest
        mask = mask_of(part, (editor or {}).get("layers") or [], studio.image_shape[1])
        return as_html(studio.inpaint(held, mask, name, proposals=int(proposals), **options_of(*chosen)))

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
    strength = desk.gr.Slider(0, 1, 0.3, step=0.05, label="Strength", info="0 changes nothing", buttons=[])
    num = desk.number("Variations", MOST_RESULTS, 6)
    button = desk.button("Vary", name="edit-vary")

    def act(held: Picture | None, name: str | None, *rest: Any) -> str:
        strength, num, *chosen = rest
        return as_html(studio.vary(held, name, strength=strength, num=int(num), **options_of(*chosen)))

    desk.on(button.click, act, [easel.held, easel.name, strength, num, *easel.way], [result])


EDITS: dict[str, Callable[[Desk, Studio, Easel, Any], None]] = {
    "Redraw a part": redraw_tab,
    "Change the class": change_tab,
    "Vary": vary_tab,
}


def enlarged_side(studio: Studio) -> int:
    """Pixels of the canvas's side, a multiple of the image's."""
    size = studio.image_shape[1]
    return size * max(1, -(-CANVAS // size))


def canvas_of(picture: Picture) -> dict[str, Any]:
    """An image as the editor takes it, nothing painted on it yet."""
    image = to_pil(enlarge(picture.pixels, CANVAS)).convert("RGB")
    return {"background": image, "layers": [], "composite": None}


def notes_of(notes: Sequence[str]) -> str:
    """Sentences as HTML."""
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
