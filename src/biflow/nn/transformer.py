"""A pre-norm transformer: MLPs, one layer, and a stack of layers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from biflow.config import TransformerConfig
from biflow.nn.attention import RMS_EPS, Attention, KVCache
from biflow.nn.embeddings import RotaryTable


class MLP(nn.Sequential):
    """Two linear layers with a GELU in between: (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class SwiGLU(nn.Module):
    """A gated MLP (Shazeer, arXiv 2002.05202): (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": lambda width: nn.RMSNorm(width, eps=RMS_EPS),
}
MLPS: Mapping[str, Callable[[int, int], nn.Module]] = {"gelu": MLP, "swiglu": SwiGLU}


class TransformerLayer(nn.Module):
    """Attention and MLP, each with a pre-norm and a residual connection."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        self.attention_norm = NORMS[config.norm](config.width)
        self.attention = Attention(config, causal=causal)
        self.mlp_norm = NORMS[config.norm](config.width)
        self.mlp = MLPS[config.mlp](config.width, round(config.width * config.mlp_ratio))

    def forward(
        self,
        x: Tensor,
        cache: KVCache | None = None,
        *,
        rotary: RotaryTable | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), cache, rotary=rotary, temperature=temperature)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class Transformer(nn.Module):
    """A stack of transformer layers; `recompute` turns on activation checkpointing per layer."""

    recompute = False

    def __init__(self, config: TransformerConfig, layers: int, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config, causal=causal) for _ in range(layers))

    def forward(
        self,
        x: Tensor,
        caches: Sequence[KVCache] | None = None,
        *,
        rotary: RotaryTable | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C); with caches, one per layer, x holds the next patches (B, t, C).

        rotary: the rotary table of the patches in x. temperature (B,) divides the attention logits.
        """
        for i, layer in enumerate(self.layers):
            x = self._evaluate(layer, x, caches[i] if caches else None, rotary=rotary, temperature=temperature)
        return x

    def outputs(self, x: Tensor, layers: Collection[int], *, rotary: RotaryTable | None = None) -> dict[int, Tensor]:
        """x (B, T, C) -> the outputs (B, T, C) of these layers, by layer, counted from 1; later layers do not run."""
        outputs = {}
        for number, layer in zip(range(1, max(layers, default=0) + 1), self.layers, strict=False):
            x = self._evaluate(layer, x, rotary=rotary)
            if number in layers:
                outputs[number] = x
        return outputs

    def _evaluate(self, layer: nn.Module, *inputs: object, **options: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False, **options)
        return layer(*inputs, **options)

    def new_caches(self, batch: int, length: int) -> list[KVCache]:
        """Create one empty cache per layer."""
        return [layer.attention.new_cache(batch, length) for layer in self.layers]  # type: ignore[union-attr, operator]


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable weight matrices of transformer layers, which Muon updates."""
    layers = [part for part in model.modules() if isinstance(part, TransformerLayer)]
    return [p for layer in layers for p in layer.parameters() if p.ndim == 2 and p.requires_grad]
