"""The processes of a launcher, torchrun or accelerate launch, or one."""

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
"""Seconds to wait before destroying a process group. gloo's thread needs the GIL to release the tensors of the last
collective, and destroying the group waits for that thread while holding the GIL: a deadlock."""


@dataclass(frozen=True)
class World:
    """This process's rank, the number of processes, and the device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This process's share of a global batch, (n, ...) -> (n / size, ...)."""
        if len(items) % self.size:
            raise InputError(
                f"Expected a batch size divisible by {self.size} processes; got {len(items)}. "
                f"Set batch_size to a multiple of {self.size}."
            )
        return items.tensor_split(self.size)[self.rank]

    def any(self, flags: Tensor) -> Tensor:
        """Whether each flag (0 or 1) is set in any process: 0 or 1, from one all-reduce; collective."""
        return (mean_over_processes(flags) > 0).to(flags.dtype)

    def wait(self) -> None:
        """Barrier."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; collective."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Result of an action in the main process, None in the others, which wait; all raise its exception."""
        fault: list[Exception | None] = [None]
        result = None
        if self.is_main:
            try:
                result = action()
            except Exception as error:  # of any type: the others must not hang
                fault = [error]
        if self.size > 1:
            dist.broadcast_object_list(fault)
        if fault[0]:
            if isinstance(fault[0], InputError):
                fault[0].alone = False
            raise fault[0]
        return result


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes; collective."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def was_restarted() -> bool:
    """Whether torchrun or SLURM restarted this process after a failure or pre-emption."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count.isdigit() and int(count) > 0 for count in counts)


@contextmanager
def join_world() -> Iterator[World]:
    """Join the launcher's process group; a world of one process without a launcher."""
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
