"""Guidance of the exact inverse: arithmetic on what a flow block predicts with and without the label."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from biflow.errors import InputError
from biflow.models.flow_block import Affine, FlowBlock
from biflow.models.forward_flow import ForwardFlow
from biflow.nn.attention import KVCache
from biflow.shorthand import split_shorthand, with_settings


@dataclass(frozen=True)
class Guidance:
    """A strength, 0 for none, and how it acts.

    annealed: it grows evenly from 0 at the first patch read to the full strength at the last; otherwise it is the
    same everywhere.  on: which of the predictions it moves.  temperature divides the attention's logits of the pass
    without label; other than 1, it guides also a flow that knows no classes.  All as TARFlow (arXiv 2412.06329).
    """

    strength: float = 0.0
    annealed: bool = False
    on: Literal["both", "shift", "log_scale"] = "both"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.strength, int | float) or not 0 <= self.strength < math.inf:
            raise InputError(f"Expected guidance of 0 (none) or more, and finite; got {self.strength!r}.")
        if self.on not in {"both", "shift", "log_scale"}:
            raise InputError(f"Expected guidance on 'both', 'shift' or 'log_scale'; got {self.on!r}.")
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < math.inf:
            raise InputError(f"Expected a finite temperature above 0 (1 changes nothing); got {self.temperature!r}.")

    def __str__(self) -> str:
        """As `parse_guidance` reads it."""
        annealed = ",annealed" * self.annealed
        on = f",on={self.on}" * (self.on != "both")
        return f"{self.strength:g}{annealed}{on}" + f",temperature={self.temperature:g}" * (self.temperature != 1)

    def strengths(self, num_patches: int, like: Tensor) -> Tensor:
        """The strength for each patch in reading order: (T, 1), in the precision and on the device of `like`."""
        places = torch.arange(num_patches, dtype=like.dtype, device=like.device)[:, None]
        share = places / max(1, num_patches - 1) if self.annealed else torch.ones_like(places)
        return self.strength * share

    def check(self, num_classes: int) -> None:
        """Raise if a flow with this many classes gives nothing to guide by."""
        if self.strength and not num_classes and self.temperature == 1:
            raise InputError(
                "Expected a flow with classes and a null label to guide by; this one is unconditional. "
                "Give a temperature other than 1 (such as 1.5) to guide by its attention, or guidance 0."
            )


NO_GUIDANCE = Guidance()


def parse_guidance(text: str) -> Guidance:
    """Guidance from one word.

    >>> parse_guidance("2.3,annealed")
    Guidance(strength=2.3, annealed=True, on='both', temperature=1.0)
    """
    head, settings = split_shorthand(text)
    try:
        strength = float(head)
    except ValueError:
        raise InputError(f"Expected guidance that begins with a number, as 2.3,annealed does; got {text!r}.") from None
    return with_settings(Guidance(strength), settings)


class GuidedBlock:
    """A flow block with all that one inversion asks of it: labels and guidance.

    The passes with and without the label are one call on a doubled batch.
    """

    def __init__(self, flow: ForwardFlow, level: int, labels: Tensor, guidance: Guidance) -> None:
        block = flow.blocks[level]
        assert isinstance(block, FlowBlock)
        self.block, self.guidance = block, guidance
        self.condition = block.classes(labels)  # (B, 1, C), or (2B, 1, C) with the half without label last
        self.strengths = guidance.strengths(flow.config.num_patches, self.condition)  # (T, 1)
        self.temperature: Tensor | None = None  # (2B,)
        if guidance.strength:
            without_label = block.classes(torch.full_like(labels, flow.config.null_label))
            self.condition = torch.cat([self.condition, without_label])
            if guidance.temperature != 1:
                ones = torch.ones_like(self.condition[: len(labels), 0, 0])
                self.temperature = torch.cat([ones, guidance.temperature * ones])

    def predict(self, x: Tensor, caches: Sequence[KVCache] | None = None) -> Affine:
        """The guided affine maps of the patches that follow each patch of x (B, t, D); each (B, t, D)."""
        if not self.guidance.strength:
            return self.block.predict(x, self.condition, caches=caches)
        start = caches[0].length + 1 if caches else 1
        doubled = self.block.predict(x.repeat(2, 1, 1), self.condition, caches=caches, temperature=self.temperature)
        (shift, shift_without), (log_scale, log_scale_without) = (part.chunk(2) for part in doubled)
        strength = self.strengths[start : start + x.shape[1]]  # (t, 1)
        if self.guidance.on != "log_scale":
            shift = extrapolate(shift, shift_without, strength)
        if self.guidance.on != "shift":
            log_scale = extrapolate(log_scale, log_scale_without, strength)
        return Affine(shift, log_scale)


def extrapolate(conditional: Tensor, unconditional: Tensor, strength: Tensor | float) -> Tensor:
    """A prediction moved away from the unconditional one; strength 0 changes nothing.

    On the shift and on the log-scale, as TARFlow guides (arXiv 2412.06329).
    """
    return conditional + strength * (conditional - unconditional)


def new_caches(flow: ForwardFlow, labels: Tensor, guidance: Guidance) -> list[KVCache]:
    """Caches for the deepest block, which serve all blocks in turn."""
    blocks = [block for block in flow.blocks if isinstance(block, FlowBlock)]
    deepest = max(blocks, key=lambda block: len(block.transformer.layers))
    batch = len(labels) * (2 if guidance.strength else 1)
    return deepest.transformer.new_caches(batch, flow.config.num_patches - 1)


def rewind(caches: Sequence[KVCache], length: int = 0) -> None:
    """Forget all patches but the first `length`."""
    for cache in caches:
        cache.length = length
