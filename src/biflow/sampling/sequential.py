"""The exact inverse of the flow, patch by patch (TARFlow, arXiv 2412.06329)."""

import torch
from torch import Tensor

from biflow.models.forward_flow import ForwardFlow
from biflow.sampling.guidance import NO_GUIDANCE, Guidance, guide
from biflow.sampling.result import SamplerOutput, zero_if_finite


@torch.no_grad()
def invert_sequentially(
    flow: ForwardFlow, z: Tensor, labels: Tensor, *, guidance: Guidance = NO_GUIDANCE
) -> SamplerOutput:
    """Invert the flow exactly, up to rounding: noise z (B, T, D) and labels (B,) -> patches (B, T, D)."""
    guided = guide(flow, labels, guidance)
    x = z
    for level in reversed(range(len(guided.blocks))):
        x = guided.invert_block(level, x)
    calls = len(guided.blocks) * (z.shape[1] - 1)
    return SamplerOutput(x, calls, calls, zero_if_finite(x))
