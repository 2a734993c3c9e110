"""Grey images of more than 8 bits: which value is white, by the file's type and its range of values."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from biflow.errors import InputError

STRIP_PIXELS = 2**20  # converted at a time: temporary copies stay small beside the image
BITS, PHOTOMETRIC = 258, 262  # TIFF tags
WHITE_IS_ZERO = 0
EIGHT = 255
SIXTEEN = 65535
TWELVE = 4095
TEN = 1023  # of 65535: at most five of 256 levels would be left

Box = tuple[int, int, int, int]


class Grey(NamedTuple):
    """How the values of a file were read."""

    white: int = 255  # the value that became 255
    largest: int = 255  # in the file, if it has more than 8 bits


def is_wide(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def strips(image: Image.Image) -> Iterator[tuple[Box, Image.Image]]:
    """The image in strips of whole rows, each with its place."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield box, image.crop(box)


def converted(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The image in another mode, converted strip by strip."""
    done = Image.new(mode, image.size)
    for box, strip in strips(image):
        done.paste(convert(strip), box)
    return done


def extremes(image: Image.Image) -> tuple[float, float]:
    """The least and the largest value of a grey image; NaN if one is NaN."""
    arrays = (np.asarray(strip) for _, strip in strips(image))
    ends = [(array.min(), array.max()) for array in arrays]
    return float(np.min([low for low, _ in ends])), float(np.max([high for _, high in ends]))


def highest(image: Image.Image) -> int:
    """The largest value of an image of one channel of 8 bits."""
    return int(np.max(image.getextrema()))


def eight_bits(image: Image.Image, white_of: Callable[[Image.Image, float], int]) -> tuple[Image.Image, Grey]:
    """Convert wide grey to 8 bits, with its transparent value as alpha; white is what `white_of` tells."""
    low, high = extremes(image)
    if not (low >= 0 and high <= SIXTEEN):
        raise InputError(f"grey values from {low:.6g} to {high:.6g}, outside 0-65535; save them with 8 or 16 bits")
    white, transparent = white_of(image, high), image.info.get("transparency")  # a grey value, in PNG
    inverted = image.format == "TIFF" and _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO

    def convert(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip).astype(np.float32)
        scaled = np.rint((white - values if inverted else values) * np.float64(255 / white))
        grey = Image.fromarray(scaled.astype(np.uint8))
        if transparent is None:
            return grey
        opaque = np.where(values == transparent, 0, 255).astype(np.uint8)
        return Image.merge("LA", (grey, Image.fromarray(opaque)))

    return converted(image, "L" if transparent is None else "LA", convert), Grey(white, int(high))


def white_of(image: Image.Image, largest: float) -> int:
    """The value that is white in a wide grey image; raises if neither the type nor the range of values tells.

    Unsigned files of 9 to 16 bits say it.  Other files hold any range: 255 or 65535 is taken if the largest value is
    within, and above a sixteenth of it.
    """
    bits = _tag(image, BITS) if image.format == "TIFF" else None
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        white = 2**bits - 1 if bits and 8 < bits < 16 else SIXTEEN
        if white == SIXTEEN:
            check_filled(largest, "grey")
        return white
    whites = (255,) if bits == 16 else (255, SIXTEEN)  # signed 16 bits do not reach 65535
    for white in whites:
        if not largest or white / 16 < largest <= white:
            return white
    kind = "floating-point" if image.mode == "F" else "signed"
    raise InputError(
        f"{kind} grey values up to {largest:.6g}, neither the range 0-255 nor 0-65535; save them with 8 or 16 bits"
    )


def deep_colour(image: Image.Image) -> Callable[[Image.Image], Grey]:
    """How the values of a colour image are read; called before it is loaded, when Pillow drops 8 of 16 bits."""
    deep = not is_wide(image) and any(";16" in str(part[3]) for part in getattr(image, "tile", ()))

    def read(loaded: Image.Image) -> Grey:
        if not deep:
            return Grey()
        top = max(highest(loaded.getchannel(band)) for band in loaded.getbands() if band != "A")
        largest = 256 * top + 255
        check_filled(largest, "colour")
        return Grey(SIXTEEN, largest)

    return read


def check_filled(largest: float, what: str) -> None:
    """Raise if 16-bit values leave nothing of a picture in 8 bits: then they are 8 or 10 bits kept in 16."""
    if 0 < largest <= TEN:
        raise InputError(
            f"16-bit {what} values of at most {largest:.0f} of 65535, nearly black unless they have fewer bits; "
            "save them with 8 bits, or scaled to 16"
        )


def is_doubtful(grey: Grey) -> bool:
    """Whether an image was read as 16 bits, but has no more than 12."""
    return grey.white == SIXTEEN and 0 < grey.largest <= TWELVE


def doubts(greys: Iterable[Grey]) -> list[str]:
    """Warnings on the images of one folder: no 16-bit image passes 12 bits, or white differs from file to file.

    >>> doubts([Grey(65535, 4000), Grey(65535, 60000), Grey()])
    []
    >>> doubts([Grey(65535, 4000), Grey(65535, 900), Grey()])[0][:44]
    'No 16-bit image has a value above 4000 of 65'
    """
    wide = [grey for grey in greys if grey != Grey() and grey.largest]
    deep = [grey for grey in wide if grey.white == SIXTEEN]
    found = []
    if deep and all(map(is_doubtful, deep)):
        found.append(
            f"No 16-bit image has a value above {max(grey.largest for grey in deep)} of 65535: all are nearly black. "
            "If they have 12 bits, save them with 8 bits or scaled to 16."
        )
    if deep and any(grey.white == EIGHT for grey in wide):
        found.append(
            "Some images of more than 8 bits are read as 0 to 255, others as 0 to 65535, by each one's largest value. "
            "Save them alike, with 8 or 16 bits."
        )
    return found


def _tag(image: Image.Image, number: int) -> int | None:
    """The first value of a TIFF tag."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value
