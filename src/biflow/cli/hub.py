"""The command line's `push`."""

from pathlib import Path
from typing import Annotated

import typer

from biflow.cli.arguments import ModelFolder
from biflow.console import tell


def push(
    model: ModelFolder,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Hugging Face repository.")],
    evaluation: Annotated[Path | None, typer.Option(help="An evaluation.json for the model card.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="License of the weights, in the hub's terms.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    preview: Annotated[Path | None, typer.Option(help="Write the upload to this new folder instead.")] = None,
) -> None:
    """Upload a model and its card to the Hugging Face hub."""
    from biflow.files import check_new_folder, replace_folder
    from biflow.pipeline import Pipeline

    if preview:
        check_new_folder(preview)
    pipe = Pipeline.from_pretrained(model)
    if preview:
        with replace_folder(preview) as folder:
            pipe.save_for_hub(folder, repository, evaluation=evaluation, licence=licence)
        tell(f"Wrote {preview}; nothing was uploaded.")
        return
    address = pipe.push_to_hub(repository, evaluation=evaluation, licence=licence, private=private or None)
    tell(f"Uploaded to {address}")
