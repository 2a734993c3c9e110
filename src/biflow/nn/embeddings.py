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


class GuidanceEmbedding(nn.Module):
    """A vector for a strength of guidance, from sines of w / (1 + w) through a small network; zero when fresh."""

    FREQUENCIES = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * self.FREQUENCIES, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, strength: Tensor) -> Tensor:
        """strength (B,), 0 or more -> (B, 1, C)."""
        share = strength / (1 + strength)  # [0, infinity) -> [0, 1)
        octaves = torch.linspace(0, 5, self.FREQUENCIES, device=share.device, dtype=share.dtype).exp2()
        angles = share[:, None] * octaves
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, 2 * FREQUENCIES)
        return self.out(nn.functional.silu(self.hidden(waves)))[:, None]


class PositionEmbedding(nn.Module):
    """One learned vector for every place in the sequence."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, width) * EMBEDDING_STD)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (B, t, C), the patches from place `start` on -> (B, t, C)."""
        return x + self.weight[start : start + x.shape[1]]
