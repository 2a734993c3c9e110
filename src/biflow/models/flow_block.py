"""One block of the flow: every patch is shifted and scaled by what the patches before it say.

TARFlow (arXiv 2412.06329), section 2: z_t = (x_t - shift(x_<t)) * exp(-log_scale(x_<t)).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.config import ModelConfig
from biflow.nn.attention import KVCache
from biflow.nn.embeddings import ClassEmbedding, PositionEmbedding
from biflow.nn.transformer import Transformer


class Affine(NamedTuple):
    """What a block predicts for patches; both (B, t, D)."""

    shift: Tensor
    log_scale: Tensor


def standardise(x: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
    """Data -> noise for one block: z = (x - shift) * exp(-log_scale).

    x (B, T, D).  Returns z (B, T, D), and log|dz/dx| (B,) in nats, summed over T and D; in float32 or better.
    """
    shift, log_scale = (_at_least_float32(part) for part in affine)
    z = (_at_least_float32(x) - shift) * torch.exp(-log_scale)
    return z, -log_scale.sum(dim=(1, 2))


def restore(z: Tensor, affine: Affine) -> Tensor:
    """Noise -> data for one block: x = z * exp(log_scale) + shift; undoes `standardise`."""
    shift, log_scale = (_at_least_float32(part) for part in affine)
    return _at_least_float32(z) * torch.exp(log_scale) + shift


class FlowBlock(nn.Module):
    """A causal transformer that predicts the affine map of each patch from the patches read before it.

    Blocks at odd places read the sequence from its end.  A fresh block is the identity.
    """

    def __init__(self, config: ModelConfig, *, reads_backwards: bool) -> None:
        super().__init__()
        flow = config.flow
        self.reads_backwards = reads_backwards
        self.project_in = nn.Linear(config.patch_dim, flow.width)
        self.positions = PositionEmbedding(config.num_patches, flow.width)
        self.classes = ClassEmbedding(config.num_classes, flow.width)
        self.transformer = Transformer(flow, causal=True)
        self.project_out = nn.Linear(flow.width, 2 * config.patch_dim)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D), labels (B,) -> z (B, T, D) and log_det (B,), in nats."""
        x = self.reading_order(x)
        following = self.predict(x, self.classes(labels))
        affine = Affine(*(_after_first_patch(part) for part in following))
        z, log_det = standardise(x, affine)
        return self.reading_order(z), log_det

    def predict(self, x: Tensor, condition: Tensor, caches: Sequence[KVCache] | None = None) -> Affine:
        """The only network call: the affine map of the patch that follows each patch of x.

        x (B, t, D) in reading order; condition (B, 1, C) from `classes`.  With caches, x is the one patch
        (B, 1, D) that follows those decoded so far.  Returns shift and log_scale, each (B, t, D).
        """
        start = caches[0].length if caches else 0
        hidden = self.positions(self.project_in(x), start) + condition  # (B, t, C)
        hidden = self.transformer(hidden, caches)
        log_scale, shift = self.project_out(hidden).chunk(2, dim=-1)  # each (B, t, D)
        return Affine(shift, log_scale)

    def reading_order(self, patches: Tensor) -> Tensor:
        """Patches (B, T, D) from the image's order to the block's reading order, or back."""
        return patches.flip(1) if self.reads_backwards else patches


def _after_first_patch(following: Tensor) -> Tensor:
    """Move each prediction to the patch it is about; nothing comes before the first, so it gets zeros."""
    return F.pad(following[:, :-1], (0, 0, 1, 0))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
