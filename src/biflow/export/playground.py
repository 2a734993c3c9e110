"""The playground: a static folder with page, model and runtime."""

import json
from importlib import resources
from pathlib import Path

from biflow.errors import InputError
from biflow.export.encoder import can_draw, export_encoder
from biflow.export.onnx import MOST_GUIDANCE, Exported, check_installed, export_model
from biflow.export.runtime import FILES, copy_runtime, find_runtime
from biflow.files import check_new_folder, replace_folder
from biflow.models.codec import training_noise
from biflow.pipeline import Pipeline

PAGE_FILES = ("index.html", "style.css", "app.js", "draw.js", "pictures.js", "noise.js", "worker.js")
MODEL_FILE, ENCODER_FILE, CARD_FILE, RUNTIME_FOLDER = "model.onnx", "encoder.onnx", "model.json", "ort"
SITE_FILES = (*PAGE_FILES, MODEL_FILE, CARD_FILE, *(f"{RUNTIME_FOLDER}/{name}" for name in FILES))


def write_site(model: Path, out: Path, *, runtime: Path | None = None) -> Exported:
    """Write a folder that any web server can serve, with a page that samples from this model.

    Small models with classes get a canvas to draw on, and the exported encoder.  runtime: a folder with
    onnxruntime-web's files; by default npm downloads them once.  An existing page is replaced.
    """
    check_site(out)
    check_installed()
    if runtime is not None:
        find_runtime(runtime)
    with replace_folder(out) as folder:
        copy_runtime(folder / RUNTIME_FOLDER, runtime)
        exported = export_model(model, folder / MODEL_FILE, codec=True)
        pipe = Pipeline.from_pretrained(model)
        drawing = None  # the noise added to a drawing
        if can_draw(pipe.config):
            drawing = dict(zip(("noise_std", "bin_width"), training_noise(pipe.config), strict=True))
            export_encoder(pipe, folder / ENCODER_FILE, {**exported.card, "output": "noise"})
        slider = exported.card["max_guidance"] or MOST_GUIDANCE
        card = {**exported.card, "slider_guidance": slider, "drawing": drawing}
        (folder / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        page = resources.files("biflow.export") / "page"
        for name in PAGE_FILES:
            (folder / name).write_bytes((page / name).read_bytes())
    return exported


def check_site(out: Path) -> None:
    """Raise unless the page can be written here: a new or empty folder, or one with such a page."""
    if out.is_dir():
        files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
        if files - {ENCODER_FILE} == set(SITE_FILES):
            return
    if out.suffix in {".html", ".onnx"}:
        raise InputError(f"Expected a folder for the page; got {out}. Give a name without {out.suffix}.")
    check_new_folder(out)
