"""The exact inverse of the flow, patch by patch (TARFlow, arXiv 2412.06329)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from biflow.models.flow_block import restore
from biflow.models.forward_flow import ForwardFlow
from biflow.nn.attention import KVCache
from biflow.sampling.guidance import NO_GUIDANCE, Guidance, GuidedBlock, new_caches, rewind
from biflow.sampling.result import Sample


@torch.no_grad()
def invert_sequentially(flow: ForwardFlow, z: Tensor, labels: Tensor, *, guidance: Guidance = NO_GUIDANCE) -> Sample:
    """Noise z (B, T, D) and labels (B,) -> the patches that the flow maps to z; exact up to rounding."""
    guidance.check(flow.config.num_classes)
    caches = new_caches(flow, labels, guidance)
    x = z
    for level in reversed(range(len(flow.blocks))):
        x = invert_block(GuidedBlock(flow, level, labels, guidance), x, caches)
    calls = len(flow.blocks) * (z.shape[1] - 1)
    return Sample(x, calls, calls, torch.zeros_like(z[:, 0, 0]))


def invert_block(guided: GuidedBlock, z: Tensor, caches: Sequence[KVCache]) -> Tensor:
    """Undo one block: z (B, T, D) -> x (B, T, D), one call for every patch but the first."""
    rewind(caches)
    patches = guided.block.reading_order(z).split(1, dim=1)
    restored = [patches[0]]  # the first patch passes through unchanged
    for patch in patches[1:]:
        restored.append(restore(patch, guided.predict(restored[-1], caches)))
    return guided.block.reading_order(torch.cat(restored, dim=1))
