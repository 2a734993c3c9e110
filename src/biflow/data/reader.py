"""Reads the images of each training step, prefetched by workers or cached in memory."""

import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from biflow.data.datasets import ImageSource
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
            raise InputError(
                f"Expected {size_in_memory(source) / 2**30:,.1f} GiB of memory for {len(source):,} decoded images; got "
                "less. Set reading.cache=none."
            ) from None
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


IndicesAt = Callable[[int], Tensor]
"""A pure function step -> indices (B,) of its images."""


class Steps(Dataset[Examples | InputError]):
    """The examples of each step.

    Errors are returned: if a worker raised them, their text would contain its traceback.
    """

    def __init__(self, source: ImageSource, indices_at: IndicesAt, steps: int, *, keep: bool) -> None:
        self.indices_at, self.steps, self.labels = indices_at, steps, source.labels
        self.images = CachedImages(source) if keep else source

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Examples | InputError:
        indices = self.indices_at(step)
        try:
            return Examples(self.images.read(indices), self.labels[indices], indices.tolist())
        except InputError as error:
            return error


def raise_if_error(result: Examples | InputError) -> Examples:
    """Return the examples, or raise the error that a worker returned."""
    if isinstance(result, InputError):
        raise result
    return result


def loader(dataset: Dataset[Examples | InputError], sampler: Iterable[Any], workers: int) -> DataLoader[Any]:
    """A DataLoader with forkserver workers, since forking a process with threads can deadlock."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
    )


class Reader:
    """A function step -> `Examples`; workers prefetch the next steps. keep: cache decoded images in memory."""

    def __init__(
        self, source: ImageSource, indices_at: IndicesAt, *, steps: int, workers: int, keep: bool = False
    ) -> None:
        self.steps, self.workers = Steps(source, indices_at, steps, keep=keep), workers
        self.ahead: Iterator[Examples | InputError] = iter(())
        self.next_step = -1

    def __call__(self, step: int) -> Examples:
        """The examples of one step, fast for consecutive steps."""
        if not self.workers:
            return raise_if_error(self.steps[step])
        if step != self.next_step:
            self.ahead = iter(())  # stop the old workers first: new ones would inherit them
            following = torch.arange(step, len(self.steps)).tolist()
            self.ahead = iter(loader(self.steps, following, self.workers))
        self.next_step = step + 1
        return raise_if_error(next(self.ahead))
