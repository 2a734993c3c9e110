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
COVERED = 64  # of 255: how far a pixel is painted over before it counts

HALVES: Mapping[str, tuple[int, float]] = {  # axis, and where along it the half begins
    "upper half": (0, 0.0),
    "lower half": (0, 0.5),
    "left half": (1, 0.0),
    "right half": (1, 0.5),
}
PAINTED = "what I paint"


class Picture(NamedTuple):
    """An image of the model's size."""

    name: str
    pixels: Tensor  # uint8 (P, H, W)
    done: str = ""  # to bring it to that size


def read_pictures(files: Sequence[str], size: int, channels: int) -> tuple[list[Picture], list[str]]:
    """Uploaded images at a model's size, and what is to be said of those that are none."""
    pictures, wrong = [], {}
    for file in map(Path, files):
        try:
            pictures.append(read_picture(file, size, channels))
        except Exception as error:  # Pillow's decoders raise a dozen types
            wrong[file.name] = reason_of(error)
    if not pictures:
        raise InputError(f"Expected PNG, JPEG, WebP, BMP or TIFF images; cannot read {in_words(wrong)}.")
    return pictures, [f"Left out {in_words(wrong)}."] if wrong else []


def notes_on(pictures: Sequence[Picture]) -> list[str]:
    """What was done to images to bring them to the model's size; those that needed nothing are not named.

    >>> notes_on([Picture("a.png", torch.empty(0), "made grey"), Picture("b.png", torch.empty(0))])
    ['a.png was made grey.']
    """
    alike: dict[str, list[str]] = {}
    for picture in pictures:
        if picture.done:
            alike.setdefault(picture.done, []).append(picture.name)
    said = [
        f"{names[0]} was {done}." if len(names) == 1 else f"{len(names)} images were {done}."
        for done, names in alike.items()
    ]
    rest = sum(map(len, list(alike.values())[MOST_NAMED:]))
    return said[:MOST_NAMED] + ([f"{rest} more, of other sizes, were brought to the model's likewise."] * (rest > 0))


def read_picture(file: Path, size: int, channels: int) -> Picture:
    """One image file, judged by its header before it is decoded."""
    with suppress(UnidentifiedImageError):
        check_pixels(file)
    image = decode(file).image
    return Picture(file.name, at_size(image, size, channels), what_is_done(image, size, channels))


def check_pixels(file: Path) -> None:
    """Raise for an image of too many pixels; only its header is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
    if width * height > MOST_PIXELS:
        raise InputError(f"{width}x{height} pixels, more than {MOST_PIXELS // 10**6} megapixels")


def in_words(wrong: Mapping[str, str]) -> str:
    """Files with what is wrong with each, the first few by name.

    >>> in_words({"a.txt": "not an image", "b.png": "an empty file"})
    'a.txt (not an image), b.png (an empty file)'
    """
    named = [f"{name} ({reason})" for name, reason in list(wrong.items())[:MOST_NAMED]]
    return ", ".join(named) + (f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else "")


def mask_of(part: str, layers: Sequence[np.ndarray], side: int) -> Tensor:
    """What to redraw, bool (side, side): a half by its name, or where layers, RGBA, are painted on.

    >>> mask_of("left half", [], 2)
    tensor([[ True, False],
            [ True, False]])
    """
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
