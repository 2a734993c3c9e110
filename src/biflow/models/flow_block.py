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
from biflow.nn.embeddings import ClassEmbedding, PositionEmbedding, RotaryPositions
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

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__()
        flow = self.config = config.flow
        self.reads_backwards = bool(place % 2)
        self.project_in = nn.Linear(config.patch_dim, flow.width)
        learned = flow.positions == "learned"
        self.positions = PositionEmbedding(config.num_patches, flow.width) if learned else None
        self.rotary = None if learned else RotaryPositions(config.num_patches, flow.head_width)
        self.classes = ClassEmbedding(config.num_classes, flow.width)
        self.transformer = Transformer(flow, flow.block_layers[place], causal=True)
        parts = 1 if flow.volume_preserving else 2  # the shift, and the log-scale
        self.project_out = nn.Linear(flow.width, parts * config.patch_dim)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D), labels (B,) -> z (B, T, D) and log_det (B,), in nats."""
        x = self.reading_order(x)
        z, log_det = standardise(x, _after_first_patch(self.predict(x, self.classes(labels))))
        return self.reading_order(z), log_det

    def predict(
        self,
        x: Tensor,
        condition: Tensor,
        *,
        caches: Sequence[KVCache] | None = None,
        temperature: Tensor | None = None,
    ) -> Affine:
        """The only network call: the affine map of the patch that follows each patch of x.

        x (B, t, D) in reading order; condition (B, 1, C) from `classes`.  With caches, x is the patches that follow
        those decoded so far.  temperature (B,) divides the attention's logits.  Returns shift and log_scale, each
        (B, t, D), within the clip if there is one.
        """
        start = caches[0].length if caches else 0
        hidden = self.project_in(x) + condition  # (B, t, C)
        if self.positions is not None:
            hidden = self.positions(hidden, start)
        rotary = self.rotary(start, x.shape[1]) if self.rotary is not None else None
        hidden = self.transformer(hidden, caches, rotary=rotary, temperature=temperature)
        outputs = self.project_out(hidden)  # (B, t, 2D), or (B, t, D) if volume preserving
        if self.config.clip is not None:
            outputs = outputs.clamp(-self.config.clip, self.config.clip)
        if self.config.volume_preserving:
            return Affine(outputs, torch.zeros_like(outputs))
        log_scale, shift = outputs.chunk(2, dim=-1)  # each (B, t, D)
        return Affine(shift, log_scale)

    def reading_order(self, patches: Tensor) -> Tensor:
        """Patches (B, T, D) from the image's order to the block's reading order, or back."""
        return patches.flip(1) if self.reads_backwards else patches


def _after_first_patch(following: Affine) -> Affine:
    """Move each prediction to the patch it is about; nothing comes before the first, so it gets zeros."""
    return Affine(*(F.pad(part[:, :-1], (0, 0, 1, 0)) for part in following))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
