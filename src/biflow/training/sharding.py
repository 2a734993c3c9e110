"""Distributed models: DDP or FSDP2, and their full state for checkpoints."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from biflow.distributed import World
from biflow.nn.transformer import TransformerLayer


def parallelise(module: nn.Module, sharding: str, world: World) -> nn.Module:
    """Wrap a module in DDP ("ddp"), or shard a copy by FSDP2 layer by layer ("fsdp"); itself in a single process."""
    if sharding == "ddp" or world.size == 1:
        module = module.to(world.device)
        return DistributedDataParallel(module) if world.size > 1 else module
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    copy = deepcopy(module).to(world.device)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in copy.modules():
        if isinstance(part, TransformerLayer):
            fully_shard(part, mesh=mesh)
    fully_shard(copy, mesh=mesh)
    return copy


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor if it is sharded; collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Place a full tensor, present in every process, on the device of `like`, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def full_state(state: Mapping[str, Any], world: World) -> dict[str, Any]:
    """Gather sharded tensors on the CPU of the main process; other values are kept. Empty elsewhere; collective."""
    found = {}
    for name, value in state.items():
        full = full_tensor(value) if isinstance(value, Tensor) else value
        if world.is_main:
            found[name] = full.cpu() if isinstance(full, Tensor) else full
    return found


def set_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a full state dict into a model that may be sharded."""
    own = model.state_dict()
    model.load_state_dict({name: shard_like(value, own[name]) for name, value in state.items()})


def clip_gradients(parts: Sequence[nn.Module], limit: float) -> Tensor:
    """Clip the gradient norm of each part separately; returns the norm over all parts before clipping."""
    norms = [full_tensor(nn.utils.clip_grad_norm_(part.parameters(), limit)) for part in parts]
    return torch.stack(norms).norm()
