"""Reading the images of each training step, ahead of time where there are processes for it."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from biflow.data.datasets import ImageSource
from biflow.errors import InputError


class Examples(NamedTuple):
    """One process's images of a step, as they lie in the data set."""

    images: Tensor  # uint8 (B, P, H, W)
    labels: Tensor  # (B,)
    indices: list[int]  # their places, which the random numbers of each are drawn for


PlacesAt = Callable[[int], Tensor]
"""A function step -> the places (B,) of its images; it depends on the step alone."""


class Steps(Dataset[Examples | InputError]):
    """The examples of each step, by its number, or why there are none.

    An error is handed over: raised in a worker, it would come out with its traceback in its text.
    """

    def __init__(self, source: ImageSource, places_at: PlacesAt, steps: int) -> None:
        self.source, self.places_at, self.steps = source, places_at, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Examples | InputError:
        places = self.places_at(step)
        try:
            return Examples(self.source.read(places), self.source.labels[places], places.tolist())
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

    def __init__(self, source: ImageSource, places_at: PlacesAt, *, steps: int, workers: int) -> None:
        self.steps, self.workers = Steps(source, places_at, steps), workers
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
