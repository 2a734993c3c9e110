"""One block of the flow: every patch is shifted and scaled by what the patches before it say.

TARFlow (arXiv 2412.06329), section 2: z_t = (x_t - shift(x_<t)) * exp(-log_scale(x_<t)).
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.config import ModelConfig
from biflow.nn.attention import KVCache
from biflow.nn.embeddings import ClassEmbedding, PositionEmbedding, RotaryPositions, RotaryTable
from biflow.nn.transformer import Transformer


class Affine(NamedTuple):
    """What a block predicts for patches; both (B, t, D)."""

    shift: Tensor
    log_scale: Tensor


class BlockPass(NamedTuple):
    """One pass through a block, from the data's side to the noise's."""

    z: Tensor  # (B, T, D)
    log_det: Tensor  # (B,), in nats
    features: dict[int, Tensor]  # (B, T, C) of each layer asked for, in the image's order


def standardise(x: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
    """Data -> noise for one block: z = (x - shift) * exp(-log_scale).

    x (B, T, D).  Returns z (B, T, D), and log|dz/dx| (B,) in nats, summed over T and D; in float32 or better.
    """
    shift, log_scale = (at_least_float32(part) for part in affine)
    z = (at_least_float32(x) - shift) * torch.exp(-log_scale)
    return z, -log_scale.sum(dim=(1, 2))


def restore(z: Tensor, affine: Affine) -> Tensor:
    """Noise -> data for one block: x = z * exp(log_scale) + shift; undoes `standardise`."""
    shift, log_scale = (at_least_float32(part) for part in affine)
    return at_least_float32(z) * torch.exp(log_scale) + shift


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

    def forward(self, x: Tensor, condition: Tensor, layers: Collection[int] = ()) -> BlockPass:
        """x (B, T, D) and condition (B, 1, C) from `classes` -> `BlockPass`, with the features of these layers.

        Layers count from 1.
        """
        x, last = self.reading_order(x), len(self.transformer.layers)
        outputs = self._outputs(x, condition, {*layers, last})
        z, log_det = standardise(x, after_first_patch(self._affine(outputs[last])))
        features = {layer: self.reading_order(outputs[layer]) for layer in layers}
        return BlockPass(self.reading_order(z), log_det, features)

    def features(self, x: Tensor, condition: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """What these layers, counted from 1, give for x (B, T, D): each (B, T, C), in the image's order.

        The feature of a patch has seen it and the patches read before it.  Later layers are not evaluated.
        """
        outputs = self._outputs(self.reading_order(x), condition, layers)
        return {layer: self.reading_order(output) for layer, output in outputs.items()}

    def undo_once(self, x: Tensor, z: Tensor, condition: Tensor) -> Tensor:
        """One step of the fixed point that undoes the block, from a guess of its input x and its output z (B, T, D)."""
        x, z = self.reading_order(x), self.reading_order(z)
        return self.reading_order(restore(z, after_first_patch(self.predict(x, condition))))

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
        hidden, rotary = self._embed(x, condition, caches[0].start if caches else 0)
        return self._affine(self.transformer(hidden, caches, rotary=rotary, temperature=temperature))

    def _outputs(self, x: Tensor, condition: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        hidden, rotary = self._embed(x, condition)
        return self.transformer.outputs(hidden, layers, rotary=rotary)

    def _embed(self, x: Tensor, condition: Tensor, start: int | Tensor = 0) -> tuple[Tensor, RotaryTable | None]:
        hidden = self.project_in(x.to(self.project_in.weight.dtype)) + condition  # (B, t, C)
        if self.positions is not None:
            hidden = self.positions(hidden, start)
        return hidden, self.rotary(start, x.shape[1]) if self.rotary is not None else None

    def _affine(self, hidden: Tensor) -> Affine:
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


def after_first_patch(following: Affine) -> Affine:
    """Move each prediction to the patch it is about; nothing comes before the first, so it gets zeros."""
    return Affine(*(F.pad(part[:, :-1], (0, 0, 1, 0)) for part in following))


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is in that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
