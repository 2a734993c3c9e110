"""Decode image files to pixels at the model's size."""

import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from biflow.errors import InputError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # no other decoder of Pillow is tried, whatever the file
NO_IMAGE = "not a PNG, JPEG, WebP, BMP or TIFF image"
MAX_ASPECT = 32  # resized to the model's shorter side, a longer strip would not fit into memory
GREY_MODES = {"1", "L", "I", "F"}


class DecodedImage(NamedTuple):
    """A decoded image file."""

    image: Image.Image  # grey or RGB, 8 bits, upright, opaque
    mode: str  # Pillow's mode of the file
    format: str


def read_image(path: Path, size: int, channels: int, *, crop: str = "adm", background: str = "white") -> Tensor:
    """Read an image file as uint8 (P, size, size), converted to grey or RGB, resized and cropped."""
    return at_size(decode(path, background).image, size, channels, crop=crop)


def decode(path: Path, background: str = "white", *, max_pixels: int | None = None) -> DecodedImage:
    """Decode a file completely; of animations and multi-page files, the first frame. Raises if it is unreadable."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("not a file")
    if not status.st_size:
        raise InputError("an empty file")
    try:
        with Image.open(path, formats=FORMATS) as file:  # reads the header only
            _check_size(*file.size, max_pixels or Image.MAX_IMAGE_PIXELS)
            return DecodedImage(as_seen(file, background), file.mode, file.format or "")
    except UnidentifiedImageError:
        with path.open("rb") as start:
            head = start.read(4)
        damaged = [kind for signature, kind in SIGNATURES.items() if head.startswith(signature)]
        raise InputError(f"a damaged {damaged[0]} image" if damaged else NO_IMAGE) from None


def as_seen(image: Image.Image, background: str = "white") -> Image.Image:
    """Convert an image of any mode to 8-bit grey or RGB: EXIF rotation applied in place, transparency on a background.

    16-bit grey is divided by 257; Pillow reduces 16-bit colour itself.
    """
    image.load()  # some formats report or apply the orientation only then
    with suppress(Exception):  # damaged EXIF; the image itself may be intact
        ImageOps.exif_transpose(image, in_place=True)
    image = _eight_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba)
    return image.convert("L" if image.mode in GREY_MODES else "RGB")


def at_size(image: Image.Image, size: int, channels: int, *, crop: str = "adm") -> Tensor:
    """Resize the shorter side of a grey or RGB image to `size` and crop the centre: uint8 (P, size, size)."""
    image = CROPS[crop](image.convert("L" if channels == 1 else "RGB"), size)
    return torch.from_numpy(np.array(image).reshape(size, size, channels)).permute(2, 0, 1)


def adm_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's preprocessing of ImageNet (arXiv 2105.05233): box-filtered halvings, then one bicubic resize."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def tarflow_crop(image: Image.Image, size: int) -> Image.Image:
    """Preprocessing of TARFlow's code: torchvision's Resize(size), bilinear, and CenterCrop(size)."""
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


CROPS: Mapping[str, Callable[[Image.Image, int], Image.Image]] = {"adm": adm_crop, "tarflow": tarflow_crop}


def reason_of(error: Exception) -> str:
    """Why a file could not be decoded, in a few words, without its path."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_many_pixels(Image.MAX_IMAGE_PIXELS or 0)
    system = error.strerror if isinstance(error, OSError) else None
    return system or str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    """Raise if an image of this size, read from the header, would exhaust the memory."""
    if max_pixels is not None and width * height > max_pixels:
        raise InputError(_too_many_pixels(max_pixels))
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{width}x{height} pixels, one side more than {MAX_ASPECT} times the other")


def _too_many_pixels(most: int) -> str:
    return f"more than {most // 10**6} megapixels, which may be a decompression bomb"


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey, or 32-bit grey in the range of 16 bits, to 8 bits; other modes have 8 bits already."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float32)
    if not (values.min() >= 0 and values.max() <= 65535):
        raise InputError("grey values that do not fit into 16 bits")
    if image.mode == "F" and values.max() <= 1:
        raise InputError("floating-point grey values up to 1, not 65535; save them with 8 or 16 bits")
    grey = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if "transparency" in image.info:  # the transparent grey value of a PNG
        opaque = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
        return Image.merge("LA", (grey, Image.fromarray(opaque)))
    return grey
