"""Multi-head self-attention, causal or full, and the cache that decoding patch by patch needs."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from biflow.config import TransformerConfig
from biflow.nn.embeddings import RotaryTable, rotate

RMS_EPS = 1e-6


@dataclass
class KVCache:
    """Keys and values of the patches decoded so far, for one attention layer; allocated once.

    Setting `length` back forgets the last patches, so that they can be decoded again.
    """

    keys: Tensor  # (B, N, T_max, K)
    values: Tensor  # (B, N, T_max, K)
    length: int = 0

    @property
    def start(self) -> int | Tensor:
        """The place of the patch that comes next."""
        return self.length

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the next patches, key and value (B, N, t, K).

        Returns all so far, (B, N, length, K), and which of them each query may see, None for all before it.
        """
        end = self.length + key.shape[2]
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end], None


@dataclass
class StaticKVCache(KVCache):
    """A cache for one patch at a time whose place is a tensor: every step is the same kernels, as a CUDA graph needs.

    The first `span` places are read at every step; those after the patch are masked.
    """

    place: Tensor = field(kw_only=True)  # (1,) int64, of the next patch; shared by all layers, moved on by the caller
    span: int = field(kw_only=True)

    @property
    def start(self) -> int | Tensor:
        """The place of the patch that comes next."""
        return self.place

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store one patch, key and value (B, N, 1, K); see `KVCache.append`."""
        self.keys.index_copy_(2, self.place, key)
        self.values.index_copy_(2, self.place, value)
        seen = torch.arange(self.span, device=self.place.device) <= self.place
        return self.keys[:, :, : self.span], self.values[:, :, : self.span], seen[None]


class Attention(nn.Module):
    """Self-attention over a sequence, with heads of a fixed width.

    The outputs of `qkv` are laid out as [all query heads | all key heads | all value heads].
    """

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        width, self.head_width = config.width, config.head_width
        self.num_heads = width // config.head_width
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = nn.RMSNorm(config.head_width, eps=RMS_EPS) if config.qk_norm else None
        self.key_norm = nn.RMSNorm(config.head_width, eps=RMS_EPS) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        cache: KVCache | None = None,
        *,
        rotary: RotaryTable | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C).

        With a cache, x is the patches (B, t, C) that follow those in the cache; the cache grows by them.  rotary
        holds the angles of just the patches in x.  temperature (B,) divides the attention's logits.
        """
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, N, T, K)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if temperature is not None:
            query = query / temperature[:, None, None, None]
        mask: Tensor | None = None
        if cache is not None:
            key, value, mask = cache.append(key, value)
        if self.causal and length > 1 and key.shape[2] > length:
            mask = causal_lower_right(length, key.shape[2])  # is_causal would align the first query with the first key
        is_causal = self.causal and mask is None and key.shape[2] == length
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `length` patches, on the device of the weights and in the precision of products."""
        shape, weight = (batch, self.num_heads, length, self.head_width), self.qkv.weight
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return KVCache(weight.new_empty(shape, dtype=dtype), weight.new_empty(shape, dtype=dtype))
