"""Images of the user's own at a model's size: one file, several, a folder, or a file of samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from biflow.data.decode import FORMATS, IMAGE_SUFFIXES, at_size, decode, reason_of
from biflow.data.images import read_samples
from biflow.data.scan import list_images
from biflow.errors import InputError

MOST_NAMED = 5  # files in one sentence
MOST_NOTES = 3  # sentences about changes


class Picture(NamedTuple):
    """An image at a model's size."""

    name: str
    pixels: Tensor  # uint8 (P, H, W)
    size: tuple[int, int] = (0, 0)  # width and height in the file
    changes: tuple[str, ...] = ()  # made to bring it to that size


class Pictures(NamedTuple):
    """Images at a model's size, and the files that could not be read."""

    all: list[Picture]
    rejected: Mapping[str, str]  # file -> reason

    @property
    def pixels(self) -> Tensor:
        """uint8 (N, P, H, W)."""
        return torch.stack([each.pixels for each in self.all])

    @property
    def names(self) -> list[str]:
        """Their names, in order."""
        return [each.name for each in self.all]

    def notes(self) -> list[str]:
        """What was left out and what was changed, in sentences."""
        left_out = [f"Left out {in_words(self.rejected)}."] if self.rejected else []
        return left_out + notes_on(self.all)


def read_pictures(
    given: Path | Sequence[Path], size: int, channels: int, *, most_pixels: int | None = None
) -> Pictures:
    """Files, all images of a folder and the folders in it, or an ADM sample file, at a model's size.

    Files that cannot be read, or have more than most_pixels, are left out and named; raises if none can be read.
    """
    if channels not in {1, 3}:
        raise InputError(f"Expected a model of grey or RGB images; got one of {channels} channels.")
    if isinstance(given, Path):
        check_exists(given)
        if given.suffix == ".npz" and given.is_file():
            return _read_npz(given, size, channels)
    files = named_files(given)
    found: list[Picture] = []
    rejected = {}
    for name, file in files.items():
        try:
            found.append(read_picture(file, size, channels, name=name, most_pixels=most_pixels))
        except Exception as error:  # Pillow's decoders raise a dozen types
            rejected[name] = reason_of(error)
    if not found:
        where = f" in {given}" if isinstance(given, Path) else ""
        why = f"cannot read {in_words(rejected)}" if files else "there is none"
        raise InputError(f"Expected images ({', '.join(sorted(IMAGE_SUFFIXES))}){where}; {why}.")
    return Pictures(found, rejected)


def named_files(given: Path | Sequence[Path]) -> dict[str, Path]:
    """The files by name; those of a folder by their path in it."""
    if not isinstance(given, Path):
        return {f"{file.name} ({i})" if i else file.name: file for file, i in _numbered(given)}
    if given.is_dir():
        return {name: given / name for name in list_images(given)}
    return {given.name: given}


def read_picture(file: Path, size: int, channels: int, *, name: str = "", most_pixels: int | None = None) -> Picture:
    """One image file at a model's size, transparent parts on white; raises whatever Pillow does."""
    image, mode, _ = decode(file, most_pixels=most_pixels)
    if mode in ("1", "L", "LA") or mode.startswith("I"):
        image = image.convert("L")  # grey on white is grey
    white = ["composited on white"] * shows_through(file)
    changes = (*white, *changes_to(image, size, channels))
    return Picture(name or file.name, at_size(image, size, channels), image.size, changes)


def changes_to(image: Image.Image, size: int, channels: int) -> list[str]:
    """What `at_size` does to an image that is not of the model's kind.

    >>> changes_to(Image.new("RGB", (640, 480)), 64, 1)
    ['converted to grey', 'resized to 64x64', 'cropped to the central square']
    """
    grey = ["converted to grey"] * (image.mode == "RGB" and channels == 1)
    resized = [f"resized to {size}x{size}"] * (image.size != (size, size))
    return [*grey, *resized, *["cropped to the central square"] * (image.width != image.height)]


def shows_through(file: Path) -> bool:
    """Whether any pixel of an image is less than opaque."""
    with Image.open(file, formats=FORMATS) as image:
        if not image.has_transparency_data or image.mode.startswith("I"):
            return image.has_transparency_data
        return image.convert("RGBA").getchannel("A").getextrema()[0] != 255


def notes_on(pictures: Sequence[Picture]) -> list[str]:
    """What was done to images to bring them to the model's size; those that needed nothing are not named.

    >>> notes_on([Picture("a.png", torch.empty(0), changes=("converted to grey",)), Picture("b.png", torch.empty(0))])
    ['a.png was converted to grey.']
    """
    alike: dict[tuple[str, ...], list[Picture]] = {}
    for picture in pictures:
        if picture.changes:
            alike.setdefault(picture.changes, []).append(picture)
    groups = sorted(alike.items(), key=lambda group: -len(group[1]))
    named = MOST_NOTES - (len(groups) > MOST_NOTES)
    notes = [
        f"{group[0].name} was {listed(changes)}." if len(group) == 1 else f"{len(group)} images were {listed(changes)}."
        for changes, group in groups[:named]
    ]
    rest = sum(len(group) for _, group in groups[named:])
    return notes + ([f"{rest} more were converted in other ways."] * (rest > 0))


def listed(words: Sequence[str]) -> str:
    """Words in a row.

    >>> listed(["composited on white", "converted to grey", "resized to 8x8"])
    'composited on white, converted to grey and resized to 8x8'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def in_words(wrong: Mapping[str, str]) -> str:
    """Files with what is wrong with each, the first few by name.

    >>> in_words({"a.txt": "not an image", "b.png": "an empty file"})
    'a.txt (not an image), b.png (an empty file)'
    """
    named = [f"{name} ({reason})" for name, reason in list(wrong.items())[:MOST_NAMED]]
    return ", ".join(named) + (f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else "")


def check_exists(path: Path) -> None:
    """Raise unless there is a file or folder of this name that can be looked at."""
    try:
        path.stat()
    except OSError as error:
        raise InputError(
            f"Expected a folder of images or an image file; cannot read {path} ({error.strerror})."
        ) from None


def _numbered(files: Sequence[Path]) -> list[tuple[Path, int]]:
    """Each file with how many before it have the same name."""
    names = [file.name for file in files]
    return [(file, names[:i].count(file.name)) for i, file in enumerate(files)]


def _read_npz(path: Path, size: int, channels: int) -> Pictures:
    pixels = read_samples(path).pixels
    if tuple(pixels.shape[1:]) != (channels, size, size):
        raise InputError(
            f"Expected uint8 images of shape (N, {size}, {size}, {channels}) in {path}, as the model's; "
            f"got {tuple(pixels.permute(0, 2, 3, 1).shape)}."
        )
    return Pictures([Picture(f"{path.name}[{i}]", image) for i, image in enumerate(pixels)], {})
