"""Reads the images of each training step, prefetched by workers or cached in memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biflow.data.datasets import ImageSource
from biflow.data.workers import map_in_workers
from biflow.errors import InputError

SMALL = 2**30  # bytes of decoded images that are cached by default


class Examples(NamedTuple):
    """One process's images of a step, unprocessed."""

    images: Tensor  # uint8 (B, P, H, W)
    labels: Tensor  # (B,)
    indices: list[int]  # in the data set; keys of random numbers


class CachedImages:
    """Images that are decoded by several threads when first read, and kept in memory."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        try:
            self.images = torch.empty(len(source), *source.image_shape, dtype=torch.uint8)
        except RuntimeError:
            size = f"{size_in_memory(source) / 2**30:,.1f} GiB of memory for {len(source):,} decoded images"
            raise InputError(f"Expected {size}; got less. Set reading.cache=none.") from None
        self.cached = torch.zeros(len(source), dtype=torch.bool)
        self.threads = ThreadPoolExecutor(thread_name_prefix="decode")

    def read(self, indices: Tensor) -> Tensor:
        """The images at these indices (n,): uint8 (n, P, H, W)."""
        missing = indices[~self.cached[indices]].unique()[:, None]  # (m, 1)
        for index, image in zip(missing, self.threads.map(self.source.read, missing), strict=True):
            self.images[index] = image
            self.cached[index] = True
        return self.images[indices]


def size_in_memory(source: ImageSource) -> int:
    """Bytes of all decoded images of a data set."""
    return len(source) * math.prod(source.image_shape)


def read_ahead(read: Callable[[Any], Examples], items: Iterable[Any], workers: int) -> Iterator[Examples | InputError]:
    """Read the examples of these items in order, prefetched by workers if there are any."""
    attempted = partial(attempt, read)
    return map_in_workers(attempted, items, workers) if workers else map(attempted, items)


def attempt(read: Callable[[Any], Examples], item: Any) -> Examples | InputError:
    """Read the examples of an item; an error is returned, so that batches read ahead of it are still used."""
    try:
        return read(item)
    except InputError as error:
        return error


class Reader:
    """A function step -> `Examples`, fast for consecutive steps; `start(step)` reads that step and all later ones.

    `start` must not reference this reader, whose deletion stops its workers.
    """

    def __init__(self, start: Callable[[int], Iterator[Examples | InputError]]) -> None:
        self.start, self.next_step = start, -1
        self.ahead: Iterator[Examples | InputError] = iter(())

    def __call__(self, step: int) -> Examples:
        """The examples of one step."""
        if step != self.next_step:
            self.ahead = iter(())  # stop the old workers first: new ones would inherit them
            self.ahead = self.start(step)
        self.next_step = step + 1
        result = next(self.ahead)
        if isinstance(result, InputError):
            raise result
        return result


def image_reader(
    source: ImageSource, indices_at: Callable[[int], Tensor], *, steps: int, workers: int, keep: bool = False
) -> Reader:
    """Read a map-style data set; `indices_at` maps a step to indices (B,). keep: cache decoded images in memory."""
    read = partial(read_images, CachedImages(source) if keep else source, source.labels, indices_at)
    return Reader(lambda step: read_ahead(read, range(step, steps), workers))


def read_images(
    images: ImageSource | CachedImages, labels: Tensor, indices_at: Callable[[int], Tensor], step: int
) -> Examples:
    """Read the images of one step."""
    indices = indices_at(step)
    return Examples(images.read(indices), labels[indices], indices.tolist())
