"""The learned reverse model: noise -> image in one pass (BiFlow, arXiv 2512.10953).

One index counts levels as the flow does: `hidden[i]` and its head belong to the flow's `states[i]`.
The model works from the noise side down: block S-1 first, block 0 last, then the denoising block.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biflow.config import ModelConfig, ReverseConfig
from biflow.errors import InputError
from biflow.nn.embeddings import ClassEmbedding, PositionEmbedding
from biflow.nn.transformer import Transformer


class ReversePass(NamedTuple):
    """One pass through the reverse model, noise -> image."""

    image: Tensor  # (B, T, D), patches of the clean image
    hidden: list[Tensor]  # one (B, T, C) for every flow block: hidden[0] at the noisy image, the last next to the noise


class ReverseBlock(nn.Module):
    """A bidirectional transformer that carries the hidden state down one level, with class tokens in context."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        reverse = _reverse_config(config)
        self.classes = ClassEmbedding(config.num_classes, reverse.width, reverse.class_tokens)
        self.transformer = Transformer(reverse, causal=False)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """hidden (B, T, C), labels (B,) -> (B, T, C)."""
        tokens = self.classes(labels)  # (B, class_tokens, C)
        mixed = self.transformer(torch.cat([tokens, hidden], dim=1))
        return mixed[:, tokens.shape[1] :]


class ReverseModel(nn.Module):
    """A reverse block for each flow block, one more that denoises, and a head that reads each level.

    The heads are the projections of hidden alignment: needed to train, not to sample.
    """

    state_rms: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        reverse = _reverse_config(config)
        width, levels = reverse.width, config.flow.blocks
        self.project_in = nn.Linear(config.patch_dim, width)
        self.positions = PositionEmbedding(config.num_patches, width)
        self.blocks = nn.ModuleList(ReverseBlock(config) for _ in range(levels))
        self.denoise = ReverseBlock(config)
        self.project_out = _head(width, config.patch_dim)
        self.heads = nn.ModuleList(_head(width, config.patch_dim) for _ in range(levels))
        self.register_buffer("state_rms", torch.ones(levels))
        self.null_label = config.null_label

    def forward(self, z: Tensor, labels: Tensor, guidance: float = 0.0) -> ReversePass:
        """z (B, T, D) noise and labels (B,) -> `ReversePass`.

        Guidance 0 is one evaluation.  Otherwise every block runs with and without the label, as one doubled
        batch, and its output is (1 + w) * with - w * without (BiFlow, eq. 4).
        """
        state = self.positions(self.project_in(z))  # (B, T, C)
        hidden = []
        for block in reversed(list(self.blocks)):
            state = self._guided(block, state, labels, guidance)
            hidden.append(state)
        image = self.project_out(self._guided(self.denoise, state, labels, guidance))  # (B, T, D)
        return ReversePass(image, hidden[::-1])

    def read_states(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """hidden[i] (B, T, C) -> the flow's states[i] (B, T, D) as the heads see them, in the flow's units."""
        return [head(state) * rms for head, state, rms in zip(self.heads, hidden, self.state_rms, strict=True)]

    def _guided(self, block: nn.Module, state: Tensor, labels: Tensor, guidance: float) -> Tensor:
        if not guidance:
            return block(state, labels)
        no_class = torch.full_like(labels, self.null_label)
        doubled = block(torch.cat([state, state]), torch.cat([labels, no_class]))  # (2B, T, C)
        with_label, without = doubled.chunk(2)
        return (1 + guidance) * with_label - guidance * without


def _head(width: int, patch_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, patch_dim))


def _reverse_config(config: ModelConfig) -> ReverseConfig:
    if config.reverse is None:
        raise InputError("Expected a model config with a reverse model; got one without. Add model.reverse.")
    return config.reverse
