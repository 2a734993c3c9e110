"""The command line's `edit` group: inpaint, reclass, interpolate, vary; each writes one contact sheet."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from biflow.cli.arguments import Device, GuidanceText, MethodText, ModelFolder, Seed, open_pipeline
from biflow.console import counted, say, tell
from biflow.errors import InputError, check_number

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from biflow.data.pictures import Picture
    from biflow.data.sheet import Tile
    from biflow.pipeline import Pipeline

edit_app = typer.Typer(no_args_is_help=True, help="Edit images through their noise, without training.")

CLASS_HELP = "by name or index; one for all, or one per image."
ImageFiles = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")]
SheetFile = Annotated[Path, typer.Option(help="A .png contact sheet of images and results.")]
Classes = Annotated[list[str] | None, typer.Option("--label", help=f"Class of the images, {CLASS_HELP}")]
From = Annotated[list[str] | None, typer.Option("--from", help=f"Class of the images, {CLASS_HELP}")]


class Opened(NamedTuple):
    """A model, images, and sampling options."""

    pipe: "Pipeline"
    pictures: "list[Picture]"
    options: Any

    @property
    def pixels(self) -> "Tensor":
        """uint8 (N, P, H, W)."""
        import torch

        return torch.stack([each.pixels for each in self.pictures])

    def first_tiles(self, caption: str = "input") -> "list[list[Tile]]":
        """A row for each image, which begins with it."""
        from biflow.data.sheet import Tile

        return [[Tile(each.pixels, caption)] for each in self.pictures]


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
) -> None:
    """Resample the masked part of images; the rest keeps its pixels."""
    from biflow.data.sheet import Tile, painted, save_sheet

    box = parse_box(mask)
    file = None if box else Path(mask)
    if file and file.resolve() == out.resolve():
        raise InputError(f"Expected an output that is not the mask; got {out}. Choose another name.")
    opened = open_all(model, images, out, device=device, guidance=guidance, method=method, seed=seed)
    labels = classes_of(opened.pipe, label, opened.pictures, "--label")
    masks = masks_of(opened.pictures, file, box)
    if masks.all():
        say("Note: the mask covers the whole image; the results are plain samples of the class.")
    edited = opened.pipe.inpaint(opened.pixels, masks, labels, proposals=proposals, **opened.options)
    assert edited.nats is not None
    rows = opened.first_tiles()
    for place, row in enumerate(rows):
        row.append(Tile(painted(opened.pixels[place], masks[place]), "masked"))
        for i, (result, nats) in enumerate(zip(edited.pixels[place], edited.nats[place].tolist(), strict=True), 1):
            row.append(Tile(result, f"{i}: {nats:.1f} nats"))
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
) -> None:
    """Change the class of images, keeping their noise."""
    from biflow.data.images import to_pixels
    from biflow.data.sheet import Tile, save_sheet

    opened = open_all(model, images, out, device=device, guidance=guidance, method=method, seed=seed)
    pipe, rows = opened.pipe, opened.first_tiles()
    if not pipe.config.num_classes:
        raise InputError("Expected a model with classes; this one is unconditional. Use `edit vary`.")
    labels = classes_of(pipe, from_, opened.pictures, "--from")
    if not to:
        raise InputError(f"Expected the target class: --to CLASS; {known_classes(pipe)}.")
    targets: list[int] = pipe.model.check_labels(to).tolist()
    for place, row in enumerate(rows):
        row[0] = row[0]._replace(caption=f"input, {name_of(pipe, labels[place])}")
    for target in targets:
        drawn = to_pixels(pipe.reclass(opened.pixels, labels, [target] * len(rows), **opened.options))
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
) -> None:
    """Interpolate between two images, spherically between their noises."""
    from biflow.data.sheet import Tile, save_sheet
    from biflow.inference.edit import steps_between

    shares = steps_between(steps)
    opened = open_all(model, [first, last], out, device=device, guidance=guidance, method=method, seed=seed)
    pipe, pixels = opened.pipe, opened.pixels
    start, end = classes_of(pipe, [from_, to or from_] if from_ else None, opened.pictures, "--from")
    edited = pipe.interpolate(pixels[:1], pixels[1:], labels=([start], [end]), steps=steps, **opened.options)
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
) -> None:
    """Make variations of images by resampling part of their noise."""
    from biflow.data.sheet import Tile, save_sheet

    check_number(strength, "--strength", most=1)
    opened = open_all(model, images, out, device=device, guidance=guidance, method=method, seed=seed)
    labels = classes_of(opened.pipe, label, opened.pictures, "--label")
    edited = opened.pipe.vary(opened.pixels, labels, strength=strength, num=num, **opened.options)
    rows = opened.first_tiles()
    for row, results in zip(rows, edited.pixels, strict=True):
        row += [Tile(result, f"{i}") for i, result in enumerate(results, 1)]
    save_sheet(out, rows)
    tell(
        f"Wrote {out}: {counted(num, 'variation')} of strength {strength:g} for each of {counted(len(rows), 'image')}."
    )


def open_all(
    model: Path, images: list[Path], out: Path, *, device: str | None, guidance: str, method: str, seed: int
) -> Opened:
    """What all edits share, checked before anything slow."""
    from biflow.data.pictures import read_pictures
    from biflow.data.scan import in_words
    from biflow.files import check_file_output
    from biflow.sampling.guidance import parse_guidance
    from biflow.sampling.samplers import parse_sampler

    if out.suffix != ".png":
        raise InputError(f"Expected an output ending in .png; got {out}.")
    check_file_output(out)
    if out.resolve() in {each.resolve() for each in images}:
        raise InputError(f"Expected an output that is none of the images; got {out}. Choose another name.")
    options = {"guidance": parse_guidance(guidance), "method": parse_sampler(method), "seed": seed}
    pipe = open_pipeline(model, device)
    channels, size, _ = pipe.model.image_shape
    pictures = read_pictures(images, size, channels)
    if pictures.rejected:
        raise InputError(f"Expected image files; cannot read {in_words(pictures.rejected)}. Give others.")
    for note in pictures.notes():
        say(f"Note: {note}")
    return Opened(pipe, pictures.all, options)


def masks_of(pictures: "list[Picture]", mask: Path | None, box: tuple[int, int, int, int] | None) -> "Tensor":
    """What to redraw of each image, bool (N, H, W): white in the mask, or within the box; scaled and cut as it was."""
    import torch

    from biflow.data.decode import at_size

    drawn = read_mask(mask) if mask else None
    masks = []
    for picture in pictures:
        shape = box_within(picture, box or (0, 0, 0, 0)) if drawn is None else fitting(drawn, picture)
        small = at_size(shape, picture.pixels.shape[-1], 1)[0] >= 128
        if shape.getbbox() and not small.any():
            raise InputError(
                f"Expected something to redraw in the square that is kept of {picture.name}, {min(picture.size)} "
                "pixels in the middle; all of it lies outside, or is too small. Choose a part within."
            )
        masks.append(small)
    return torch.stack(masks)


def read_mask(path: Path) -> "Image":
    """A mask in grey; what is transparent keeps the image."""
    from biflow.data.decode import decode, reason_of

    try:
        return decode(path, background="black").image.convert("L")
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise InputError(f"Expected a mask as an image file; cannot read {path} ({reason_of(error)}).") from None


def fitting(mask: "Image", picture: "Picture") -> "Image":
    """The mask, which has to have the image's size."""
    if mask.size != picture.size:
        raise InputError(
            f"Expected a mask of the size of {picture.name}, {picture.size[0]}x{picture.size[1]} pixels; "
            f"got {mask.width}x{mask.height}. Make it that size, or give a box."
        )
    return mask


def box_within(picture: "Picture", box: tuple[int, int, int, int]) -> "Image":
    """A mask of the image's size, white within the box, which has to lie in the image."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = box
    if right > picture.size[0] or bottom > picture.size[1]:
        raise InputError(
            f"Expected a box within {picture.name}, {picture.size[0]}x{picture.size[1]} pixels; "
            f"got {left},{top},{right},{bottom}."
        )
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask


def parse_box(text: str) -> tuple[int, int, int, int] | None:
    """Corners in pixels; none for the name of a file.

    >>> parse_box("0,4,8,8"), parse_box("mask.png")
    ((0, 4, 8, 8), None)
    """
    if not re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)+", text):
        return None
    corners = [int(part) for part in text.split(",")]
    if len(corners) != 4 or not (0 <= corners[0] < corners[2] and 0 <= corners[1] < corners[3]):
        raise InputError(f"Expected a box LEFT,TOP,RIGHT,BOTTOM with an area, such as 0,4,8,8; got {text!r}.")
    left, top, right, bottom = corners
    return left, top, right, bottom


def classes_of(pipe: "Pipeline", names: list[str] | None, pictures: "list[Picture]", option: str) -> list[int]:
    """The label of each image, from one name for all or one an image."""
    count = len(pictures)
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
