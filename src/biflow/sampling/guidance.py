"""Guidance of the exact inverse: arithmetic on what a flow block predicts with and without the label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from biflow.errors import InputError, check_number
from biflow.models.flow_block import Affine, at_least_float32, restore
from biflow.models.forward_flow import ForwardFlow
from biflow.nn.attention import KVCache
from biflow.nn.embeddings import rows
from biflow.sampling.shorthand import split_shorthand, with_settings


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
        check_number(self.strength, "guidance", hint="0 turns guidance off.")
        if self.on not in {"both", "shift", "log_scale"}:
            raise InputError(f"Expected guidance on 'both', 'shift' or 'log_scale'; got {self.on!r}.")
        check_number(self.temperature, "temperature", above=True, hint="1 changes nothing.")

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
        self.block, self.guidance, self.null_label = flow.flow_blocks[level], guidance, flow.config.null_label
        self.condition = self._embed(labels)  # (B, 1, C), or (2B, 1, C) with the half without label last
        like = at_least_float32(self.condition)
        self.strengths = guidance.strengths(flow.config.num_patches, like)  # (T, 1)
        self.temperature: Tensor | None = None  # (2B,)
        if guidance.strength and guidance.temperature != 1:
            ones = torch.ones_like(self.condition[: len(labels), 0, 0])
            self.temperature = torch.cat([ones, guidance.temperature * ones])

    def relabel(self, labels: Tensor) -> None:
        """Take other labels (B,), as many, in the memory of the old ones."""
        self.condition.copy_(self._embed(labels))

    def predict(self, x: Tensor, caches: Sequence[KVCache] | None = None) -> Affine:
        """The guided affine maps of the patches that follow each patch of x (B, t, D); each (B, t, D)."""
        if not self.guidance.strength:
            return self.block.predict(x, self.condition, caches=caches)
        start = caches[0].start if caches else 0
        doubled = self.block.predict(x.repeat(2, 1, 1), self.condition, caches=caches, temperature=self.temperature)
        (shift, shift_without), (log_scale, log_scale_without) = (part.chunk(2) for part in doubled)
        strength = rows(self.strengths, start + 1, x.shape[1])  # (t, 1)
        if self.guidance.on != "log_scale":
            shift = extrapolate(shift, shift_without, strength)
        if self.guidance.on != "shift":
            log_scale = extrapolate(log_scale, log_scale_without, strength)
        return Affine(shift, log_scale)

    def _embed(self, labels: Tensor) -> Tensor:
        condition: Tensor = self.block.classes(labels)
        if not self.guidance.strength:
            return condition
        return torch.cat([condition, self.block.classes(torch.full_like(labels, self.null_label))])


class GuidedFlow:
    """The blocks of a flow for one inversion, and caches for the deepest of them, which serve all in turn."""

    def __init__(self, flow: ForwardFlow, labels: Tensor, guidance: Guidance) -> None:
        guidance.check(flow.config.num_classes)
        self.blocks = [GuidedBlock(flow, level, labels, guidance) for level in range(len(flow.blocks))]
        batch = len(labels) * (2 if guidance.strength else 1)
        deepest = max(flow.flow_blocks, key=lambda block: len(block.transformer.layers))
        self.caches = deepest.transformer.new_caches(batch, flow.config.num_patches - 1)

    def invert_block(self, level: int, z: Tensor) -> Tensor:
        """Undo one block: z (B, T, D) -> x (B, T, D), one call for every patch but the first."""
        guided = self.blocks[level]
        rewind(self.caches)
        patches = guided.block.reading_order(z).split(1, dim=1)
        restored = [patches[0]]  # the first patch passes through unchanged
        for patch in patches[1:]:
            restored.append(restore(patch, guided.predict(restored[-1], self.caches)))
        return guided.block.reading_order(torch.cat(restored, dim=1))


@runtime_checkable
class Ready(Protocol):
    """A flow that keeps its blocks ready for batches of a size."""

    def guide(self, labels: Tensor, guidance: Guidance) -> GuidedFlow:
        """The blocks for these labels (B,) and this guidance."""


def guide(flow: ForwardFlow, labels: Tensor, guidance: Guidance) -> GuidedFlow:
    """The blocks of a flow, ready to be inverted for labels (B,) with this guidance; raise if it cannot be guided."""
    return flow.guide(labels, guidance) if isinstance(flow, Ready) else GuidedFlow(flow, labels, guidance)


def extrapolate(conditional: Tensor, unconditional: Tensor, strength: Tensor | float) -> Tensor:
    """A prediction moved away from the unconditional one; strength 0 changes nothing.

    On the shift and on the log-scale, as TARFlow guides (arXiv 2412.06329).
    """
    return conditional + strength * (conditional - unconditional)


def rewind(caches: Sequence[KVCache], length: int = 0) -> None:
    """Forget all patches but the first `length`."""
    for cache in caches:
        cache.length = length
