"""What the training loop trains: a module that maps a batch to a loss and its terms."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biflow.distributed import mean_over_processes
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify
from biflow.models.reverse_model import ReverseModel
from biflow.training.batches import Batch


class LossParts(NamedTuple):
    """A loss and its terms."""

    total: Tensor  # scalar, with gradient
    parts: Mapping[str, Tensor]  # detached scalars, for logging

    def over_processes(self) -> dict[str, float]:
        """The loss and its terms by name, averaged over all processes; collective."""
        named = {"loss": self.total.detach(), **self.parts}
        return {name: mean_over_processes(value).item() for name, value in named.items()}


def mean_loss(losses: Sequence[LossParts]) -> LossParts:
    """Mean of losses and of their terms, without gradient."""
    parts = {name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in losses[0].parts}
    return LossParts(torch.stack([loss.total.detach() for loss in losses]).mean(), parts)


class Objective(nn.Module):
    """A loss and the model that it trains: `Batch` -> `LossParts`; the attributes say how its batches are made."""

    noise_std = 0.0  # of the Gaussian noise on clean images
    bin_width = 0.0  # of the uniform dequantisation noise
    max_guidance = 0.0  # of the sampled guidance strengths
    samples_prior = False  # whether batches include noise to sample from
    sees_images = False  # whether batches include the images when the flow models latents

    def __init__(self, model: nn.Module, flow: ForwardFlow | None = None) -> None:
        super().__init__()
        self.model = model
        self.flow = flow  # which the loss evaluates, trained or frozen

    @property
    def parts(self) -> list[nn.Module]:
        """Parts of the model whose gradients are clipped separately."""
        return [self.model]

    def after_step(self, skipped: Tensor) -> None:
        """Update what the optimiser does not, after a step; `skipped` (scalar, 0 or 1) if it changed nothing."""

    def check_resumed(self) -> None:
        """Raise unless the state that was just loaded matches the frozen networks of the loss."""

    def networks(self, model: nn.Module) -> tuple[ForwardFlow | None, ReverseModel | None]:
        """The flow and reverse model to sample with: those in a copy of the model, else a frozen flow or None."""
        parts = [*model.modules()]
        flow = next((part for part in parts if isinstance(part, ForwardFlow)), self.flow)
        return flow, next((part for part in parts if isinstance(part, ReverseModel)), None)

    @torch.no_grad()
    def diagnose(self, batch: Batch) -> str:
        """Where numbers grew, after training diverged on a batch: the flow's first block with NaN or Inf in its scale.

        If none has any, the block with the largest; "" without a flow.
        """
        if self.flow is None:
            return ""
        sizes = self.flow.largest_log_scales(patchify(batch.noisy, self.flow.config.patch_size), batch.labels)
        broken = [number for number, size in enumerate(sizes, start=1) if not math.isfinite(size)]
        if broken:
            return f"Block {broken[0]} of the flow (block 1 is at the data) is the first with NaN or Inf in its scale."
        number = sizes.index(max(sizes)) + 1
        bound = " Bound it with model.flow.clip." if self.flow.config.flow.clip is None else ""
        return (
            f"The largest log-scale is {max(sizes):.3g}, in block {number} of the flow (block 1 is at the data).{bound}"
        )
