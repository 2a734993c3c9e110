"""Arguments and options shared by several commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biflow.console import say

if TYPE_CHECKING:
    from biflow.data.pictures import Pictures
    from biflow.pipeline import Pipeline

GUIDANCE_HELP = "Guidance strength, 0 for none; optionally ,annealed ,on=shift|log_scale ,temperature=T."
METHOD_HELP = "Sampler with its settings: reverse (one pass), sequential, or jacobi,tolerance=1e-4, say."

ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, or a Hugging Face repository.")]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe name, or a YAML file.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. Repeatable.")]
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


def open_pictures(pipe: "Pipeline", images: Path | Sequence[Path]) -> "Pictures":
    """Images at the model's size; prints notes on skipped files and conversions."""
    from biflow.data.pictures import read_pictures

    channels, size, _ = pipe.model.image_shape
    pictures = read_pictures(images, size, channels)
    for note in pictures.notes():
        say(f"Note: {note}")
    return pictures
