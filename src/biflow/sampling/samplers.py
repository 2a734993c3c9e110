"""The samplers, by name: what `method=` means. A new one is a class like those below and a row of `SAMPLERS`."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from biflow.data.randomness import normal_for
from biflow.errors import InputError, check_number, choose
from biflow.models.model import Model
from biflow.sampling.denoise import score_denoise
from biflow.sampling.guidance import Guidance
from biflow.sampling.jacobi import CALL_COST, TOLERANCE, check_tolerance, group_sizes, invert_by_jacobi, measure_groups
from biflow.sampling.one_pass import check_reverse_guidance, guess_states, sample_in_one_pass
from biflow.sampling.refine import refine
from biflow.sampling.result import SamplerOutput
from biflow.sampling.sequential import invert_sequentially
from biflow.sampling.shorthand import split_shorthand, with_settings

MEASURED_ON = 8  # images


@dataclass(frozen=True)
class Sampler(ABC):
    """Base of samplers, noise -> clean patches: what one says of itself, and two methods."""

    title: ClassVar[str] = "sampler"  # for people
    uses: ClassVar[tuple[str, ...]] = ("flow",)  # networks that it evaluates: "flow", "reverse" or both
    counted: ClassVar[tuple[str, ...]] = ()  # rows of `plan.operations.sampling`; none if they depend on the image

    def prepare(self, model: Model, guidance: Guidance) -> "Sampler":
        """The sampler with everything that it measures of this model; raises if model or guidance do not suit it."""
        if "reverse" in self.uses and model.reverse is None:
            raise InputError("Expected a model with a reverse model; this one has only a flow. Use method sequential.")
        guidance.check(model.config.num_classes)
        return self

    @abstractmethod
    def __call__(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) and labels (B,) -> patches of clean images (B, T, D)."""


@dataclass(frozen=True)
class OnePass(Sampler):
    """The learned reverse model: one evaluation, then a score step if it was trained to be followed by one."""

    title = "reverse model, one pass"
    uses = ("reverse",)
    counted = ("one pass",)

    def prepare(self, model: Model, guidance: Guidance) -> Sampler:
        """Also warns of guidance above what the reverse model was trained with."""
        super().prepare(model, guidance)
        assert model.reverse is not None
        check_reverse_guidance(guidance, model.reverse)
        config, strongest = model.reverse.config, max(guidance.strength, guidance.denoise or 0.0)
        if config.guidance == "trained" and strongest > config.max_guidance:
            most = config.max_guidance
            warnings.warn(f"Guidance {strongest:g} is above {most:g}, the largest seen in training.", stacklevel=2)
        return self

    def __call__(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) and labels (B,) -> patches of clean images (B, T, D)."""
        assert model.reverse is not None
        output = sample_in_one_pass(model.reverse, z, labels, guidance=guidance)
        if model.reverse.config.denoising != "score":
            return output
        return output._replace(x=score_denoise(model.flow, output.x, labels))


@dataclass(frozen=True)
class ExactInverse(Sampler):
    """An exact inverse of the flow, then a score step against its training noise.

    denoise: size of the score step, 1 for the full step, 0 for none.
    """

    denoise: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        check_number(self.denoise, "denoise", hint="0 skips the score step, 1 takes a full step.")

    def prepare(self, model: Model, guidance: Guidance) -> Sampler:
        """Also raises for guidance of a denoising block."""
        if guidance.denoise is not None:
            raise InputError(
                f"Expected guidance without denoise={guidance.denoise:g} for an exact inverse, which has no denoising "
                "block. Leave it out, or choose method reverse."
            )
        return super().prepare(model, guidance)

    @abstractmethod
    def invert(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) -> the patches that the flow maps to it."""

    def __call__(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) and labels (B,) -> patches of clean images (B, T, D)."""
        inverse = self.invert(model, z, labels, guidance)
        return inverse._replace(x=score_denoise(model.flow, inverse.x, labels, step=self.denoise))


@dataclass(frozen=True)
class Sequential(ExactInverse):
    """The exact inverse patch by patch, then a score step."""

    title = "exact inverse, patch by patch"
    counted = ("exact inverse",)

    def invert(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """One network call per patch and block."""
        return invert_sequentially(model.flow, z, labels, guidance=guidance)


@dataclass(frozen=True)
class Jacobi(ExactInverse):
    """The exact inverse by fixed-point iteration, then a score step.

    tolerance: largest change of a value in the last iteration of each block; 0 iterates until nothing changes.
    groups: patches iterated together, one number for all blocks or one per block; none for all patches at once; or
    "measured" to have `measure_groups` choose them, once for every guidance, with this call_cost.
    """

    title = "exact inverse, Jacobi iteration"
    tolerance: float = TOLERANCE
    groups: int | tuple[int, ...] | Literal["measured"] | None = None
    call_cost: float = field(default=CALL_COST, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerance(self.tolerance)
        if isinstance(self.groups, list):
            object.__setattr__(self, "groups", tuple(self.groups))
        if isinstance(self.groups, str) and self.groups != "measured":
            raise InputError(f"Expected groups to be a number of patches, a list, or 'measured'; got {self.groups!r}.")

    def prepare(self, model: Model, guidance: Guidance) -> Sampler:
        """The same with its groups measured, if they should be."""
        super().prepare(model, guidance)
        if self.groups != "measured":
            group_sizes(self.groups, model.config.flow.blocks, model.config.num_patches)
            return self
        flow, indices = model.flow, range(MEASURED_ON)
        z = flow.scale_noise(normal_for(indices, model.config.noise_shape, "groups").to(model.device))
        labels = torch.tensor(indices, device=model.device) % max(1, model.config.num_classes)
        sizes = measure_groups(flow, z, labels, guidance=guidance, tolerance=self.tolerance, call_cost=self.call_cost)
        return replace(self, groups=sizes)

    def invert(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Many patches in one network call."""
        assert self.groups != "measured"
        groups: Any = self.groups
        return invert_by_jacobi(model.flow, z, labels, guidance=guidance, tolerance=self.tolerance, groups=groups)


