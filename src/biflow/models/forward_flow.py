"""The forward flow: images -> noise, exactly, with a likelihood (TARFlow, arXiv 2412.06329)."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biflow.config import ModelConfig
from biflow.losses.likelihood import normal_log_prob
from biflow.models.flow_block import FlowBlock

Place = tuple[int, int]
"""A block and a layer of it, both counted from 1, block 1 at the data."""


class FlowPass(NamedTuple):
    """One pass through the flow, data -> noise."""

    z: Tensor  # (B, T, D), the noise
    log_det: Tensor  # (B,), log|dz/dx| in nats, summed over T and D
    states: list[Tensor]  # num_blocks + 1 tensors (B, T, D): the data, then each block's output
    features: Mapping[Place, Tensor]  # (B, T, C) of the places asked for, in the image's order


class ForwardFlow(nn.Module):
    """Blocks in a row, reading the patches in alternating directions.

    The prior is normal with mean 0 and variance `prior_variance` (T, D): ones, unless the flow preserves volume.
    """

    prior_variance: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(FlowBlock(config, place) for place in range(config.flow.blocks))
        self.register_buffer("prior_variance", torch.ones(config.num_patches, config.patch_dim))

    def forward(self, patches: Tensor, labels: Tensor, places: Collection[Place] = ()) -> FlowPass:
        """patches (B, T, D) and labels (B,), the null label for "no class" -> `FlowPass`.

        places: of the features to give out on the way.
        """
        return self.forward_given(patches, self.conditions(labels), places)

    def conditions(self, labels: Tensor) -> list[Tensor]:
        """labels (B,) -> each block's vector for them, (B, 1, C)."""
        return [block.classes(labels) for block in self.flow_blocks]

    def forward_given(self, patches: Tensor, conditions: Sequence[Tensor], places: Collection[Place] = ()) -> FlowPass:
        """The same with a vector (B, 1, C) for each block in the place of labels."""
        states, log_dets = [patches], []
        features: dict[Place, Tensor] = {}
        for number, (block, condition) in enumerate(zip(self.blocks, conditions, strict=True), start=1):
            layers = [layer for place, layer in places if place == number]
            x, log_det, found = block(states[-1], condition, layers)
            states.append(x)
            log_dets.append(log_det)
            features |= {(number, layer): output for layer, output in found.items()}
        return FlowPass(states[-1], torch.stack(log_dets).sum(0), states, features)

    @torch.no_grad()
    def largest_log_scales(self, patches: Tensor, labels: Tensor) -> list[float]:
        """For each block, the one at the data first, the log-scale of largest size for these patches (B, T, D)."""
        found = []
        for block, condition in zip(self.flow_blocks, self.conditions(labels), strict=True):
            found.append(block.predict(block.reading_order(patches), condition).log_scale.abs().max().item())
            patches = block(patches, condition).z
        return found

    @property
    def flow_blocks(self) -> list[FlowBlock]:
        """The blocks, the one at the data first."""
        return [block for block in self.blocks if isinstance(block, FlowBlock)]

    def log_prob(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Log-density of the (noisy) patches (B, T, D) given labels (B,): (B,) nats, summed over T and D."""
        return self.log_prob_of(self(patches, labels))

    def log_prob_of(self, flow_pass: FlowPass) -> Tensor:
        """Log-density of what one pass was given: (B,) nats, summed over T and D."""
        return normal_log_prob(flow_pass.z, self.prior_variance) + flow_pass.log_det

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise (B, T, D) -> a draw from the prior (B, T, D)."""
        return noise * self.prior_variance.sqrt()
