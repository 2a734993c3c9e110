"""Image files of all kinds -> pixels at a model's size."""

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
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
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # no other decoder is ever tried, whatever a file turns out to be
NO_IMAGE = "not a PNG, JPEG, WebP, BMP or TIFF image"
MOST_STRETCHED = 32  # longer side over shorter: at a model's size, a longer strip would not fit into memory
GREY_MODES = {"1", "L", "I", "F"}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoded(NamedTuple):
    """An image file as it is looked at, and what it was."""

    image: Image.Image  # grey or RGB, 8 bits, upright, opaque
    mode: str  # Pillow's name, as in the file
    format: str


def read_image(path: Path, size: int, channels: int, *, crop: str = "adm", background: str = "white") -> Tensor:
    """One image file -> uint8 (P, size, size), made grey or RGB, scaled and cropped."""
    return at_size(decode(path, background).image, size, channels, crop=crop)


def decode(path: Path, background: str = "white", *, most_pixels: int | None = None) -> Decoded:
    """A file, read whole; of an animation or a file of several pages, the first.  Raises where it cannot be read."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("not a file")
    if not status.st_size:
        raise InputError("an empty file")
    try:
        with Image.open(path, formats=FORMATS) as file:  # reads the header only
            _check_size(*file.size, most_pixels or Image.MAX_IMAGE_PIXELS)
            return Decoded(as_seen(file, background), file.mode, file.format or "")
    except UnidentifiedImageError:
        with path.open("rb") as start:
            head = start.read(4)
        damaged = [kind for signature, kind in SIGNATURES.items() if head.startswith(signature)]
        raise InputError(f"a damaged {damaged[0]} image" if damaged else NO_IMAGE) from None


def as_seen(image: Image.Image, background: str = "white") -> Image.Image:
    """An image of any mode, turned as its EXIF says, in 8 bits, on a background where it is transparent: grey or RGB.

    16 bits of grey become 8 by division by 257; Pillow itself brings down those of colours.
    """
    image.load()  # some formats tell of the orientation, or follow it, only then
    image = _eight_bits(_upright(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba)
    return image.convert("L" if image.mode in GREY_MODES else "RGB")


def at_size(image: Image.Image, size: int, channels: int, *, crop: str = "adm") -> Tensor:
    """A grey or RGB image -> uint8 (P, size, size), its shorter side scaled to `size` and the centre cut out."""
    image = CROPS[crop](image.convert("L" if channels == 1 else "RGB"), size)
    return torch.from_numpy(np.array(image).reshape(size, size, channels)).permute(2, 0, 1)


def adm_crop(image: Image.Image, size: int) -> Image.Image:
    """As ADM (arXiv 2105.05233) prepares ImageNet: halved by averaging while twice too long, then one bicubic step."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def tarflow_crop(image: Image.Image, size: int) -> Image.Image:
    """As TARFlow's code prepares its images: torchvision's Resize(size), one bilinear step, and CenterCrop(size)."""
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


CROPS: Mapping[str, Callable[[Image.Image, int], Image.Image]] = {"adm": adm_crop, "tarflow": tarflow_crop}


def reason_of(error: Exception) -> str:
    """In a few words, without the path, why a file could not be decoded."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_many_pixels(Image.MAX_IMAGE_PIXELS or 0)
    system = error.strerror if isinstance(error, OSError) else None
    return system or str(error).partition("\n")[0] or type(error).__name__


def _check_size(width: int, height: int, most_pixels: int | None) -> None:
    """Raise for what would take up the memory, judged by the header alone."""
    if most_pixels is not None and width * height > most_pixels:
        raise InputError(_too_many_pixels(most_pixels))
    if max(width, height) > MOST_STRETCHED * min(width, height):
        raise InputError(f"{width}x{height} pixels, one side more than {MOST_STRETCHED} times the other")


def _too_many_pixels(most: int) -> str:
    return f"more than {most // 10**6} megapixels, which may be a decompression bomb"


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF tells nothing, and the image may be whole
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of 32 bits within the range of 16, brought to 8; other modes have 8 bits already."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float32)
    if not (values.min() >= 0 and values.max() <= 65535):
        raise InputError("grey values that do not fit into 16 bits")
    if image.mode == "F" and values.max() <= 1:
        raise InputError("floating-point grey values up to 1, not 65535; save them with 8 or 16 bits")
    grey = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if "transparency" in image.info:  # the one value of a PNG that stands for nothing
        opaque = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
        return Image.merge("LA", (grey, Image.fromarray(opaque)))
    return grey
