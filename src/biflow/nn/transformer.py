"""A pre-norm transformer: the MLP, one layer, and the stack that fills a block."""

from collections.abc import Sequence

from torch import Tensor, nn

from biflow.config import TransformerConfig
from biflow.nn.attention import Attention, KVCache


class MLP(nn.Sequential):
    """Two linear maps with a GELU between them, applied to every patch alone: (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = round(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class TransformerLayer(nn.Module):
    """Attention, then the MLP, each normalised before and added after."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.head_width, causal=causal)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_ratio)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), cache)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class Transformer(nn.Module):
    """A stack of layers."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config, causal=causal) for _ in range(config.layers))

    def forward(self, x: Tensor, caches: Sequence[KVCache] | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C); with one cache a layer, x is the next patch (B, 1, C)."""
        for place, layer in enumerate(self.layers):
            x = layer(x, caches[place] if caches else None)
        return x

    def new_caches(self, batch: int, length: int) -> list[KVCache]:
        """One empty cache a layer."""
        return [layer.attention.new_cache(batch, length) for layer in self.layers]  # type: ignore[union-attr, operator]
