"""Tables of vectors: classes with a null row, strengths of guidance, positions learned and rotary."""

import torch
from torch import Tensor, nn

ROTARY_BASE = 10_000.0
EMBEDDING_STD = 0.01  # small against the projected patches, as in TARFlow


def rows(table: Tensor, start: int | Tensor, count: int) -> Tensor:
    """`count` rows of a table from `start` on; a `start` on a device, (1,), is not read, and gives one row."""
    return table[start : start + count] if isinstance(start, int) else table.index_select(0, start)


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
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.hidden.weight.dtype)  # (B, 2 * FREQUENCIES)
        return self.out(nn.functional.silu(self.hidden(waves)))[:, None]


class PositionEmbedding(nn.Module):
    """One learned vector for every place in the sequence."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, width) * EMBEDDING_STD)

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        """x (B, t, C), the patches from place `start` on -> (B, t, C)."""
        return x + rows(self.weight, start, x.shape[1])


RotaryTable = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of some places, each (t, K)."""


class RotaryPositions(nn.Module):
    """Rotary positions on a square grid (RoFormer, arXiv 2104.09864, along rows and columns): no parameters.

    The first half of a head's values turns with the row, the second half with the column.  Places before the grid,
    `prefix` of them, are not turned.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, head_width: int, prefix: int = 0) -> None:
        super().__init__()
        frequencies = ROTARY_BASE ** (-torch.arange(0, head_width // 4, dtype=torch.float32) * 4 / head_width)
        side = round(length**0.5)
        places = torch.arange(length)
        angles = torch.stack([places // side, places % side], dim=1)[:, :, None] * frequencies  # (T, 2, K / 4)
        angles = angles.flatten(1).repeat_interleave(2, dim=1)  # (T, K), neighbours turn together
        angles = torch.cat([torch.zeros(prefix, head_width), angles])
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, start: int | Tensor, count: int) -> RotaryTable:
        """The angles of `count` places from `start` on."""
        return rows(self.cos, start, count), rows(self.sin, start, count)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Queries or keys (B, N, t, K), each pair of neighbouring values turned by its place's angle."""
    cos, sin = table
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)
