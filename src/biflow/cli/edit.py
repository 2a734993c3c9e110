"""The command line's `edit` group: inpaint, reclass, interpolate, vary; each writes one contact sheet."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from biflow.cli.arguments import (
    Device,
    GuidanceText,
    MethodText,
    ModelFolder,
    ReadingSettings,
    Seed,
    open_pictures,
    open_pipeline,
)
from biflow.console import counted, say, tell
from biflow.errors import InputError, check_number

if TYPE_CHECKING:
    from biflow.data.pictures import Pictures
    from biflow.pipeline import Pipeline

edit_app = typer.Typer(no_args_is_help=True, help="Edit images through their noise, without training.")

CLASS_HELP = "by name or index; one for all, or one per image."
ImageFiles = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")]
SheetFile = Annotated[Path, typer.Option(help="A .png contact sheet of images and results.")]
Classes = Annotated[list[str] | None, typer.Option("--label", help=f"Class of the images, {CLASS_HELP}")]
From = Annotated[list[str] | None, typer.Option("--from", help=f"Class of the images, {CLASS_HELP}")]


@edit_app.command()
def inpaint(
    model: ModelFolder,
    images: ImageFiles,
    out: SheetFile,
    mask: Annotated[str, typer.Option(help="An image, white where to resample, or LEFT,TOP,RIGHT,BOTTOM in pixels.")],
    label: Classes = None,
    proposals: Annotated[int, typer.Option(min=1, help="Results per image, the most likely first.")] = 4,
    guidance: GuidanceText = "0",
    method: MethodText = "reverse",
    seed: Seed = 0,
    device: Device = None,
    set_: ReadingSettings = None,
) -> None:
    """Resample the masked part of images; the rest keeps its pixels."""
    from biflow.data.mask import fit_mask, read_mask
    from biflow.data.sheet import Tile, painted, save_sheet

    if Path(mask).resolve() == out.resolve():
        raise InputError(f"Expected an output that is not the mask; got {out}. Choose another name.")
    given = read_mask(mask)
    pipe, pictures, options = open_all(model, images, out, EditOptions(device, guidance, method, seed, set_))
    labels = classes_of(pipe, label, len(pictures.all), "--label")
    masks = fit_mask(given, pictures.all)
    if masks.all():
        say("Note: the mask covers the whole image; the results are plain samples of the class.")
    edited = pipe.inpaint(pictures.pixels, masks, labels, proposals=proposals, **options)
    assert edited.nats is not None
    rows = []
    for picture, part, results, nats in zip(pictures.all, masks, edited.pixels, edited.nats.tolist(), strict=True):
        captions = [f"{i}: {each:.1f} nats" for i, each in enumerate(nats, 1)]
        first = [Tile(picture.pixels, "input"), Tile(painted(picture.pixels, part), "masked")]
        rows.append([*first, *map(Tile, results, captions)])
    save_sheet(out, rows)
    each = f"{counted(proposals, 'proposal')} for each of {counted(len(rows), 'image')}"
    tell(f"Wrote {out}: {each}, the most likely first.")


@edit_app.command()
def reclass(
    model: ModelFolder,
    images: ImageFiles,
    out: SheetFile,
    from_: From = None,
    to: Annotated[list[str] | None, typer.Option(help="Target class; several give one result each.")] = None,
    guidance: GuidanceText = "0",
    method: MethodText = "reverse",
    seed: Seed = 0,
    device: Device = None,
    set_: ReadingSettings = None,
) -> None:
    """Change the class of images, keeping their noise."""
    from biflow.data.images import to_pixels
    from biflow.data.sheet import Tile, save_sheet

    pipe, pictures, options = open_all(model, images, out, EditOptions(device, guidance, method, seed, set_))
    if not pipe.config.num_classes:
        raise InputError("Expected a model with classes; this one is unconditional. Use `edit vary`.")
    labels = classes_of(pipe, from_, len(pictures.all), "--from")
    if not to:
        raise InputError(f"Expected the target class: --to CLASS; {known_classes(pipe)}.")
    targets: list[int] = pipe.model.check_labels(to).tolist()
    named = zip(pictures.all, labels, strict=True)
    rows = [[Tile(picture.pixels, f"input, {name_of(pipe, label)}")] for picture, label in named]
    for target in targets:
        drawn = to_pixels(pipe.reclass(pictures.pixels, labels, [target] * len(rows), **options))
        for row, result in zip(rows, drawn, strict=True):
            row.append(Tile(result, f"as {name_of(pipe, target)}"))
    save_sheet(out, rows)
    tell(f"Wrote {out}: {counted(len(rows), 'image')} as {counted(len(targets), 'other class')}.")


@edit_app.command()
def interpolate(
    model: ModelFolder,
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="An image file.")],
    last: Annotated[Path, typer.Argument(metavar="LAST", help="Another.")],
    out: SheetFile,
    from_: Annotated[str | None, typer.Option("--from", help="Class of the first, by name or index.")] = None,
    to: Annotated[str | None, typer.Option(help="Class of the last, if different.")] = None,
    steps: Annotated[int, typer.Option(help="Number of images, both ends included.")] = 7,
    guidance: GuidanceText = "0",
    method: MethodText = "reverse",
    seed: Seed = 0,
    device: Device = None,
    set_: ReadingSettings = None,
) -> None:
    """Interpolate between two images, spherically between their noises."""
    from biflow.data.sheet import Tile, save_sheet
    from biflow.inference.edit import steps_between

    shares = steps_between(steps)
    ends = [first, last]
    pipe, pictures, options = open_all(model, ends, out, EditOptions(device, guidance, method, seed, set_))
    pixels = pictures.pixels
    start, end = classes_of(pipe, [from_, to or from_] if from_ else None, 2, "--from")
    edited = pipe.interpolate(pixels[:1], pixels[1:], labels=([start], [end]), steps=steps, **options)
    row = [Tile(pixels[0], "first")]
    for share, result in zip(shares, edited.pixels[0], strict=True):
        label = start if share < 0.5 else end
        named = f" as {name_of(pipe, label)}" * (start != end)
        row.append(Tile(result, f"{share:.0%}{named}"))
    save_sheet(out, [[*row, Tile(pixels[1], "last")]])
    tell(f"Wrote {out}: {counted(steps, 'image')} between the two originals.")


@edit_app.command()
def vary(
    model: ModelFolder,
    images: ImageFiles,
    out: SheetFile,
    label: Classes = None,
    strength: Annotated[float, typer.Option(help="0 is the reconstruction, 1 a new sample of the class.")] = 0.3,
    num: Annotated[int, typer.Option(min=1, help="Variations per image.")] = 6,
    guidance: GuidanceText = "0",
    method: MethodText = "reverse",
    seed: Seed = 0,
    device: Device = None,
    set_: ReadingSettings = None,
) -> None:
    """Make variations of images by resampling part of their noise."""
    from biflow.data.sheet import Tile, save_sheet

    check_number(strength, "--strength", most=1)
    pipe, pictures, options = open_all(model, images, out, EditOptions(device, guidance, method, seed, set_))
    labels = classes_of(pipe, label, len(pictures.all), "--label")
    edited = pipe.vary(pictures.pixels, labels, strength=strength, num=num, **options)
    rows = [
        [Tile(picture.pixels, "input"), *(Tile(result, f"{i}") for i, result in enumerate(results, 1))]
        for picture, results in zip(pictures.all, edited.pixels, strict=True)
    ]
    save_sheet(out, rows)
    made = f"{counted(num, 'variation')} of strength {strength:g}"
    tell(f"Wrote {out}: {made} for each of {counted(len(rows), 'image')}.")


class EditOptions(NamedTuple):
    """The options that all edits share, as text."""

    device: str | None
    guidance: str
    method: str
    seed: int
    reading: list[str] | None


def open_all(
    model: Path, images: list[Path], out: Path, given: EditOptions
) -> "tuple[Pipeline, Pictures, dict[str, Any]]":
    """The model, the images and the sampling options of an edit, checked before anything slow."""
    from biflow.data.scan import in_words
    from biflow.files import check_file_output
    from biflow.sampling.guidance import parse_guidance
    from biflow.sampling.samplers import parse_sampler

    if out.suffix != ".png":
        raise InputError(f"Expected an output ending in .png; got {out}.")
    check_file_output(out)
    if out.resolve() in {each.resolve() for each in images}:
        raise InputError(f"Expected an output that is none of the images; got {out}. Choose another name.")
    guidance, sampler = parse_guidance(given.guidance), parse_sampler(given.method)
    pipe = open_pipeline(model, given.device)
    pictures = open_pictures(pipe, images, given.reading)
    if pictures.rejected:
        raise InputError(f"Expected image files; cannot read {in_words(pictures.rejected)}. Give others.")
    return pipe, pictures, {"guidance": guidance, "method": sampler, "seed": given.seed}


def classes_of(pipe: "Pipeline", names: list[str] | None, count: int, option: str) -> list[int]:
    """The labels of `count` images, from one name for all or one per image."""
    if not names:
        if pipe.config.num_classes:
            raise InputError(
                f"Expected the class of the images: {option} CLASS; {known_classes(pipe)}. `biflow classify` finds it."
            )
        return [pipe.config.null_label] * count
    if len(names) not in {1, count}:
        raise InputError(f"Expected {option} once, or once for each of {count} images; got it {len(names)} times.")
    labels: list[int] = pipe.model.check_labels(names).tolist()
    return labels * count if len(labels) == 1 else labels


def known_classes(pipe: "Pipeline") -> str:
    """Which classes there are, if they are few enough to say."""
    names = pipe.class_names or tuple(map(str, range(pipe.config.num_classes)))
    return f"one of {', '.join(names)}" if len(names) <= 12 else f"one of {names[0]}, {names[1]}, ... {names[-1]}"


def name_of(pipe: "Pipeline", label: int) -> str:
    """A class as it is written below a picture."""
    if label == pipe.config.null_label:
        return "no class"
    return pipe.class_names[label] if pipe.class_names else str(label)
