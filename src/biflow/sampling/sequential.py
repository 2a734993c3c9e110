"""The exact inverse of the flow, patch by patch (TARFlow, arXiv 2412.06329)."""

import torch
from torch import Tensor

from biflow.models.flow_block import Affine, FlowBlock, restore
from biflow.models.forward_flow import ForwardFlow
from biflow.sampling.guidance import check_guidance, extrapolate
from biflow.sampling.result import Sample


@torch.no_grad()
def invert_sequentially(flow: ForwardFlow, z: Tensor, labels: Tensor, *, guidance: float = 0.0) -> Sample:
    """Noise z (B, T, D) and labels (B,) -> the patches that the flow maps to z; exact up to rounding.

    With guidance the passes with and without the label run as one doubled batch.
    """
    check_guidance(guidance)
    x, calls = z, 0
    for block in reversed(list(flow.blocks)):
        assert isinstance(block, FlowBlock)
        conditions = [block.classes(labels)]
        if guidance:
            conditions.append(block.classes(torch.full_like(labels, flow.config.null_label)))
        x = invert_block(block, x, torch.cat(conditions), guidance)
        calls += z.shape[1] - 1
    return Sample(x, calls, residual=0.0)


def invert_block(block: FlowBlock, z: Tensor, condition: Tensor, guidance: float) -> Tensor:
    """Undo one block: z (B, T, D) -> x (B, T, D).

    condition (B, 1, C), or (2B, 1, C) with the unconditional half last when guidance is not 0.
    """
    z = block.reading_order(z)
    x = z.clone()  # the first patch passes through unchanged
    length = z.shape[1]
    repeats = len(condition) // len(z)
    caches = block.transformer.new_caches(len(condition), length)
    for t in range(length - 1):
        affine = block.predict(x[:, t : t + 1].repeat(repeats, 1, 1), condition, caches)
        if guidance:
            conditional, unconditional = zip(*(part.chunk(2) for part in affine), strict=True)
            affine = extrapolate(Affine(*conditional), Affine(*unconditional), guidance)
        x[:, t + 1 : t + 2] = restore(z[:, t + 1 : t + 2], affine)
    return block.reading_order(x)
