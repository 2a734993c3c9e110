"""A model spread over several processes: DDP or FSDP2, and its state put together and spread again."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from biflow.distributed import World
from biflow.nn.transformer import TransformerLayer


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
