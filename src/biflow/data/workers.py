"""Processes that read ahead, in order: torch's DataLoader, which passes bytes instead of tensors.

Tensors would pass through shared memory, of which containers have little.
"""

import io
import multiprocessing
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from biflow.errors import InputError

R = TypeVar("R")

PRELOADED = "biflow.data.reader"  # imported once, for all workers


def map_in_workers(function: Callable[[Any], R], items: Iterable[Any], workers: int) -> Iterator[R]:
    """Results of a picklable function in the order of the items, computed ahead by this many processes."""
    # forking a process with threads can deadlock; Windows has no other way than spawn
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    context.set_forkserver_preload([PRELOADED])
    loader = DataLoader(
        Results(function),
        sampler=map(to_bytes, items),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        worker_init_fn=ignore_stop_signals,
    )
    try:
        yield from map(pickle.loads, loader)
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise InputError(
            "Expected reading workers to run until training ends; one was killed, often for lack of memory. "
            "Lower reading.workers, and resume with --resume."
        ) from None


class Results(Dataset[bytes]):
    """Applies a function to pickled items; the results are pickled too."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        self.payload = to_bytes(function)

    @cached_property
    def function(self) -> Callable[[Any], object]:
        """The function, unpickled once in each process."""
        function: Callable[[Any], object] = pickle.loads(self.payload)
        return function

    def __getitem__(self, item: bytes) -> bytes:
        return to_bytes(self.function(pickle.loads(item)))


def ignore_stop_signals(_: int) -> None:
    """Ignore Ctrl-C and SIGTERM: they may go to all processes, but training still reads to the end of its step."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def to_bytes(value: Any) -> bytes:
    """Pickle a value, with tensors as NumPy arrays: torch's own way to send them takes shared memory."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if type(value) is Tensor else NotImplemented
