"""Files of arrays as ADM's evaluator writes them: arr_0 with images, arr_1 with labels."""

import os
import zipfile
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from biflow.errors import InputError
from biflow.files import replace_file
from biflow.inputs import open_regular

T = TypeVar("T")
Arrays = Callable[[str], np.ndarray | None]
"""The array of a name, or None."""


class Samples(NamedTuple):
    """Images of a sample file, and their labels if it has any."""

    pixels: Tensor  # uint8 (N, P, H, W)
    labels: Tensor | None  # (N,)


def write_npz(path: Path, pixels: Tensor, labels: Tensor, class_names: tuple[str, ...] = ()) -> None:
    """Write the ADM evaluator's format, arr_0 uint8 (N, H, W, P) and arr_1 int64 (N,), with any class names."""
    arrays: dict[str, Any] = {"arr_0": pixels.permute(0, 2, 3, 1).numpy(), "arr_1": labels.numpy()}
    if class_names:
        arrays["class_names"] = np.array(class_names)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_samples(path: Path) -> Samples:
    """Read an ADM sample file: arr_0 uint8 (N, H, W, P) and, optionally, arr_1 (N,)."""
    images, labels = read_arrays(path, lambda array: (array("arr_0"), array("arr_1")))
    if images is None:
        raise InputError(
            f"Expected arr_0 with images in {path}, the ADM sample format; found no such array. Write it with "
            "np.savez(FILE, images, labels)."
        )
    pixels = as_pixels(images, f"arr_0 of {path}")
    return Samples(pixels, None if labels is None else as_labels(labels, len(pixels), f"arr_1 of {path}"))


def read_arrays(path: Path, read: Callable[[Arrays], T]) -> T:
    """Read arrays of an .npz file; nothing in it is executed."""
    try:
        with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
            _check_entries(file.zip, opened)
            return read(lambda name: file[name] if name in file.files else None)
    except InputError:
        raise
    except Exception:  # other files raise many types
        raise InputError(
            f"Expected arrays written by numpy's savez in {path}, without Python objects; cannot read it. Copy or "
            "write it again."
        ) from None


def as_pixels(images: np.ndarray, origin: str) -> Tensor:
    """Images uint8 (N, H, W) or (N, H, W, 1 or 3) -> (N, P, H, W)."""
    if images.dtype.kind == "f":
        raise InputError(
            f"Expected uint8 images, 0 to 255, in {origin}; got {images.dtype}. Scale and round them, then use "
            "astype('uint8')."
        )
    grey = images[..., None] if images.ndim == 3 else images
    if grey.dtype != np.uint8 or grey.ndim != 4 or grey.shape[-1] not in {1, 3} or not grey.size:
        found = f"{images.shape} {images.dtype}"
        raise InputError(
            f"Expected uint8 images (N, H, W, 3), or (N, H, W) for grey, in {origin}; got {found}. Transpose or "
            "convert them."
        )
    return torch.from_numpy(grey).permute(0, 3, 1, 2).contiguous()


def as_labels(labels: np.ndarray, count: int, origin: str) -> Tensor:
    """Integer labels (N,) or (N, 1), one for each of `count` images -> int64 (N,), 0 or more."""
    if labels.dtype.kind not in "iu" or labels.shape not in {(count,), (count, 1)}:
        raise InputError(
            f"Expected {count} integer labels in {origin}; got {labels.shape} {labels.dtype}. Write one integer per "
            "image; argmax(axis=1) turns one-hot labels into integers."
        )
    if labels.size and int(labels.min()) < 0:
        raise InputError(f"Expected labels from 0 in {origin}; got {int(labels.min())}. Remove images without a class.")
    return torch.from_numpy(labels.astype(np.int64).reshape(count))


def _check_entries(archive: zipfile.ZipFile, file: BufferedReader) -> None:
    """Raise where a damaged name, or list of names, would make an array look absent."""
    for name in archive.namelist():
        archive.open(name).close()  # raises unless the name stands before the array too
    file.seek(-22 - len(archive.comment), os.SEEK_END)  # the record that ends an archive
    if int.from_bytes(file.read(12)[10:], "little") != len(archive.namelist()):
        raise ValueError("an entry is missing")
