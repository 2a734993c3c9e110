"""The forward flow: images -> noise with an exact likelihood (TARFlow, arXiv 2412.06329)."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biflow.config import ModelConfig
from biflow.losses.likelihood import normal_log_prob
from biflow.models.flow_block import FlowBlock

LayerIndex = tuple[int, int]
"""(block, layer), both counted from 1; block 1 is next to the data."""


class FlowPass(NamedTuple):
    """Forward pass of the flow, data -> noise."""

    z: Tensor  # (B, T, D), the noise
    log_det: Tensor  # (B,), log|dz/dx| in nats, summed over T and D
    states: list[Tensor]  # num_blocks + 1 tensors (B, T, D): the data, then each block's output
    features: Mapping[LayerIndex, Tensor]  # (B, T, C) of each requested layer, in the image's order


class ForwardFlow(nn.Module):
    """TARFlow: a stack of autoregressive affine blocks that read the patches in alternating directions.

    The prior is normal with mean 0 and variance `prior_variance` (T, D), which is 1 unless the flow preserves volume.
    """

    prior_variance: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(FlowBlock(config, i) for i in range(config.flow.blocks))
        self.register_buffer("prior_variance", torch.ones(config.num_patches, config.patch_dim))

    def forward(self, patches: Tensor, labels: Tensor, layers: Collection[LayerIndex] = ()) -> FlowPass:
        """patches (B, T, D) and labels (B,) or the null label -> `FlowPass`, with the features of these layers."""
        return self.forward_conditioned(patches, self.conditions(labels), layers)

    def conditions(self, labels: Tensor) -> list[Tensor]:
        """labels (B,) -> each block's class embedding (B, 1, C)."""
        return [block.classes(labels) for block in self.flow_blocks]

    def forward_conditioned(
        self, patches: Tensor, conditions: Sequence[Tensor], layers: Collection[LayerIndex] = ()
    ) -> FlowPass:
        """The same with one condition (B, 1, C) per block instead of labels."""
        states, log_dets = [patches], []
        features: dict[LayerIndex, Tensor] = {}
        for number, (block, condition) in enumerate(zip(self.blocks, conditions, strict=True), start=1):
            block_layers = [layer for block_number, layer in layers if block_number == number]
            x, log_det, outputs = block(states[-1], condition, block_layers)
            states.append(x)
            log_dets.append(log_det)
            features |= {(number, layer): output for layer, output in outputs.items()}
        return FlowPass(states[-1], torch.stack(log_dets).sum(0), states, features)

    @torch.no_grad()
    def largest_log_scales(self, patches: Tensor, labels: Tensor) -> list[float]:
        """Largest absolute log-scale of each block for these patches (B, T, D), data side first."""
        largest = []
        for block, condition in zip(self.flow_blocks, self.conditions(labels), strict=True):
            largest.append(block.predict(block.reading_order(patches), condition).log_scale.abs().max().item())
            patches = block(patches, condition).z
        return largest

    @property
    def flow_blocks(self) -> list[FlowBlock]:
        """The blocks, data side first."""
        return [block for block in self.blocks if isinstance(block, FlowBlock)]

    def log_prob(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Log-density of (noisy) patches (B, T, D) given labels (B,): (B,) in nats, summed over T and D."""
        return self.log_prob_of(self(patches, labels))

    def log_prob_of(self, flow_pass: FlowPass) -> Tensor:
        """Log-density of the input of a forward pass: (B,) in nats, summed over T and D."""
        return normal_log_prob(flow_pass.z, self.prior_variance) + flow_pass.log_det

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise (B, T, D) -> a sample of the prior (B, T, D)."""
        return noise * self.prior_variance.sqrt()


def differentiable(flow: ForwardFlow) -> ForwardFlow:
    """The flow, or a copy if its weights were cast or moved in inference mode, which autograd refuses to read."""
    return deepcopy(flow) if any(parameter.is_inference() for parameter in flow.parameters()) else flow