@dataclass(frozen=True)
class GSJacobi(Jacobi):
    """`Jacobi` in groups of patches that are measured for each block."""

    title = "exact inverse, Jacobi iteration in groups"
    groups: int | tuple[int, ...] | Literal["measured"] | None = "measured"


@dataclass(frozen=True)
class Refine(ExactInverse):
    """The exact inverse of all blocks at once, from the reverse model's guess of every state, then a score step."""

    title = "exact inverse, started from the reverse model"
    uses = ("flow", "reverse")
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerance(self.tolerance)

    def invert(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """All blocks in one round."""
        assert model.reverse is not None
        start = guess_states(model.reverse, z, labels, guidance)
        return refine(model.flow, z, labels, start=start, guidance=guidance, tolerance=self.tolerance)


ONE_PASS = OnePass()
SAMPLERS: Mapping[str, Sampler] = {
    "reverse": ONE_PASS,
    "sequential": Sequential(),
    "jacobi": Jacobi(),
    "gs-jacobi": GSJacobi(),
    "refine": Refine(),
}


def find_sampler(method: str | Sampler) -> Sampler:
    """The sampler of this name; a sampler is returned as it is."""
    if isinstance(method, str):
        return choose(SAMPLERS, method, "method")
    if not isinstance(method, Sampler):
        raise InputError(
            f"Expected the name of a method, or a sampler such as Jacobi(); got {method!r}. "
            "A sampler of your own is a subclass of biflow.sampling.samplers.Sampler."
        )
    return method


def parse_sampler(text: str) -> Sampler:
    """A sampler with settings, from the command line.

    >>> parse_sampler("gs-jacobi,tolerance=1e-4")
    GSJacobi(denoise=1.0, tolerance=0.0001, groups='measured', call_cost=64.0)
    """
    head, settings = split_shorthand(text)
    return with_settings(find_sampler(head), settings)
