"""Guidance of the exact inverse: extrapolates a flow block's predictions with and without the label."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from biflow.errors import InputError, check_choice, check_number
from biflow.models.flow_block import Affine, at_least_float32, restore
from biflow.models.forward_flow import ForwardFlow
from biflow.nn.attention import KVCache
from biflow.nn.embeddings import rows
from biflow.sampling.shorthand import split_shorthand, with_settings


@dataclass(frozen=True)
class Guidance:
    """Guidance strength, 0 for none, and its variants (TARFlow, arXiv 2412.06329).

    annealed: grow the strength linearly from 0 at the first patch in reading order to its full value at the last.
    on: the predictions to guide. temperature: divides the attention logits of the unconditional pass; values other
    than 1 also guide unconditional flows. denoise: the strength in the denoising block of a reverse model, which has
    nothing else of these; none for the same strength as in its other blocks.
    """

    strength: float = 0.0
    annealed: bool = False
    on: Literal["both", "shift", "log_scale"] = "both"
    temperature: float = 1.0
    denoise: float | None = None

    def __post_init__(self) -> None:
        check_number(self.strength, "guidance", hint="0 turns guidance off.")
        check_choice(self.on, ("both", "shift", "log_scale"), "guidance on")
        check_number(self.temperature, "temperature", above=True, hint="1 leaves attention unchanged.")
        if self.denoise is not None:
            check_number(self.denoise, "guidance of the denoising block", hint="0 turns it off there.")

    def __str__(self) -> str:
        """The text that `parse_guidance` reads."""
        annealed = ",annealed" * self.annealed
        on = f",on={self.on}" * (self.on != "both")
        temperature = f",temperature={self.temperature:g}" * (self.temperature != 1)
        denoise = "" if self.denoise is None else f",denoise={self.denoise:g}"
        return f"{self.strength:g}{annealed}{on}{temperature}{denoise}"

    def strengths(self, num_patches: int, like: Tensor) -> Tensor:
        """The strength per patch in reading order: (T, 1), in the dtype and on the device of `like`."""
        positions = torch.arange(num_patches, dtype=like.dtype, device=like.device)[:, None]
        schedule = positions / max(1, num_patches - 1) if self.annealed else torch.ones_like(positions)
        return self.strength * schedule

    def check(self, num_classes: int) -> None:
        """Raise if a flow with this many classes cannot be guided."""
        if self.strength and not num_classes and self.temperature == 1:
            raise InputError(
                "Expected a flow with classes for guidance; this one is unconditional. Set a temperature or guidance 0."
            )


NO_GUIDANCE = Guidance()


def parse_guidance(text: str) -> Guidance:
    """Parse guidance from its shorthand.

    >>> parse_guidance("2.3,annealed")
    Guidance(strength=2.3, annealed=True, on='both', temperature=1.0, denoise=None)
    """
    head, settings = split_shorthand(text)
    try:
        strength = float(head)
    except ValueError:
        raise InputError(f"Expected guidance that starts with a number, such as 2.3,annealed; got {text!r}.") from None
    return with_settings(Guidance(strength), settings)


class GuidedBlock:
    """A flow block with labels and guidance, for one inversion; both passes are one call on a doubled batch."""

    def __init__(self, flow: ForwardFlow, level: int, labels: Tensor, guidance: Guidance) -> None:
        self.block, self.guidance, self.null_label = flow.flow_blocks[level], guidance, flow.config.null_label
        self.condition = self._embed(labels)  # (B, 1, C), or (2B, 1, C) with the unconditional half last
        like = at_least_float32(self.condition)
        self.strengths = guidance.strengths(flow.config.num_patches, like)  # (T, 1)
        self.temperature: Tensor | None = None  # (2B,)
        if guidance.strength and guidance.temperature != 1:
            ones = torch.ones_like(self.condition[: len(labels), 0, 0])
            self.temperature = torch.cat([ones, guidance.temperature * ones])

    def set_labels(self, labels: Tensor) -> None:
        """Replace the labels by as many others (B,), in place."""
        self.condition.copy_(self._embed(labels))

    def predict(self, x: Tensor, caches: Sequence[KVCache] | None = None) -> Affine:
        """Predict the guided affine map of the patch after each patch of x (B, t, D)."""
        if not self.guidance.strength:
            return self.block.predict(x, self.condition, caches=caches)
        start = caches[0].start if caches else 0
        doubled = self.block.predict(x.repeat(2, 1, 1), self.condition, caches=caches, temperature=self.temperature)
        (shift, null_shift), (log_scale, null_log_scale) = (part.chunk(2) for part in doubled)
        strength = rows(self.strengths, start + 1, x.shape[1])  # (t, 1)
        if self.guidance.on != "log_scale":
            shift = extrapolate(shift, null_shift, strength)
        if self.guidance.on != "shift":
            log_scale = extrapolate(log_scale, null_log_scale, strength)
        return Affine(shift, log_scale)

    def _embed(self, labels: Tensor) -> Tensor:
        condition: Tensor = self.block.classes(labels)
        if not self.guidance.strength:
            return condition
        return torch.cat([condition, self.block.classes(torch.full_like(labels, self.null_label))])


class GuidedFlow:
    """The guided blocks of a flow for one inversion, sharing the key-value caches of the deepest block."""

    def __init__(self, flow: ForwardFlow, labels: Tensor, guidance: Guidance) -> None:
        guidance.check(flow.config.num_classes)
        self.blocks = [GuidedBlock(flow, level, labels, guidance) for level in range(len(flow.blocks))]
        batch = len(labels) * (2 if guidance.strength else 1)
        deepest = max(flow.flow_blocks, key=lambda block: len(block.transformer.layers))
        self.caches = deepest.transformer.new_caches(batch, flow.config.num_patches - 1)

    def invert_block(self, level: int, z: Tensor) -> Tensor:
        """Invert one block sequentially: z (B, T, D) -> x (B, T, D), one call per patch but the first."""
        guided = self.blocks[level]
        rewind(self.caches)
        patches = guided.block.reading_order(z).split(1, dim=1)
        restored = [patches[0]]  # the first patch passes through unchanged
        for patch in patches[1:]:
            restored.append(restore(patch, guided.predict(restored[-1], self.caches)))
        return guided.block.reading_order(torch.cat(restored, dim=1))


def guide(flow: ForwardFlow, labels: Tensor, guidance: Guidance) -> GuidedFlow:
    """Prepare a flow's blocks, or let it do so, for an inversion with labels (B,); raise if it cannot be guided."""
    # CapturedFlow has a `guide` of its own; it imports this module
    make: Callable[[Tensor, Guidance], GuidedFlow] = getattr(flow, "guide", partial(GuidedFlow, flow))
    return make(labels, guidance)


def extrapolate(conditional: Tensor, unconditional: Tensor, strength: Tensor | float) -> Tensor:
    """Move a prediction away from the unconditional one, on shift and log-scale (TARFlow, arXiv 2412.06329)."""
    return conditional + strength * (conditional - unconditional)


def rewind(caches: Sequence[KVCache], length: int = 0) -> None:
    """Truncate the caches to the first `length` patches."""
    for cache in caches:
        cache.length = length
