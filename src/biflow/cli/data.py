"""The command line's `data` group: check data, encode them."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biflow.cli.arguments import OutFolder
from biflow.console import console, counted, printable, program, table, tell
from biflow.errors import InputError

if TYPE_CHECKING:
    from biflow.data.check import FolderCheck
    from biflow.data.check_arrays import ArraysCheck

REJECTS_SHOWN = 10


data_app = typer.Typer(no_args_is_help=True, help="Check your own data, and encode it.")


@data_app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of images, or .npz or IDX files.")],
    size: Annotated[int, typer.Option(min=1, help="Side of each image on the contact sheet, in pixels.")] = 64,
    out: Annotated[Path | None, typer.Option(help="A .png for a contact sheet, one row per class.")] = None,
    rejected: Annotated[Path | None, typer.Option(help="A text file that lists unreadable files.")] = None,
) -> None:
    """Read a folder of images: counts by class, sizes, modes, unreadable files; or images in .npz or IDX files.

    For latents made by `data encode`, verify the checksums.
    """
    from biflow.data.latents import MANIFEST_FILE, damaged_shards
    from biflow.training.cache_latents import SETTINGS_FILE

    if (path / MANIFEST_FILE).is_file() or (path / SETTINGS_FILE).is_file():
        changed = damaged_shards(path)
        tell("\n".join(f"Changed: {name}" for name in changed) or "All shards are intact.")
        sys.exit(1 if changed else 0)
    from biflow.data.check import check_folder, contact_sheet, fitting_settings, notes_on
    from biflow.data.check_arrays import check_arrays
    from biflow.data.images import write_picture
    from biflow.data.scan import write_rejected
    from biflow.files import check_file_output, check_outside

    for output in filter(None, (out, rejected)):
        check_outside(output, path)
        check_file_output(output)
    if out and out.suffix != ".png":
        raise InputError(f"Expected a contact sheet ending in .png; got {out}.")
    if arrays := check_arrays(path):
        if rejected:
            raise InputError(f"Expected no --rejected for arrays, which hold no files; got {rejected}. Leave it out.")
        show_arrays(arrays, out)
        return
    found = check_folder(path)
    sheet = contact_sheet(found, size) if out else None
    names, faults = found.layout.class_names, found.found.rejected
    images = counted(len(found.found.readable), "image")
    classes = "1 class" if len(names) == 1 else f"{len(names) or 'no'} classes"
    tell(f"{images} in {classes}; {len(faults):,} unreadable.")
    show_tables(found)
    for note in notes_on(found):
        tell(note)
    for name, reason in list(faults.items())[:REJECTS_SHOWN]:
        tell(f"Cannot read {printable(name)}: {reason}")
    if len(faults) > REJECTS_SHOWN:
        tell(f"... and {len(faults) - REJECTS_SHOWN:,} more unreadable files; --rejected FILE lists all.")
    for doubt in found.found.doubts():
        tell(f"Warning: {doubt}")
    if rejected:
        write_rejected(rejected, faults)
        tell(f"Wrote {rejected}.")
    if out and sheet is not None:
        write_picture(out, sheet)
        tell(f"Wrote {out}.")
    if found.found.readable:
        root = f"./{path}" if str(path).startswith("~") else path
        tell(f"Train on it with: {how_to_train(path, f'folder:{root}', *fitting_settings(found))}")


def show_arrays(found: "ArraysCheck", out: Path | None) -> None:
    """Print what .npz or IDX files hold, and write a contact sheet if wanted."""
    from biflow.data.check import fitting_recipe
    from biflow.data.check_arrays import class_rows, contact_sheet
    from biflow.data.images import enlarge, write_picture

    channels, height, width = found.sets[0].pixels.shape[1:]
    images, names = counted(sum(len(each.pixels) for each in found.sets), "image"), found.class_names
    classes = counted(len(names), "class") if names else "no classes"
    tell(f"{images} of {width}x{height} pixels, {'grey' if channels == 1 else 'RGB'}, in {classes}.")
    console.print(table("classes", class_rows(found)))
    if out:
        write_picture(out, enlarge(contact_sheet(found)))
        tell(f"Wrote {out}.")
    fitting = fitting_recipe(min(height, width), channels, len(names))
    tell(f"Train on it with: {how_to_train(found.path, found.data, *fitting)}")


def show_tables(found: "FolderCheck") -> None:
    """Print what a folder holds: classes, sizes, kinds of files."""
    from biflow.data.check import class_rows, common_size_rows, kind_rows, size_rows

    console.print(table("classes", class_rows(found)))
    for title, rows in (("sizes", size_rows), ("common sizes", common_size_rows), ("kinds of files", kind_rows)):
        if found.found.readable:
            console.print(table(title, rows(found)))


def how_to_train(path: Path, data: str, recipe: str, settings: dict[str, object]) -> str:
    """A command that trains on these data, to paste into a shell."""
    words = ["train", recipe, "--out", f"runs/{path.resolve().name.removesuffix('.npz')}"]
    for key, value in {"data": data, **settings}.items():
        words += ["--set", f"{key}={value}"]
    return f"{program()} {shlex.join(words)}"


@data_app.command()
def encode(
    data: Annotated[str, typer.Argument(metavar="DATA", help="folder:PATH, npz:FILE, idx:FOLDER or hf:NAME.")],
    vae: Annotated[str, typer.Option(help="A diffusers autoencoder: hub name or folder.")],
    out: OutFolder,
    size: Annotated[int, typer.Option(min=1, help="Side that images are resized to, in pixels.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch, in each process.")] = 32,
    set_: Annotated[list[str] | None, typer.Option("--set", help="How to read the images: reading.flip=true.")] = None,
) -> None:
    """Encode a data set to latents, for training with data=latents:OUT.

    Resumes if interrupted; torchrun shares the work among its processes.
    """
    from biflow.data.latents import read_manifest
    from biflow.training.cache_latents import encode_data

    count = encode_data(data, vae, out, size=size, batch_size=batch_size, overrides=set_ or (), console=console)
    if count is None:
        return
    made = read_manifest(out)
    channels, side, _ = made["latent_shape"]
    model = {"codec": f"vae:{vae}", "channels": channels, "image_size": side, "num_classes": len(made["class_names"])}
    settings = {"data": f"latents:{out}", **{f"model.{key}": value for key, value in model.items()}}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    tell(f"Wrote {out}: latents of {counted(count, 'image')}.")
    tell(f"Train on it with: {program()} train RECIPE --out FOLDER {shlex.join(words)}")
