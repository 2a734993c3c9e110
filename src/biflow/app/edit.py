"""The Edit tab: inpaint an image, change its class, or create variations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from biflow.app.backend import MAX_RESULTS, NO_CLASS, STRENGTH_INFO, Backend, TabResult
from biflow.app.controls import SUFFIXES, Controls, random_seed, sampling_options, to_int
from biflow.app.html import hint_html, notes_html
from biflow.app.mask import EVERYTHING, HALVES, PAINTED, mask_of
from biflow.data.images import enlarge, to_pil
from biflow.data.pictures import Picture

MIN_CANVAS = 320  # pixels of the image's side on the canvas, at least
MARGIN = 8  # the canvas has a margin of 1/8 of the image's side, so that strokes can start outside the image
MARGIN_COLOUR = "#c9c5bc"
BRUSH_COLOUR = "rgba(180, 68, 31, 0.85)"
OUTPUT_HINT = "Results appear here."


class ImageInputs(NamedTuple):
    """The components that hold the image and the settings all edits share."""

    picture: Any  # gr.State of a Picture
    canvas: Any
    class_name: Any
    sampling: list[Any]


def edit_tab(controls: Controls, backend: Backend) -> None:
    """Edit one image."""
    output = controls.output(OUTPUT_HINT, "edit-result", render=False)
    with controls.input_column():
        inputs = make_image_inputs(controls, backend, output)
    with controls.output_column():
        with controls.gr.Tabs():
            for title, fill in EDITS.items():
                with controls.gr.Tab(title):
                    fill(controls, backend, inputs, output)
        output.render()


def make_image_inputs(controls: Controls, backend: Backend, output: Any) -> ImageInputs:
    """Upload or sample an image and paint on it; a new image clears the output."""
    gr, names = controls.gr, backend.class_names
    with gr.Row(elem_classes="pair"):
        upload = gr.UploadButton("Upload", file_types=SUFFIXES, min_width=90, size="md", elem_id="edit-upload")
        sample = controls.button("Sample", "edit-sample", primary=False)
    canvas = make_canvas(gr, canvas_side(backend))
    hint = "Upload or sample an image, then paint over the region to inpaint."
    notes = gr.HTML(notes_html([hint]), elem_id="edit-notes")
    info, first = "Predicted when you upload an image.", names[0] if names else None
    class_name = controls.class_dropdown("Class of the image", info, value=first)
    inputs = ImageInputs(gr.State(None), canvas, class_name, controls.sampling_inputs())
    shown = [inputs.picture, canvas, notes, output]

    def open_upload(file: str | None) -> tuple[Any, ...]:
        picture, notes = backend.open(file)
        predicted = backend.predict_class(picture)
        notes = [picture_note(picture), *notes]
        notes += [f"Predicted class: {predicted}. Change it below if it is wrong."] if predicted else []
        return picture, canvas_value(picture), notes_html(notes), hint_html(OUTPUT_HINT), predicted or None

    def sample_image(name: str | None, guidance: float, _: Any, *method: Any) -> tuple[Any, ...]:
        picture = backend.sample_one(name or NO_CLASS, **sampling_options(guidance, random_seed(), *method))
        return picture, canvas_value(picture), notes_html([picture_note(picture)]), hint_html(OUTPUT_HINT)

    def restore_image(picture: Picture | None, editor: dict[str, Any] | None) -> Any:
        """Show the image again after the canvas was cleared."""
        cleared = (editor or {}).get("background") is None
        return canvas_value(picture) if picture is not None and cleared else gr.skip()

    controls.connect(upload.upload, open_upload, [upload], [*shown, class_name])
    controls.connect(sample.click, sample_image, [class_name, *inputs.sampling], shown)
    canvas.change(restore_image, [inputs.picture, canvas], [canvas], api_visibility="private", show_progress="hidden")
    return inputs


def make_canvas(gr: Any, side: int) -> Any:
    """A square image editor with one brush; images are placed on it by the server only."""
    brush = gr.Brush(default_size=side // 8, colors=[BRUSH_COLOUR], default_color=BRUSH_COLOUR, color_mode="fixed")
    minimal: dict[str, Any] = {"sources": (), "transforms": (), "layers": False, "buttons": []}
    size: dict[str, Any] = {"canvas_size": (side, side), "fixed_canvas": True, "height": MIN_CANVAS + 80}
    texts = {"label": "Image", "placeholder": "No image yet", "elem_id": "canvas"}
    return gr.ImageEditor(brush=brush, type="numpy", format="png", **minimal, **size, **texts)


def inpaint_tab(controls: Controls, backend: Backend, inputs: ImageInputs, output: Any) -> None:
    """Inpaint the painted region, or a preset one."""
    regions = [PAINTED, *HALVES, EVERYTHING]
    region = controls.gr.Radio(regions, value=PAINTED, label="Region to inpaint", elem_id="edit-region")
    proposals = controls.count_slider("Proposals", MAX_RESULTS, 4)
    button = controls.button("Inpaint", "edit-inpaint")

    def inpaint(picture: Picture | None, name: str | None, *args: Any) -> TabResult:
        editor, region, proposals, *options = args
        layers = [crop_margin(layer) for layer in (editor or {}).get("layers") or []]
        mask = mask_of(region, layers, backend.image_shape[1])
        count = to_int(proposals, "number of proposals")
        return backend.inpaint(picture, mask, name, proposals=count, **sampling_options(*options))

    own = [inputs.canvas, region, proposals]
    controls.connect(button.click, inpaint, [inputs.picture, inputs.class_name, *own, *inputs.sampling], [output])


def reclass_tab(controls: Controls, backend: Backend, inputs: ImageInputs, output: Any) -> None:
    """Change the class."""
    if not backend.class_names:
        controls.message("This model is unconditional, so there is no class to change.")
        return
    targets = controls.class_dropdown("Target classes", "One result per class.", multiselect=True)
    button = controls.button("Change class", "edit-reclass")

    def reclass(picture: Picture | None, name: str | None, targets: list[str] | None, *options: Any) -> TabResult:
        return backend.reclass(picture, name, targets or [], **sampling_options(*options))

    controls.connect(button.click, reclass, [inputs.picture, inputs.class_name, targets, *inputs.sampling], [output])


def vary_tab(controls: Controls, backend: Backend, inputs: ImageInputs, output: Any) -> None:
    """Create variations."""
    strength = controls.gr.Slider(0, 1, 0.3, step=0.05, label="Strength", info=STRENGTH_INFO, buttons=[])
    num = controls.count_slider("Number of variations", MAX_RESULTS, 6)
    button = controls.button("Create variations", "edit-vary")

    def vary(picture: Picture | None, name: str | None, *args: Any) -> TabResult:
        strength, num, *options = args
        count = to_int(num, "number of variations")
        return backend.vary(picture, name, strength=strength, num=count, **sampling_options(*options))

    controls.connect(button.click, vary, [inputs.picture, inputs.class_name, strength, num, *inputs.sampling], [output])


EDITS: dict[str, Callable[[Controls, Backend, ImageInputs, Any], None]] = {
    "Inpaint": inpaint_tab,
    "Change class": reclass_tab,
    "Variations": vary_tab,
}


def canvas_side(backend: Backend) -> int:
    """Side of the canvas in pixels: a multiple of the image's side, plus the margins."""
    size = backend.image_shape[1]
    side = size * max(1, -(-MIN_CANVAS // size))
    return side + 2 * (side // MARGIN)


def canvas_value(picture: Picture) -> dict[str, Any]:
    """The image with its margin as a value of `gr.ImageEditor`, nothing painted yet."""
    image = to_pil(enlarge(picture.pixels, MIN_CANVAS)).convert("RGBA")
    margin = image.width // MARGIN
    framed = Image.new("RGBA", (image.width + 2 * margin, image.height + 2 * margin), MARGIN_COLOUR)
    framed.paste(image, (margin, margin))
    return {"background": framed, "layers": [], "composite": None}


def crop_margin(layer: np.ndarray) -> np.ndarray:
    """A layer of the canvas without its margin.

    >>> crop_margin(np.zeros((10 * MARGIN + 20, 10 * MARGIN + 20, 4))).shape
    (80, 80, 4)
    """
    margin = round(len(layer) / (MARGIN + 2))
    return layer[margin:-margin, margin:-margin]


def picture_note(picture: Picture) -> str:
    """A note that names the image on the canvas."""
    return f"Image: {picture.name}. Paint over the region to inpaint."
