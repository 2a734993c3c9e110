"""Read the user's images at the model's size: files, folders, or ADM sample files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from biflow.config.run import PictureReading
from biflow.console import printable
from biflow.data.decode import at_size, convert, opened, reason_of
from biflow.data.formats import IMAGE_SUFFIXES
from biflow.data.greys import is_doubtful
from biflow.data.listing import list_folder
from biflow.data.npz import read_samples
from biflow.data.scan import in_words
from biflow.errors import InputError

MAX_NOTES = 3  # sentences about changes
DEFAULT_READING = PictureReading()


class Picture(NamedTuple):
    """An image at the model's size."""

    name: str  # printable
    pixels: Tensor  # uint8 (P, H, W)
    size: tuple[int, int] = (0, 0)  # width and height of the file
    changes: tuple[str, ...] = ()  # conversions applied, in words
    crop: str = "adm"  # how it was resized and cropped


class Pictures(NamedTuple):
    """Images at the model's size, and the files that could not be read."""

    all: list[Picture]
    rejected: Mapping[str, str]  # file -> reason
    passed_over: str = ""  # what a folder holds besides image files, in words

    @property
    def pixels(self) -> Tensor:
        """uint8 (N, P, H, W)."""
        return torch.stack([each.pixels for each in self.all])

    @property
    def names(self) -> list[str]:
        """Names of the images, in order."""
        return [each.name for each in self.all]

    def notes(self) -> list[str]:
        """Sentences about skipped files and conversions."""
        passed = [f"{self.passed_over.capitalize()}."] * bool(self.passed_over)
        return [*passed, *[f"Skipped {in_words(self.rejected)}."] * bool(self.rejected), *notes_on(self.all)]


def read_pictures(
    given: Path | Sequence[Path],
    size: int,
    channels: int,
    *,
    reading: PictureReading = DEFAULT_READING,
    max_pixels: int | None = None,
) -> Pictures:
    """Read files, a folder with its subfolders, or an ADM sample file, resized and cropped to the model's size.

    reading: `Pipeline.reading`, with which the model's training images were read.  Unreadable files, and those with
    more than max_pixels, are skipped and listed in `rejected`; raises if none is left.
    """
    if channels not in {1, 3}:
        raise InputError(f"Expected a model of grey or RGB images; got one of {channels} channels.")
    if isinstance(given, Path):
        try:
            given.stat()
        except OSError as error:
            raise InputError(f"Expected image files or a folder; cannot read {given} ({error.strerror}).") from None
        if given.suffix == ".npz" and given.is_file():
            return _read_npz(given, size, channels)
    files, passed_over = named_files(given)
    found: list[Picture] = []
    rejected = {}
    for name, file in files.items():
        try:
            found.append(read_picture(file, size, channels, name=name, reading=reading, max_pixels=max_pixels))
        except Exception as error:  # Pillow's decoders raise many types
            rejected[name] = reason_of(error)
    if not found:
        where = f" in {given}" if isinstance(given, Path) else ""
        why = f"cannot read {in_words(rejected)}" if files else passed_over or "found none"
        raise InputError(f"Expected images ({', '.join(sorted(IMAGE_SUFFIXES))}){where}; {why}. Choose others.")
    return Pictures(found, rejected, passed_over)


def named_files(given: Path | Sequence[Path]) -> tuple[dict[str, Path], str]:
    """Files by unique name, those of a folder by relative path; and what was passed over there, in words."""
    if not isinstance(given, Path):
        files: dict[str, Path] = {}
        for file in given:
            earlier = sum(file.name == other.name for other in files.values())
            files[f"{file.name} ({earlier})" if earlier else file.name] = file
        return files, ""
    if given.is_dir():
        listing = list_folder(given)
        return {name: given / name for name in listing.images}, listing.passed_over()
    return {given.name: given}, ""


def read_picture(
    file: Path,
    size: int,
    channels: int,
    *,
    name: str = "",
    reading: PictureReading = DEFAULT_READING,
    max_pixels: int | None = None,
) -> Picture:
    """Read one image file at the model's size; raises Pillow's errors."""
    with opened(file, max_pixels) as source:
        image, mode, _, grey, composited = convert(source, reading.background)
        if mode in ("1", "L", "LA") or mode.startswith("I"):
            image = image.convert("L")  # LA composited on a grey level is still grey
        dark = ["read as 16-bit grey, nearly black; save 12-bit images with 8 bits"] * is_doubtful(grey)
        laid = [f"composited on {reading.background}"] * composited
        changes = (*dark, *laid, *changes_to(image, size, channels))
        pixels = at_size(image, size, channels, crop=reading.crop)
        return Picture(printable(name or file.name), pixels, image.size, changes, reading.crop)


def changes_to(image: Image.Image, size: int, channels: int) -> list[str]:
    """The conversions that `at_size` applies, in words.

    >>> changes_to(Image.new("RGB", (640, 480)), 64, 1)
    ['converted to grey', 'resized to 64x64', 'cropped to the central square']
    """
    grey = ["converted to grey"] * (image.mode == "RGB" and channels == 1)
    resized = [f"resized to {size}x{size}"] * (image.size != (size, size))
    return [*grey, *resized, *["cropped to the central square"] * (image.width != image.height)]


def notes_on(pictures: Sequence[Picture]) -> list[str]:
    """Sentences about conversions, for the images that had any.

    >>> notes_on([Picture("a.png", torch.empty(0), changes=("converted to grey",)), Picture("b.png", torch.empty(0))])
    ['a.png was converted to grey.']
    """
    by_changes: dict[tuple[str, ...], list[Picture]] = {}
    for picture in pictures:
        if picture.changes:
            by_changes.setdefault(picture.changes, []).append(picture)
    groups = sorted(by_changes.items(), key=lambda group: -len(group[1]))
    named = MAX_NOTES - (len(groups) > MAX_NOTES)
    notes = [
        f"{group[0].name} was {listed(changes)}." if len(group) == 1 else f"{len(group)} images were {listed(changes)}."
        for changes, group in groups[:named]
    ]
    rest = sum(len(group) for _, group in groups[named:])
    return notes + ([f"{rest} more had other conversions."] * (rest > 0))


def listed(words: Sequence[str]) -> str:
    """Join words with commas and "and".

    >>> listed(["composited on white", "converted to grey", "resized to 8x8"])
    'composited on white, converted to grey and resized to 8x8'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _read_npz(path: Path, size: int, channels: int) -> Pictures:
    pixels = read_samples(path).pixels
    if tuple(pixels.shape[1:]) != (channels, size, size):
        raise InputError(
            f"Expected uint8 images of the model's shape, (N, {size}, {size}, {channels}), in {path}; "
            f"got {tuple(pixels.permute(0, 2, 3, 1).shape)}."
        )
    return Pictures([Picture(printable(f"{path.name}[{i}]"), image) for i, image in enumerate(pixels)], {})
