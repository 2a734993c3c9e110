"""Decode image files to pixels at the model's size."""

import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from biflow.data.formats import HEAD_BYTES, SUPPORTED, fault_of
from biflow.data.greys import Grey, deep_colour, eight_bits, is_wide, strips, white_of
from biflow.data.pixel_budget import PIXELS
from biflow.errors import InputError

MAX_ASPECT = 32  # resized to the model's shorter side, a longer strip would not fit into memory
GREY_MODES = {"1", "L", "I", "F"}
UPRIGHT = {  # what turns an image of each EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FIRST_SIDEWAYS = 5  # from here on, orientations swap width and height


class DecodedImage(NamedTuple):
    """A decoded image file."""

    image: Image.Image  # grey or RGB, 8 bits, upright, opaque
    mode: str  # Pillow's mode of the file
    format: str
    grey: Grey = Grey()
    composited: bool = False  # it had transparent pixels


class FileFacts(NamedTuple):
    """Properties of a file that can be decoded."""

    width: int  # upright
    height: int
    mode: str
    format: str
    white: int  # the value read as white, and the largest one of a file of more than 8 bits
    largest: int


def read_image(
    source: Path | BytesIO, size: int, channels: int, *, crop: str = "adm", background: str = "white"
) -> Tensor:
    """Read an image file as uint8 (P, size, size), converted to grey or RGB, resized and cropped."""
    with opened(source) as file:
        return at_size(as_seen(file, background), size, channels, crop=crop)


def decode(path: Path, background: str = "white", *, max_pixels: int | None = None) -> DecodedImage:
    """Decode a file completely; of animations and multi-page files, the first frame. Raises if it is unreadable."""
    with opened(path, max_pixels) as file:
        return convert(file, background)


def inspect(path: Path) -> FileFacts:
    """Decode a file as `decode` does, JPEG at an eighth of its size, and keep its properties only."""
    with opened(path) as file:
        width, height = file.size
        file.draft(file.mode, (1, 1))
        is_draft = file.size != (width, height)
        if is_draft and _orientation(file) >= FIRST_SIDEWAYS:
            width, height = height, width
        image, mode, kind, grey, _ = convert(file)
        return FileFacts(*((width, height) if is_draft else image.size), mode, kind, *grey)


@contextmanager
def opened(source: Path | BytesIO, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image file, its header checked and nothing decoded; waits while other threads hold too many pixels."""
    if isinstance(source, Path):
        _check_file(source)
    try:
        file = Image.open(source, formats=tuple(SUPPORTED))
    except UnidentifiedImageError:
        raise InputError(fault_of(_head(source))) from None
    with file:
        _check_size(*file.size, max_pixels or Image.MAX_IMAGE_PIXELS)
        with PIXELS.take(file.width * file.height):
            yield file


def as_seen(image: Image.Image, background: str = "white") -> Image.Image:
    """Convert an image of any mode to 8-bit grey or RGB: EXIF rotation applied, transparency on a background."""
    return convert(image, background).image


def convert(
    image: Image.Image, background: str = "white", *, white_of: Callable[[Image.Image, float], int] = white_of
) -> DecodedImage:
    """Convert an image of any mode to 8-bit grey or RGB, upright and opaque; Pillow reduces 16-bit colour itself.

    white_of: which value is white in grey of more than 8 bits, from the image and its largest value.
    """
    mode, kind, grey_of = image.mode, image.format or "", deep_colour(image)
    image.load()  # some formats report or apply the orientation only then
    image = _upright(image)
    image, grey = eight_bits(image, white_of) if is_wide(image) else (image, grey_of(image))
    composited = False
    if image.has_transparency_data:
        image, composited = _composite(image, background)
    wanted = "L" if image.mode in GREY_MODES else "RGB"
    return DecodedImage(image if image.mode == wanted else image.convert(wanted), mode, kind, grey, composited)


def at_size(image: Image.Image, size: int, channels: int, *, crop: str = "adm") -> Tensor:
    """Resize the shorter side of a grey or RGB image to `size` and crop the centre: uint8 (P, size, size)."""
    mode = "L" if channels == 1 else "RGB"
    image = CROPS[crop](image if image.mode == mode else image.convert(mode), size)
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


def check_channels(image_shape: tuple[int, int, int]) -> None:
    """Raise unless images are to be decoded to grey or RGB."""
    if image_shape[0] not in {1, 3}:
        raise InputError(
            f"Expected a model of grey or RGB images, 1 or 3 channels; got {image_shape[0]}. Set model.channels."
        )


def reason_of(error: Exception) -> str:
    """Why a file could not be decoded, in a few words, without its path."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_many_pixels(Image.MAX_IMAGE_PIXELS or 0)
    system = error.strerror if isinstance(error, OSError) else None
    return system or str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _check_file(path: Path) -> None:
    """Raise unless this is a file that is not empty."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("not a file")
    if not status.st_size:
        raise InputError("an empty file")


def _head(source: Path | BytesIO) -> bytes:
    """The first bytes of a file."""
    if isinstance(source, BytesIO):
        return source.getvalue()[:HEAD_BYTES]
    with source.open("rb") as file:
        return file.read(HEAD_BYTES)


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    """Raise if an image of this size, read from the header, would exhaust the memory."""
    if max_pixels is not None and width * height > max_pixels:
        raise InputError(_too_many_pixels(max_pixels))
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{width}x{height} pixels, one side more than {MAX_ASPECT} times the other")


def _too_many_pixels(most: int) -> str:
    return f"more than {most // 10**6} megapixels, which may be a decompression bomb"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, a key of UPRIGHT, or 1 if there is none."""
    with suppress(Exception):  # damaged EXIF; the image itself may be intact
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if found in UPRIGHT else 1
    return 1


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation."""
    if (orientation := _orientation(image)) == 1:
        return image
    turned = image.transpose(UPRIGHT[orientation])
    turned.format = image.format
    return turned


def _composite(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """Lay an image on a background, as RGB, strip by strip; and whether the background shows through."""
    done, shows_through = Image.new("RGB", image.size), False
    for box, strip in strips(image):
        rgba = strip.convert("RGBA")
        shows_through |= rgba.getchannel("A").getextrema()[0] != 255
        done.paste(Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB"), box)
    return done, shows_through
