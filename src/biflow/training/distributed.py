"""The processes that train together.  PyTorch's own engine; the only file that reads what a launcher sets.

Started plainly, the world is one process.  Started by torchrun (or accelerate launch), each process joins
the others; nothing else in the project needs to know which it was.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from biflow.errors import InputError
from biflow.nn.transformer import TransformerLayer

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


def replicate(module: nn.Module, world: World) -> nn.Module:
    """The module, with gradients averaged over all processes."""
    return DistributedDataParallel(module) if world.size > 1 else module


def shard(module: nn.Module, world: World) -> nn.Module:
    """A copy whose parameters are spread over all processes (FSDP2), each layer gathered while it is evaluated.

    The module itself is left as it was.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    copy = deepcopy(module).to(world.device)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in copy.modules():
        if isinstance(part, TransformerLayer):
            fully_shard(part, mesh=mesh)
    fully_shard(copy, mesh=mesh)
    return copy


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over the processes, put together; all must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, spread over the processes as `like` is."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_state(tensors: Mapping[str, Any], world: World) -> dict[str, Any]:
    """Tensors by name, put together on the CPU of the main process, and what is no tensor as it is; all must call."""
    found = {}
    for name, value in tensors.items():
        together = whole(value) if isinstance(value, Tensor) else value
        if world.is_main:
            found[name] = together.cpu() if isinstance(together, Tensor) else together
    return found


def set_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take up a whole state, however the processes share the model now."""
    own = model.state_dict()
    model.load_state_dict({name: spread_like(value, own[name]) for name, value in state.items()})


def clip_gradients(parts: Sequence[nn.Module], limit: float) -> Tensor:
    """Clip the gradient of each part alone to this norm; returns the norm of all of them before."""
    norms = [whole(nn.utils.clip_grad_norm_(part.parameters(), limit)) for part in parts]
    return torch.stack(norms).norm()


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
