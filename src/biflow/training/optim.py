"""The optimiser with its parameter groups, the learning-rate schedule, and the moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from biflow.config import FitConfig
from biflow.training.distributed import spread_like


def make_optimizer(model: nn.Module, config: FitConfig) -> AdamW:
    """AdamW; weight decay acts on matrices, not on biases, gains and embeddings' norms."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_learning_rate(optimizer: Optimizer, config: FitConfig, step: int) -> None:
    """The learning rate of a step: linear warm-up, then constant or a cosine; a pure function of the step."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * learning_rate_factor(step, config)


def learning_rate_factor(step: int, config: FitConfig) -> float:
    """The share of the full learning rate at a step.

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
    """Exponential moving average of a model's parameters; short-sighted at first, so that it forgets the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = dict(model.named_parameters())
        self.average = {name: parameter.detach().clone() for name, parameter in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the live parameters, after training step `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.live.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the averaged weights; after it the live ones, to the bit."""
        live = {name: parameter.detach().clone() for name, parameter in self.live.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.live.items():
                    parameter.copy_(live[name])

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the live parameters by their average."""
        for name, parameter in self.live.items():
            parameter.copy_(self.average[name])

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, value in self.average.items():
            value.copy_(spread_like(state[name], value))
