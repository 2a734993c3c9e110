"""Multi-head self-attention, causal or full, and the cache that decoding patch by patch needs."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class KVCache:
    """Keys and values of the patches decoded so far, for one attention layer; allocated once."""

    keys: Tensor  # (B, N, T_max, K)
    values: Tensor  # (B, N, T_max, K)
    length: int = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the next patch, key and value (B, N, 1, K); return all so far, (B, N, length, K)."""
        end = self.length + key.shape[2]
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Self-attention over a sequence, with heads of a fixed width.

    The outputs of `qkv` are laid out as [all query heads | all key heads | all value heads].
    """

    def __init__(self, width: int, head_width: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads = width // head_width
        self.head_width = head_width
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C).

        With a cache, x is the one patch (B, 1, C) that follows those in the cache; the cache grows by it.
        """
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, N, T, K)
        if cache is not None:
            # One query may look at everything cached; is_causal would align it with the first key.
            key, value = cache.append(key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal and cache is None)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `length` patches, on the device and in the precision of the weights."""
        shape = (batch, self.num_heads, length, self.head_width)
        weight = self.qkv.weight
        return KVCache(weight.new_empty(shape), weight.new_empty(shape))
