"""The part of images to resample, from a mask file or as a box in pixels."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from biflow.data.decode import at_size, decode, reason_of
from biflow.data.pictures import Picture
from biflow.errors import InputError

Box = tuple[int, ...]
"""Left, top, right and bottom, in pixels."""


def read_mask(given: str) -> Image.Image | Box:
    """A box LEFT,TOP,RIGHT,BOTTOM; otherwise an image file as a grey image, black where it is transparent.

    >>> read_mask("0,4,8,8")
    (0, 4, 8, 8)
    """
    if re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)+", given):
        box = tuple(int(part) for part in given.split(","))
        if len(box) != 4 or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise InputError(f"Expected a box LEFT,TOP,RIGHT,BOTTOM with an area, such as 0,4,8,8; got {given!r}.")
        return box
    try:
        return decode(Path(given), background="black").image.convert("L")
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise InputError(f"Expected a mask as an image file; cannot read {given} ({reason_of(error)}).") from None


def fit_mask(mask: Image.Image | Box, pictures: Sequence[Picture]) -> Tensor:
    """The mask of each image, bool (N, H, W), white or within the box; resized and cropped like the image."""
    masks = []
    for picture in pictures:
        whole = mask_of_size(mask, picture)
        fitted = at_size(whole, picture.pixels.shape[-1], 1)[0] >= 128
        if whole.getbbox() and not fitted.any():
            raise InputError(
                f"Expected a mask in the square that is kept of {picture.name}, the central {min(picture.size)} "
                "pixels; it lies outside, or is too small. Choose a part within."
            )
        masks.append(fitted)
    return torch.stack(masks)


def mask_of_size(mask: Image.Image | Box, picture: Picture) -> Image.Image:
    """The mask as a grey image of the size of the picture's file."""
    width, height = picture.size
    if isinstance(mask, Image.Image):
        if mask.size != picture.size:
            raise InputError(
                f"Expected a mask of the size of {picture.name}, {width}x{height} pixels; got "
                f"{mask.width}x{mask.height}. Make it that size, or give a box."
            )
        return mask
    left, top, right, bottom = mask
    if right > width or bottom > height:
        raise InputError(
            f"Expected a box within {picture.name}, {width}x{height} pixels; got {left},{top},{right},{bottom}."
        )
    drawn = Image.new("L", picture.size)
    ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return drawn
