"""The processes that train together.  PyTorch's own engine; the only file that reads what a launcher sets.

Started plainly, the world is one process.  Started by torchrun (or accelerate launch), each process joins
the others; nothing else in the project needs to know which it was.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from biflow.errors import InputError


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

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over all processes."""
        return DistributedDataParallel(module) if self.size > 1 else module

    def mean(self, value: Tensor) -> Tensor:
        """A scalar averaged over all processes."""
        return mean_over_processes(value)

    def any(self, flag: bool) -> bool:
        """True if the flag is set in any process."""
        if self.size == 1:
            return flag
        return self.mean(torch.tensor(float(flag), device=self.device)).item() > 0

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
            raise fault[0]


def mean_over_processes(value: Tensor) -> Tensor:
    """A tensor averaged over all processes that train together; all must call."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


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
    finally:
        dist.destroy_process_group()
