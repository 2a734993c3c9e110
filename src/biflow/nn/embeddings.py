"""Tables of learned vectors: classes with a null row, positions."""

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.01  # small against the projected patches, as in TARFlow


class ClassEmbedding(nn.Embedding):
    """One row of `tokens * width` values a class, and a last one, the null label's, for "no class"."""

    def __init__(self, num_classes: int, width: int, tokens: int = 1) -> None:
        super().__init__(num_classes + 1, tokens * width)
        self.tokens = tokens
        nn.init.normal_(self.weight, std=EMBEDDING_STD)

    def forward(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in [0, num_classes] -> (B, tokens, C)."""
        return super().forward(labels).unflatten(1, (self.tokens, -1))


class PositionEmbedding(nn.Module):
    """One learned vector for every place in the sequence."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, width) * EMBEDDING_STD)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (B, t, C), the patches from place `start` on -> (B, t, C)."""
        return x + self.weight[start : start + x.shape[1]]
