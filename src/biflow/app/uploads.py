"""What a person brings to the app: uploaded images, and the part of one that is to be redrawn."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from biflow.data.decode import FORMATS, at_size, decode, reason_of, what_is_done
from biflow.errors import InputError, choose

MOST_PIXELS = 64_000_000  # of an upload, by its header
MOST_NAMED = 5  # files in one sentence
MOST_NOTES = 3  # sentences on what was done to uploads
COVERED = 64  # of 255: how far a pixel is painted over before it counts

HALVES: Mapping[str, tuple[int, float]] = {  # axis, and where along it the half begins
    "upper half": (0, 0.0),
    "lower half": (0, 0.5),
    "left half": (1, 0.0),
    "right half": (1, 0.5),
}
PAINTED, EVERYTHING = "what I paint", "everything"


class Picture(NamedTuple):
    """An image of the model's size."""

    name: str
    pixels: Tensor  # uint8 (P, H, W)
    done: str = ""  # to bring it to that size
    steps: tuple[str, ...] = ()  # the same without the sizes of this image alone


def read_pictures(files: Sequence[str], size: int, channels: int) -> tuple[list[Picture], list[str]]:
    """Uploaded images at a model's size, and what is to be said of those that are none."""
    pictures: list[Picture] = []
    wrong: list[tuple[str, str]] = []
    for file in map(Path, files):
        try:
            pictures.append(read_picture(file, size, channels))
        except Exception as error:  # Pillow's decoders raise a dozen types
            wrong.append((file.name, reason_of(error)))
    if not pictures:
        raise InputError(f"Expected one or more images; cannot read {in_words(wrong)}. Choose others.")
    return pictures, [f"Left out {in_words(wrong)}."] if wrong else []


def notes_on(pictures: Sequence[Picture]) -> list[str]:
    """What was done to images to bring them to the model's size; those that needed nothing are not named.

    >>> notes_on([Picture("a.png", torch.empty(0), "made grey", ("made grey",)), Picture("b.png", torch.empty(0))])
    ['a.png was made grey.']
    """
    alike: dict[tuple[str, ...], list[Picture]] = {}
    for picture in pictures:
        if picture.done:
            alike.setdefault(picture.steps, []).append(picture)
    groups = sorted(alike.items(), key=lambda group: -len(group[1]))
    named = MOST_NOTES - (len(groups) > MOST_NOTES)
    said = [
        f"{group[0].name} was {group[0].done}." if len(group) == 1 else f"{len(group)} images were {listed(steps)}."
        for steps, group in groups[:named]
    ]
    rest = sum(len(group) for _, group in groups[named:])
    return said + ([f"{rest} more were brought to the model's size and colours in other ways."] * (rest > 0))


def listed(steps: Sequence[str]) -> str:
    """Words in a row.

    >>> listed(["laid on white", "made grey", "scaled to 8x8"])
    'laid on white, made grey and scaled to 8x8'
    """
    return " and ".join([", ".join(steps[:-1]), steps[-1]] if len(steps) > 1 else steps)


def read_picture(file: Path, size: int, channels: int) -> Picture:
    """One image file, judged by its header before it is decoded."""
    with suppress(UnidentifiedImageError):
        check_pixels(file)
    image, mode, _ = decode(file)
    if mode in ("1", "L", "LA") or mode.startswith("I"):
        image = image.convert("L")  # grey on white is grey
    white = ["laid on white"] * shows_through(file)
    done = [*white, *filter(None, [what_is_done(image, size, channels)])]
    steps = [*white, *steps_to(image, size, channels)]
    return Picture(file.name, at_size(image, size, channels), ", ".join(done), tuple(steps))


def steps_to(image: Image.Image, size: int, channels: int) -> list[str]:
    """What `what_is_done` says, of many images in one."""
    grey = ["made grey"] * (image.mode == "RGB" and channels == 1)
    scaled = [f"scaled to {size}x{size}"] * (image.size != (size, size))
    return [*grey, *scaled, *["cut to their central squares"] * (image.width != image.height)]


def check_pixels(file: Path) -> None:
    """Raise for an image of too many pixels; only its header is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
    if width * height > MOST_PIXELS:
        raise InputError(f"{width}x{height} pixels, more than {MOST_PIXELS // 10**6} megapixels")


def shows_through(file: Path) -> bool:
    """Whether any pixel of an image that can be read is less than opaque."""
    with Image.open(file, formats=FORMATS) as image:
        if not image.has_transparency_data or image.mode.startswith("I"):
            return image.has_transparency_data
        return image.convert("RGBA").getchannel("A").getextrema()[0] != 255


def in_words(wrong: Sequence[tuple[str, str]]) -> str:
    """Files with what is wrong with each, the first few by name.

    >>> in_words([("a.txt", "not an image"), ("b.png", "an empty file")])
    'a.txt (not an image), b.png (an empty file)'
    """
    named = [f"{name} ({reason})" for name, reason in wrong[:MOST_NAMED]]
    return ", ".join(named) + (f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else "")


def mask_of(part: str, layers: Sequence[np.ndarray], side: int) -> Tensor:
    """What to redraw, bool (side, side): a part by its name, or where layers, RGBA, are painted on.

    >>> mask_of("left half", [], 2)
    tensor([[ True, False],
            [ True, False]])
    """
    if part == EVERYTHING:
        return torch.ones(side, side, dtype=torch.bool)
    if part != PAINTED:
        axis, start = choose(HALVES, part, "part")
        places = torch.arange(side).expand(side, side)
        half = (places >= side // 2) == (start > 0)
        return half if axis else half.T
    mask = torch.zeros(side, side, dtype=torch.bool)
    for layer in layers:
        cover = Image.fromarray(layer[..., 3]).resize((side, side), Image.Resampling.BOX)
        mask |= torch.from_numpy(np.array(cover)) >= COVERED
    return mask
