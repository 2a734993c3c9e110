"""Optimisers and their parameter groups, the learning-rate schedule, and the averaged weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from biflow.config import FitConfig
from biflow.distributed import World
from biflow.errors import InputError
from biflow.nn.attention import Attention
from biflow.nn.transformer import SwiGLU, layer_matrices
from biflow.training.sharding import full_state, shard_like


class Optimizers:
    """AdamW for all parameters; with `optimizer: muon`, Muon for the matrices inside transformer layers."""

    def __init__(self, model: nn.Module, config: FitConfig) -> None:
        self.config = config
        self.parameters = dict(model.named_parameters())
        matrices = layer_matrices(model) if config.optimizer == "muon" else []
        by_muon = set(matrices)
        rest = [p for p in self.parameters.values() if p.requires_grad and p not in by_muon]
        self.all: list[Optimizer] = [make_adamw(rest, config)]
        if matrices:
            self.all.append(make_muon(model, matrices, config))
        self.groups = [(group, group["lr"]) for each in self.all for group in each.param_groups]
        self.owners = {p: each for each in self.all for group in each.param_groups for p in group["params"]}

    def set_learning_rate(self, step: int) -> None:
        """Set the learning rates of a step; they depend on the step alone."""
        for group, full in self.groups:
            group["lr"] = full * learning_rate_factor(step, self.config)

    def step(self, found_inf: Tensor) -> None:
        """Update the parameters unless `found_inf` (scalar, 0 or 1) is set; a GPU is not synchronised."""
        if not found_inf.is_cuda and found_inf:
            return
        for each in self.all:
            if isinstance(each, AdamW):
                each.grad_scale, each.found_inf = None, found_inf  # type: ignore[attr-defined]  # for the fused kernel
                each.step()
            else:
                with reverted_if(found_inf, each) if found_inf.is_cuda else nullcontext():
                    each.step()

    def state_dict(self, world: World) -> dict[str, dict[str, Any]]:
        """Full optimiser state by parameter name; collective."""
        states = {p: owner.state.get(p, {}) for p, owner in self.owners.items()}
        return {name: full_state(states.get(p, {}), world) for name, p in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load a full state into a model that may be sharded."""
        for name, p in self.parameters.items():
            if p in self.owners:
                self.owners[p].state[p] = {
                    key: shard_like(value, p) if value.shape == p.shape else value.to(p.device)
                    for key, value in state[name].items()
                }


def make_adamw(parameters: Sequence[nn.Parameter], config: FitConfig) -> AdamW:
    """AdamW with weight decay on tensors of two or more dimensions, none on biases and gains."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def make_muon(model: nn.Module, matrices: Sequence[nn.Parameter], config: FitConfig) -> Optimizer:
    """Muon for these matrices; raises if torch is too old."""
    if not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"Expected torch 2.9 or newer for optimizer=muon; got {torch.__version__}. Upgrade, or set optimizer=adamw."
        )
    from biflow.training.muon import Muon

    stacked = {part.qkv.weight: 3 for part in model.modules() if isinstance(part, Attention)}
    stacked |= {part.gate_and_up.weight: 2 for part in model.modules() if isinstance(part, SwiGLU)}
    return Muon(
        matrices,
        lr=config.muon_learning_rate,
        weight_decay=config.weight_decay,
        count_parts=lambda matrix: stacked.get(matrix, 1),
    )


@contextmanager
def reverted_if(flag: Tensor, optimizer: Optimizer) -> Iterator[None]:
    """Context that reverts the optimiser's step if the flag (scalar, 0 or 1) is set, without synchronising a GPU."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    before = [tensor.detach().clone() for tensor in tensors]
    yield
    with torch.no_grad():
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(flag.bool(), old, tensor))


def learning_rate_factor(step: int, config: FitConfig) -> float:
    """Learning rate at a step relative to the peak: linear warm-up, then constant or cosine decay.

    >>> learning_rate_factor(0, FitConfig(steps=10, warmup_steps=2))
    0.5
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    last = config.last_learning_rate / config.learning_rate
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class EMA:
    """Exponential moving average of a model's parameters, with a lower decay at first to forget the initial weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = dict(model.named_parameters())
        self.average = {name: parameter.detach().clone() for name, parameter in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after training step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.live.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averaged weights; the trained ones are restored exactly."""
        live = {name: parameter.detach().clone() for name, parameter in self.live.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            self.copy_to_model(live)

    @torch.no_grad()
    def copy_to_model(self, values: Mapping[str, Tensor] | None = None) -> None:
        """Replace the model's parameters by their average, or by these values."""
        for name, value in (values or self.average).items():
            self.live[name].copy_(value)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load saved averages."""
        for name, value in self.average.items():
            value.copy_(shard_like(state[name], value))
