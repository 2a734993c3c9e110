"""Reading the images of each training step: ahead of time where there are processes for it, once where they fit."""

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

SMALL = 2**30  # bytes of decoded images that are kept in memory without being asked for


class Examples(NamedTuple):
    """One process's images of a step, as they lie in the data set."""

    images: Tensor  # uint8 (B, P, H, W)
    labels: Tensor  # (B,)
    indices: list[int]  # their places, which the random numbers of each are drawn for


class Kept:
    """Images that are decoded the first time they are read, by several threads, and kept in memory."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        try:
            self.images = torch.empty(len(source), *source.image_shape, dtype=torch.uint8)
        except RuntimeError:
            raise InputError(
                f"Expected {size_in_memory(source) / 2**30:,.1f} GiB of memory for {len(source):,} decoded images; got "
                "less. Set reading.cache=none."
            ) from None
        self.known = torch.zeros(len(source), dtype=torch.bool)
        self.threads = ThreadPoolExecutor(thread_name_prefix="decode")

    def read(self, places: Tensor) -> Tensor:
        """The images at these places (n,): uint8 (n, P, H, W)."""
        missing = places[~self.known[places]].unique()[:, None]  # (m, 1)
        for place, image in zip(missing, self.threads.map(self.source.read, missing), strict=True):
            self.images[place] = image
            self.known[place] = True
        return self.images[places]


def size_in_memory(source: ImageSource) -> int:
    """Bytes that all images of a data set take, decoded."""
    return len(source) * math.prod(source.image_shape)


PlacesAt = Callable[[int], Tensor]
"""A function step -> the places (B,) of its images; it depends on the step alone."""


class Steps(Dataset[Examples | InputError]):
    """The examples of each step, by its number, or why there are none.

    An error is handed over: raised in a worker, it would come out with its traceback in its text.
    """

    def __init__(self, source: ImageSource, places_at: PlacesAt, steps: int, *, keep: bool) -> None:
        self.places_at, self.steps, self.labels = places_at, steps, source.labels
        self.images = Kept(source) if keep else source

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Examples | InputError:
        places = self.places_at(step)
        try:
            return Examples(self.images.read(places), self.labels[places], places.tolist())
        except InputError as error:
            return error


def unless_fault(found: Examples | InputError) -> Examples:
    """The examples; raise where a worker handed over an error instead."""
    if isinstance(found, InputError):
        raise found
    return found


def loader(dataset: Dataset[Examples | InputError], sampler: Iterable[Any], workers: int) -> DataLoader[Any]:
    """A loader whose workers are forked from a clean process: threads of this one could leave a lock in theirs."""
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
    """A function step -> `Examples`; with workers, those of the steps that follow are being read meanwhile."""

    def __init__(
        self, source: ImageSource, places_at: PlacesAt, *, steps: int, workers: int, keep: bool = False
    ) -> None:
        self.steps, self.workers = Steps(source, places_at, steps, keep=keep), workers
        self.ahead: Iterator[Examples | InputError] = iter(())
        self.next_step = -1

    def __call__(self, step: int) -> Examples:
        """The examples of one step; quick if it is the one after the last that was asked for."""
        if not self.workers:
            return unless_fault(self.steps[step])
        if step != self.next_step:
            self.ahead = iter(())  # the old workers end before new ones, which would inherit them, begin
            following = torch.arange(step, len(self.steps)).tolist()
            self.ahead = iter(loader(self.steps, following, self.workers))
        self.next_step = step + 1
        return unless_fault(next(self.ahead))
