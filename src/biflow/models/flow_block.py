"""One autoregressive affine block of the flow.

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
    """A block's predictions for t patches, both (B, t, D)."""

    shift: Tensor
    log_scale: Tensor


class BlockPass(NamedTuple):
    """Forward pass of a block, from the data side to the noise side."""

    z: Tensor  # (B, T, D)
    log_det: Tensor  # (B,), in nats
    features: dict[int, Tensor]  # (B, T, C) of each requested layer, in the image's order


def standardise(x: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
    """The affine map x (B, T, D) -> z = (x - shift) * exp(-log_scale), data -> noise.

    Returns z (B, T, D) and log|dz/dx| (B,) in nats, summed over T and D; at least float32.
    """
    shift, log_scale = (at_least_float32(part) for part in affine)
    z = (at_least_float32(x) - shift) * torch.exp(-log_scale)
    return z, -log_scale.sum(dim=(1, 2))


def restore(z: Tensor, affine: Affine) -> Tensor:
    """The inverse of `standardise`: z (B, T, D) -> x = z * exp(log_scale) + shift, noise -> data."""
    shift, log_scale = (at_least_float32(part) for part in affine)
    return at_least_float32(z) * torch.exp(log_scale) + shift


class FlowBlock(nn.Module):
    """A causal transformer that predicts each patch's affine map from the patches before it in reading order.

    Blocks with an odd index (from 0) read the sequence backwards. A new block is the identity.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        flow = self.config = config.flow
        self.reads_backwards = bool(index % 2)
        self.project_in = nn.Linear(config.patch_dim, flow.width)
        learned = flow.positions == "learned"
        self.positions = PositionEmbedding(config.num_patches, flow.width) if learned else None
        self.rotary = None if learned else RotaryPositions(config.num_patches, flow.head_width)
        self.classes = ClassEmbedding(config.num_classes, flow.width)
        self.transformer = Transformer(flow, flow.block_layers[index], causal=True)
        parts = 1 if flow.volume_preserving else 2  # shift and log-scale
        self.project_out = nn.Linear(flow.width, parts * config.patch_dim)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x: Tensor, condition: Tensor, layers: Collection[int] = ()) -> BlockPass:
        """x (B, T, D), condition (B, 1, C) from `classes` -> `BlockPass`, with features of these layers, from 1."""
        x, last = self.reading_order(x), len(self.transformer.layers)
        outputs = self._outputs(x, condition, {*layers, last})
        z, log_det = standardise(x, shift_to_next_patch(self._affine(outputs[last])))
        features = {layer: self.reading_order(outputs[layer]) for layer in layers}
        return BlockPass(self.reading_order(z), log_det, features)

    def features(self, x: Tensor, condition: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Outputs (B, T, C) of these layers, counted from 1, for x (B, T, D), in the image's order.

        A patch's feature depends on it and the patches before it in reading order. Later layers are not evaluated.
        """
        outputs = self._outputs(self.reading_order(x), condition, layers)
        return {layer: self.reading_order(output) for layer, output in outputs.items()}

    def invert_once(self, x: Tensor, z: Tensor, condition: Tensor) -> Tensor:
        """One fixed-point iteration of the inverse, from a guess of the input x and the output z, both (B, T, D)."""
        x, z = self.reading_order(x), self.reading_order(z)
        return self.reading_order(restore(z, shift_to_next_patch(self.predict(x, condition))))

    def predict(
        self,
        x: Tensor,
        condition: Tensor,
        *,
        caches: Sequence[KVCache] | None = None,
        temperature: Tensor | None = None,
    ) -> Affine:
        """Predict the affine map of the patch after each patch of x; the only network call.

        x (B, t, D) in reading order; condition (B, 1, C) from `classes`. With caches, x holds the next patches to
        decode. temperature (B,) divides the attention logits. Returns shift and log_scale, each (B, t, D), clipped if
        the config sets `clip`.
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


def shift_to_next_patch(predictions: Affine) -> Affine:
    """Align each prediction with the patch that it is for; the first patch, which has no context, gets zeros."""
    return Affine(*(F.pad(part[:, :-1], (0, 0, 1, 0)) for part in predictions))


def at_least_float32(x: Tensor) -> Tensor:
    """Promote to at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
