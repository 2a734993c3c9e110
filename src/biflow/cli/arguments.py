"""Arguments and options that several commands have, each said once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from biflow.pipeline import Pipeline

GUIDANCE_HELP = "Strength of guidance, 0 for none; then annealed, on=shift|log_scale|both, temperature=T."
METHOD_HELP = "Sampler with its settings: reverse (one pass), sequential, or jacobi,tolerance=1e-4, say."

ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, or a name on the hub.")]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or a YAML file.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value.")]
OutFolder = Annotated[Path, typer.Option(help="Folder to write to.")]
GuidanceText = Annotated[str, typer.Option(help=GUIDANCE_HELP)]
MethodText = Annotated[str, typer.Option(help=METHOD_HELP)]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same images.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one.", show_default=False)]


def open_pipeline(model: Path, device: str | None) -> "Pipeline":
    """The pipeline of a model, on this device, or on a GPU if there is one."""
    import torch

    from biflow.pipeline import Pipeline

    return Pipeline.from_pretrained(model).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
