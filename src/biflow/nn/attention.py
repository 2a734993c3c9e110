"""Multi-head self-attention, causal or full, and the key-value cache for decoding patch by patch."""

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
    """Preallocated keys and values of one layer for the patches decoded so far; lower `length` to drop the last."""

    keys: Tensor  # (B, N, T_max, K)
    values: Tensor  # (B, N, T_max, K)
    length: int = 0

    @property
    def start(self) -> int | Tensor:
        """Position of the next patch."""
        return self.length

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the keys and values (B, N, t, K) of the next patches.

        Returns all keys and values so far, (B, N, length, K), and the attention mask, None for a plain causal mask.
        """
        end = self.length + key.shape[2]
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end], None


@dataclass
class StaticKVCache(KVCache):
    """A cache for one patch at a time with its position in a tensor, so that a CUDA graph can replay the step.

    Every step attends to the first `span` positions; those after the current patch are masked.
    """

    position: Tensor = field(kw_only=True)  # (1,) int64, of the next patch; shared by all layers, set by the caller
    span: int = field(kw_only=True)

    @property
    def start(self) -> int | Tensor:
        """Position of the next patch."""
        return self.position

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write the key and value (B, N, 1, K) of one patch; returns as `KVCache.append`."""
        self.keys.index_copy_(2, self.position, key)
        self.values.index_copy_(2, self.position, value)
        mask = torch.arange(self.span, device=self.position.device) <= self.position
        return self.keys[:, :, : self.span], self.values[:, :, : self.span], mask[None]


class Attention(nn.Module):
    """Multi-head self-attention; the outputs of `qkv` are [all query heads | all key heads | all value heads]."""

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

        With a cache, x holds the next patches (B, t, C), which are appended to the cache. rotary: the rotary table
        of the patches in x. temperature (B,) divides the attention logits.
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
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return self.out(attended.transpose(1, 2).reshape(batch, length, width))

    def new_cache(self, batch: int, length: int) -> KVCache:
        """Create an empty cache for `length` patches, on the weights' device and in the autocast or weight dtype."""
        shape, weight = (batch, self.num_heads, length, self.head_width), self.qkv.weight
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return KVCache(weight.new_empty(shape, dtype=dtype), weight.new_empty(shape, dtype=dtype))
