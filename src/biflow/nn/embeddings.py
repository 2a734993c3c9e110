"""Embeddings: classes with a null label, guidance strength, learned and rotary positions."""

import torch
from torch import Tensor, nn

ROTARY_BASE = 10_000.0
EMBEDDING_STD = 0.01  # small against the projected patches, as in TARFlow


def rows(table: Tensor, start: int | Tensor, count: int) -> Tensor:
    """Rows start ... start + count - 1 of a table; a tensor `start` (1,) selects one row without a device sync."""
    return table[start : start + count] if isinstance(start, int) else table.index_select(0, start)


class ClassEmbedding(nn.Embedding):
    """Class embedding of `tokens` vectors per class, with a last row for the null label ("no class")."""

    def __init__(self, num_classes: int, width: int, tokens: int = 1) -> None:
        super().__init__(num_classes + 1, tokens * width)
        self.tokens = tokens
        nn.init.normal_(self.weight, std=EMBEDDING_STD)

    def forward(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in [0, num_classes] -> (B, tokens, C)."""
        return super().forward(labels).unflatten(1, (self.tokens, -1))


class GuidanceEmbedding(nn.Module):
    """Embedding of the guidance strength w: an MLP on sines and cosines of w / (1 + w), initialised to zero."""

    FREQUENCIES = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * self.FREQUENCIES, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, strength: Tensor) -> Tensor:
        """strength (B,), at least 0 -> (B, 1, C)."""
        scaled = strength / (1 + strength)  # [0, infinity) -> [0, 1)
        frequencies = torch.linspace(0, 5, self.FREQUENCIES, device=scaled.device, dtype=scaled.dtype).exp2()
        angles = scaled[:, None] * frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.hidden.weight.dtype)  # (B, 2 * FREQUENCIES)
        return self.out(nn.functional.silu(self.hidden(waves)))[:, None]


class PositionEmbedding(nn.Module):
    """Learned position embedding."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, width) * EMBEDDING_STD)

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        """x (B, t, C), the patches from position `start` on -> (B, t, C)."""
        return x + rows(self.weight, start, x.shape[1])


RotaryTable = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of t positions, each (t, K)."""


class RotaryPositions(nn.Module):
    """Rotary position embedding on a square grid (RoFormer, arXiv 2104.09864, along both axes); no parameters.

    The first half of a head's channels rotates with the row, the second with the column. The first `prefix` tokens
    come before the grid and are not rotated.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, head_width: int, prefix: int = 0) -> None:
        super().__init__()
        frequencies = ROTARY_BASE ** (-torch.arange(0, head_width // 4, dtype=torch.float32) * 4 / head_width)
        side = round(length**0.5)
        positions = torch.arange(length)
        angles = torch.stack([positions // side, positions % side], dim=1)[:, :, None] * frequencies  # (T, 2, K / 4)
        angles = angles.flatten(1).repeat_interleave(2, dim=1)  # (T, K), adjacent channels rotate as a pair
        angles = torch.cat([torch.zeros(prefix, head_width), angles])
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, start: int | Tensor, count: int) -> RotaryTable:
        """The rotary table of `count` positions from `start` on."""
        return rows(self.cos, start, count), rows(self.sin, start, count)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate each pair of adjacent channels of queries or keys (B, N, t, K) by its position's angle."""
    cos, sin = table
    rotated = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return (x * cos + rotated * sin).to(x.dtype)
