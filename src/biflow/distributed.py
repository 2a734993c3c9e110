"""The processes that work together.  PyTorch's own engine; the only file that reads what a launcher sets.

Started plainly, the world is one process.  Started by torchrun (or accelerate launch), each process joins
the others; nothing else in the project needs to know which it was.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from biflow.errors import InputError

T = TypeVar("T")

SETTLING = 0.2
"""Seconds before a group of processes is given up.  gloo's thread lets go of the tensors of the last exchange a moment
after it, and needs the interpreter's lock for that; who deletes the group waits for that thread and holds the lock.
"""


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True in the one process that prints and writes files."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This process's part of a global batch, (n, ...) -> (n / size, ...)."""
        if len(items) % self.size:
            raise InputError(
                f"Expected a batch that {self.size} processes can share evenly; got {len(items)}. "
                f"Set batch_size to a multiple of {self.size}."
            )
        return items.tensor_split(self.size)[self.rank]

    def mean(self, value: Tensor) -> Tensor:
        """A scalar averaged over all processes."""
        return mean_over_processes(value)

    def any(self, flags: Tensor) -> Tensor:
        """For each flag, 0 or 1, whether it is set in any process: 0 or 1; one exchange for all of them."""
        return (self.mean(flags) > 0).to(flags.dtype)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """What every process has, by rank; all must call."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def on_main(self, action: Callable[[], None]) -> None:
        """Let the main process act while the others wait; what it raises, all of them raise."""
        fault: list[Exception | None] = [None]
        if self.is_main:
            try:
                action()
            except Exception as error:  # whatever it is, the others must not wait for ever
                fault = [error]
        if self.size > 1:
            dist.broadcast_object_list(fault)
        if fault[0]:
            if isinstance(fault[0], InputError):
                fault[0].alone = False
            raise fault[0]


def mean_over_processes(value: Tensor) -> Tensor:
    """A tensor averaged over all processes that train together; all must call."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def was_restarted() -> bool:
    """Whether a launcher started this process again, after others of the same run had failed or were pre-empted."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count.isdigit() and int(count) > 0 for count in counts)


@contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that a launcher started, or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(rank, size, device)
    except InputError as error:
        error.alone = error.alone is None
        raise
    finally:
        time.sleep(SETTLING)
        dist.destroy_process_group()
