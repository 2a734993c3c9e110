"""The part of images to resample: a PIL image or tensor, a mask file, or a box in pixels."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from biflow.data.decode import at_size, convert, opened, reason_of
from biflow.data.greys import highest, is_wide, white_of
from biflow.data.pictures import Picture
from biflow.errors import InputError

WHITE = 128  # of 255: from here on a mask is white
BOX = "LEFT,TOP,RIGHT,BOTTOM in pixels"
Box = tuple[int, ...]
"""Left, top, right and bottom, in pixels."""


def read_mask(given: str) -> Image.Image | Box:
    """A box LEFT,TOP,RIGHT,BOTTOM; otherwise an image file as a grey image, black where it is transparent.

    >>> read_mask("0,4,8,8")
    (0, 4, 8, 8)
    """
    if re.fullmatch(r"[\d\s,.-]*,[\d\s,.-]*", given):
        whole = re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*){3}", given)
        box = tuple(int(part) for part in given.split(",")) if whole else ()
        if not box:
            raise InputError(f"Expected a box of four whole numbers, such as 0,4,8,8; got {given!r}. Give {BOX}.")
        if box[0] >= box[2] or box[1] >= box[3]:
            raise InputError(f"Expected a box with an area, such as 0,4,8,8; got {given!r}. Give {BOX}.")
        return box
    try:
        with opened(Path(given)) as file:
            grey = to_grey(file)
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise InputError(
            f"Expected a mask as an image file; cannot read {given!r} ({reason_of(error)}). Give a PNG or {BOX}."
        ) from None
    check_white(grey)
    return grey


def to_grey(mask: Image.Image) -> Image.Image:
    """A mask of any mode as 8-bit grey, black where it is transparent; one of 0 and 1 becomes black and white."""
    grey = convert(mask, "black", white_of=white_of_mask).image.convert("L")
    return grey.point(lambda value: 255 * value) if highest(grey) == 1 and not is_wide(mask) else grey


def white_of_mask(mask: Image.Image, largest: float) -> int:
    """The value that is white in a mask of more than 8 bits: 1 if none is larger, else as in other images."""
    return 1 if largest <= 1 else white_of(mask, largest)


def check_white(grey: Image.Image) -> None:
    """Raise if a mask has a bright part, but none that counts as white."""
    brightest = highest(grey)
    if 0 < brightest < WHITE:
        raise InputError(
            f"Expected a mask with a white part to resample, values of {WHITE} or more; its brightest value is "
            f"{brightest} of 255. Paint that part white."
        )


def fit_mask(mask: Image.Image | Box, pictures: Sequence[Picture]) -> Tensor:
    """The mask of each image, bool (N, H, W), white or within the box; resized and cropped like the image."""
    masks = []
    for picture in pictures:
        whole = mask_of_size(mask, picture)
        fitted = at_size(whole, picture.pixels.shape[-1], 1, crop=picture.crop)[0] >= WHITE
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
            f"Expected a box within {picture.name}, {width}x{height} pixels; got {left},{top},{right},{bottom}. "
            "Move it inside."
        )
    drawn = Image.new("L", picture.size)
    ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return drawn


def to_mask(mask: Image.Image | Tensor, pixels: Tensor) -> Tensor:
    """Convert one mask for all images (N, P, H, W), or one per image, to bool (N, 1, H, W).

    mask: a bool tensor (H, W) or (N, H, W), or a PIL image, white where to resample, 128 or more of 255; it counts as
    black where it is transparent.
    """
    if isinstance(mask, Image.Image):
        grey = to_grey(mask)
        check_white(grey)
        mask = torch.from_numpy(np.array(grey)) >= WHITE
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        what = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise InputError(f"Expected a mask as a PIL image or a bool tensor, true where to resample; got {what}.")
    height, width = pixels.shape[-2:]
    size = f"{mask.shape[1]}x{mask.shape[0]}" if mask.ndim == 2 else f"shape {tuple(mask.shape)}"
    if tuple(mask.shape) not in {(height, width), (1, height, width), (len(pixels), height, width)}:
        raise InputError(
            f"Expected a mask of the images' size, {width}x{height} pixels, one for all {len(pixels)} or one for each; "
            f"got {size}. Resize it to the image."
        )
    mask = mask.view(-1, 1, height, width).expand(len(pixels), -1, -1, -1)
    if not mask.flatten(1).any(dim=1).all():
        raise InputError("Expected a mask with a white part to resample; it is black all over. Paint that part white.")
    return mask
