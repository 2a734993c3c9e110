"""Data sets in memory: .npz files of images and labels, and MNIST-style IDX files."""

import gzip
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from biflow.config import ReadingConfig
from biflow.console import counted, printable, some
from biflow.data.datasets import ImageSet, Split, is_held_out
from biflow.data.decode import at_size, check_channels
from biflow.data.images import to_pil
from biflow.data.labels import match_classes, note_classes, number_classes
from biflow.data.npz import Arrays, as_labels, as_pixels, read_arrays
from biflow.errors import InputError
from biflow.inputs import open_regular

LAYOUTS = (  # names of training images and labels, and of test images and labels: ADM, Keras, MedMNIST
    ("arr_0", "arr_1"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
TEST_NAMES = ("test", "val")  # of a second file, beside train.npz
IDX_SPLITS = {"train": ("train",), "test": ("t10k", "test")}
IDX_BYTES = 8  # the code of uint8 in an IDX file's header

Shape = tuple[int, int, int]


class Found(NamedTuple):
    """Images of one split as they are stored."""

    pixels: Tensor  # uint8 (N, P, H, W)
    labels: Tensor | None  # int64 (N,), 0 or more
    class_names: tuple[str, ...]  # empty if the classes have no names
    origin: str  # for messages


def open_arrays(kind: str, path: Path, image_shape: Shape, reading: ReadingConfig) -> Split[ImageSet]:
    """Open "npz" or "idx" data at image_shape (P, H, W)."""
    return _split(READERS[kind](path), image_shape, reading)


def read_npz_sets(path: Path) -> list[Found]:
    """Read FILE.npz, or train.npz and perhaps test.npz of a folder: the training set, and any test set.

    Images are uint8 (N, H, W, 3), or (N, H, W) for grey, as arr_0; labels, if any, arr_1; names of the classes, if any,
    class_names, strings. The arrays may also be called as in files for Keras or MedMNIST, which hold a test set too.
    """
    if not path.is_dir():
        return read_arrays(path, partial(_read_sets, path))
    files = [path / f"{name}.npz" for name in ("train", *TEST_NAMES)]
    if not files[0].is_file():
        raise InputError(f"Expected train.npz in {path}; found none. Give an .npz file, or call it train.npz.")
    present = [file for file in files if file.is_file()][:2]
    train, *tests = [read_arrays(file, partial(_read_sets, file))[0] for file in present]
    return [train, *(test._replace(class_names=test.class_names or train.class_names) for test in tests)]


def _read_sets(path: Path, arrays: Arrays) -> list[Found]:
    """The training set of a file, and its test set if it has one."""
    for images, labels, *test in LAYOUTS:
        if train := _read(path, arrays, images, labels):
            held_out = _read(path, arrays, *test) if test else None
            return [train, held_out] if held_out else [train]
    known = some([names[0] for names in LAYOUTS])
    raise InputError(f"Expected images in {path}, as {known}; found none. Write it with savez(FILE, images, labels).")


def _read(path: Path, arrays: Arrays, images_name: str, labels_name: str) -> Found | None:
    images, labels, names = arrays(images_name), arrays(labels_name), arrays("class_names")
    if images is None:
        return None
    pixels = as_pixels(images, f"{images_name} of {path}")
    checked = None if labels is None else as_labels(labels, len(pixels), f"{labels_name} of {path}")
    class_names = () if names is None else tuple(printable(str(name)) for name in names.reshape(-1).tolist())
    if len(set(class_names)) != len(class_names):
        raise InputError(f"Expected different class names in {path}; got {some(class_names)}. Rename those alike.")
    return Found(pixels, checked, class_names, str(path))


def read_idx_sets(path: Path) -> list[Found]:
    """Read a folder of IDX files, such as train-images-idx3-ubyte.gz: the training set, and any test set.

    The labels name the classes; the test set is that of t10k- or test-.
    """
    if not path.is_dir():
        raise InputError(
            f"Expected a folder of IDX files; {path} is not a folder. Give that of train-images-idx3-ubyte."
        )
    found = []
    for split, names in IDX_SPLITS.items():
        images = _idx_file(path, names, "images", needed=split == "train")
        labels = _idx_file(path, names, "labels", needed=images is not None)
        if images and labels:
            pixels = as_pixels(read_idx(images), str(images))
            found.append(Found(pixels, as_labels(read_idx(labels), len(pixels), str(labels)), (), str(path)))
    return found


def _idx_file(folder: Path, splits: Iterable[str], what: str, *, needed: bool) -> Path | None:
    """The one IDX file of a split with images or labels."""
    names = [file for file in sorted(folder.glob(f"*{what}*idx*")) if any(split in file.name for split in splits)]
    if len(names) > 1 or (needed and not names):
        found = some([file.name for file in names]) or "none"
        raise InputError(
            f"Expected one IDX file of {what} of {' or '.join(splits)} in {folder}; found {found}. Give a folder with "
            "the files of one data set, by their usual names, such as train-images-idx3-ubyte.gz."
        )
    return names[0] if names else None


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes from an IDX file, plain or gzipped (Y. LeCun's format of MNIST)."""
    try:
        with open_regular(path) as file:
            content = gzip.decompress(file.read()) if path.suffix == ".gz" else file.read()
        zeros, kind, dims = content[:2], content[2], content[3]
        shape = np.frombuffer(content, ">u4", dims, offset=4).tolist()
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dims)
    except (OSError, EOFError, ValueError, IndexError, zlib.error):
        raise InputError(f"Expected an IDX file; cannot read {path}. Download it again.") from None
    if zeros != b"\0\0" or kind != IDX_BYTES:
        raise InputError(f"Expected an IDX file of bytes; {path} is not one. Give the files as they are published.")
    if values.size != np.prod(shape, dtype=np.int64):
        raise InputError(
            f"Expected {np.prod(shape, dtype=np.int64):,} bytes of values in {path}; got {values.size:,}. Download it "
            "again."
        )
    return values.reshape(shape).copy()


def _split(found: list[Found], image_shape: Shape, reading: ReadingConfig) -> Split[ImageSet]:
    """Training and test data with the same classes; without a test set, a share is held out by the images' bytes."""
    check_channels(image_shape)
    train, *tests = found
    labels, names = classes_of(train)
    note_classes(labels, names, train.origin)
    images = ImageSet(_at_size(train.pixels, image_shape, reading), labels, names)
    if not tests:
        share = reading.test_share
        is_test = torch.tensor([share > 0 and is_held_out(image.numpy().tobytes(), share) for image in train.pixels])
        return Split(images.take(~is_test), images.take(is_test))
    test = ImageSet(_at_size(tests[0].pixels, image_shape, reading), labels_among(tests[0], names), names)
    return Split(images, test)


def labels_among(found: Found, names: tuple[str, ...]) -> Tensor:
    """Labels (N,) of a test set as indices of the training set's classes."""
    labels, own_names = classes_of(found)
    if bool(own_names) != bool(names):
        raise InputError(f"Expected labels in the training set and {found.origin}, or in neither. Add them.")
    if own_names == names:
        return labels
    return match_classes(labels, own_names, names, found.origin, repair="Leave these images out.")


def classes_of(found: Found) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) and the names of their classes: the integers themselves if they have none; () without labels."""
    names, labels = found.class_names, found.labels
    if labels is None:
        return torch.zeros(len(found.pixels), dtype=torch.int64), ()
    if not names:
        return number_classes(labels)
    if (largest := int(labels.max())) >= len(names):
        raise InputError(
            f"Expected labels from 0 to {len(names) - 1} in {found.origin}, since it names "
            f"{counted(len(names), 'class')}; got {largest}. Correct them, or leave out class_names."
        )
    return labels, names


def _at_size(pixels: Tensor, image_shape: Shape, reading: ReadingConfig) -> Tensor:
    """Images (N, P', H', W') converted, resized and cropped like image files: (N, P, H, W)."""
    if pixels.shape[1:] == image_shape:
        return pixels
    channels, size, _ = image_shape
    with ThreadPoolExecutor() as threads:
        images = threads.map(lambda image: at_size(to_pil(image), size, channels, crop=reading.crop), pixels)
        return torch.stack([*images])


READERS = {"npz": read_npz_sets, "idx": read_idx_sets}
