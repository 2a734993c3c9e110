"""The exact inverse of the flow, patch by patch (TARFlow, arXiv 2412.06329)."""

import torch
from torch import Tensor

from biflow.models.flow_block import Affine, FlowBlock, restore
from biflow.models.forward_flow import ForwardFlow
from biflow.sampling.guidance import NO_GUIDANCE, Guidance, extrapolate
from biflow.sampling.result import Sample


@torch.no_grad()
def invert_sequentially(flow: ForwardFlow, z: Tensor, labels: Tensor, *, guidance: Guidance = NO_GUIDANCE) -> Sample:
    """Noise z (B, T, D) and labels (B,) -> the patches that the flow maps to z; exact up to rounding.

    With guidance the passes with and without the label run as one doubled batch.
    """
    x, calls = z, 0
    for block in reversed(list(flow.blocks)):
        assert isinstance(block, FlowBlock)
        conditions = [block.classes(labels)]
        if guidance.strength:
            conditions.append(block.classes(torch.full_like(labels, flow.config.null_label)))
        x = invert_block(block, x, torch.cat(conditions), guidance)
        calls += z.shape[1] - 1
    return Sample(x, calls)


def invert_block(block: FlowBlock, z: Tensor, condition: Tensor, guidance: Guidance) -> Tensor:
    """Undo one block: z (B, T, D) -> x (B, T, D).

    condition (B, 1, C), or (2B, 1, C) with the unconditional half last when there is guidance.
    """
    z = block.reading_order(z)
    x = z.clone()  # the first patch passes through unchanged
    length = z.shape[1]
    repeats = len(condition) // len(z)
    caches = block.transformer.new_caches(len(condition), length)
    for t in range(1, length):
        affine = block.predict(x[:, t - 1 : t].repeat(repeats, 1, 1), condition, caches)
        if guidance.strength:
            conditional, unconditional = zip(*(part.chunk(2) for part in affine), strict=True)
            affine = extrapolate(Affine(*conditional), Affine(*unconditional), guidance.at(t, length))
        x[:, t : t + 1] = restore(z[:, t : t + 1], affine)
    return block.reading_order(x)
