"""Arguments and options shared by several commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biflow.config.base import parse_config
from biflow.config.evaluation import ImagesConfig
from biflow.config.run import PictureReading
from biflow.console import say

if TYPE_CHECKING:
    from biflow.data.pictures import Pictures
    from biflow.pipeline import Pipeline

GUIDANCE_HELP = "Guidance strength, 0 for none; optionally ,annealed ,on=shift|log_scale ,temperature=T."
METHOD_HELP = "Sampler with its settings: reverse (one pass), sequential, or jacobi,tolerance=1e-4, say."

ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, or a Hugging Face repository.")]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe name, or a YAML file.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. Repeatable.")]
ReadingSettings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Read the images otherwise than in training: reading.background=black, say."),
]
OutFolder = Annotated[Path, typer.Option(help="Folder to write to.")]
GuidanceText = Annotated[str, typer.Option(help=GUIDANCE_HELP)]
MethodText = Annotated[str, typer.Option(help=METHOD_HELP)]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if present.", show_default=False)
]


def open_pipeline(model: Path, device: str | None) -> "Pipeline":
    """The pipeline of a model on this device, by default on a GPU if there is one."""
    import torch

    from biflow.pipeline import Pipeline

    return Pipeline.from_pretrained(model).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def open_pictures(pipe: "Pipeline", images: Path | Sequence[Path], overrides: Sequence[str] | None) -> "Pictures":
    """Images at the model's size, read as in its training or as the overrides say; prints notes on how."""
    from biflow.data.pictures import read_pictures

    own, (channels, size, _) = pipe.reading, pipe.model.image_shape
    values = {"reading": {key: getattr(own, key) for key in PictureReading.model_fields}}
    reading = parse_config(ImagesConfig, values, overrides or (), origin="the settings").reading
    pictures = read_pictures(images, size, channels, reading=reading)
    for note in (*reading_notes(own, reading), *pictures.notes()):
        say(f"Note: {note}")
    return pictures


def reading_notes(own: PictureReading, reading: PictureReading) -> list[str]:
    """Sentences about images that are read with other settings than the default, or than in the model's training.

    >>> reading_notes(PictureReading(background="black"), PictureReading(background="black"))
    ['Images are read with reading.background=black, as in the training of the model.']
    """
    notes = []
    for key, field in PictureReading.model_fields.items():
        now, trained = getattr(reading, key), getattr(own, key)
        as_trained = "as in the training of the model" if now == trained else f"in the training with {trained}"
        if (now, trained) != (field.default, field.default):
            notes.append(f"Images are read with reading.{key}={now}, {as_trained}.")
    return notes
