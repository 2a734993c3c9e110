"""The forward flow: images -> noise, exactly, with a likelihood (TARFlow, arXiv 2412.06329)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from biflow.config import ModelConfig
from biflow.losses.likelihood import normal_log_prob
from biflow.models.flow_block import FlowBlock


class FlowPass(NamedTuple):
    """One pass through the flow, data -> noise."""

    z: Tensor  # (B, T, D), the noise
    log_det: Tensor  # (B,), log|dz/dx| in nats, summed over T and D
    states: list[Tensor]  # num_blocks + 1 tensors (B, T, D): the data, then each block's output


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

    def forward(self, patches: Tensor, labels: Tensor) -> FlowPass:
        """patches (B, T, D) and labels (B,), the null label for "no class" -> `FlowPass`."""
        states = [patches]
        log_dets = []
        for block in self.blocks:
            x, log_det = block(states[-1], labels)
            states.append(x)
            log_dets.append(log_det)
        return FlowPass(states[-1], torch.stack(log_dets).sum(0), states)

    def log_prob(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Log-density of the (noisy) patches (B, T, D) given labels (B,): (B,) nats, summed over T and D."""
        return self.log_prob_of(self(patches, labels))

    def log_prob_of(self, flow_pass: FlowPass) -> Tensor:
        """Log-density of what one pass was given: (B,) nats, summed over T and D."""
        return normal_log_prob(flow_pass.z, self.prior_variance) + flow_pass.log_det

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Standard normal noise (B, T, D) -> a draw from the prior (B, T, D)."""
        return noise * self.prior_variance.sqrt()
