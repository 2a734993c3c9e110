"""The samplers, by name: what `method=` means.

A new sampler is a class like those below and a row of `SAMPLERS`: the command line, the app and the evaluation read
what it says of itself.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from biflow.data.randomness import normal_for
from biflow.errors import InputError, choose
from biflow.models.model import Model
from biflow.sampling.denoise import check_score_step, score_denoise
from biflow.sampling.guidance import Guidance
from biflow.sampling.jacobi import CALL_COST, TOLERANCE, check_tolerance, group_sizes, invert_by_jacobi, measure_groups
from biflow.sampling.one_pass import check_reverse_guidance, guess_states, sample_in_one_pass
from biflow.sampling.refine import refine
from biflow.sampling.result import SamplerOutput
from biflow.sampling.sequential import invert_sequentially
from biflow.sampling.shorthand import split_shorthand, with_settings

MEASURED_ON = 8  # images


class Sampler(Protocol):
    """Noise -> clean patches."""

    @property
    def title(self) -> str:
        """Its name for people."""
        ...

    @property
    def uses(self) -> tuple[str, ...]:
        """Networks that it evaluates: "flow", "reverse" or both."""
        ...

    @property
    def counted(self) -> tuple[str, ...]:
        """Its operations as rows of `biflow.plan.operations.sampling`; none if they depend on the image."""
        ...

    def prepare(self, model: Model, guidance: Guidance) -> "Sampler":
        """The sampler with everything that it needs to know of this model; an error if it cannot serve it."""
        ...

    def __call__(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) and labels (B,) -> patches of clean images (B, T, D)."""
        ...


@dataclass(frozen=True)
class OnePass:
    """The learned reverse model: one evaluation, and a score step if it was trained to be followed by one."""

    title: ClassVar[str] = "reverse model, one pass"
    uses: ClassVar[tuple[str, ...]] = ("reverse",)
    counted: ClassVar[tuple[str, ...]] = ("one pass",)

    def prepare(self, model: Model, guidance: Guidance) -> "OnePass":
        """Raise unless the model has a reverse model, and the guidance suits it."""
        check_has_reverse(model)
        check_reverse_guidance(guidance, model.config.num_classes)
        assert model.reverse is not None
        config = model.reverse.config
        if config.guidance == "trained" and guidance.strength > config.max_guidance:
            warnings.warn(
                f"Guidance {guidance.strength:g} is above the {config.max_guidance:g} that the reverse model learned.",
                stacklevel=2,
            )
        return self

    def __call__(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) and labels (B,) -> patches of clean images (B, T, D)."""
        assert model.reverse is not None
        drawn = sample_in_one_pass(model.reverse, z, labels, guidance=guidance)
        if model.reverse.config.denoising != "score":
            return drawn
        return drawn._replace(x=score_denoise(model.flow, drawn.x, labels))


@dataclass(frozen=True)
class Sequential:
    """The exact inverse patch by patch, then a score step against the flow's noise: 1 is the full step, 0 none."""

    title: ClassVar[str] = "exact inverse, patch by patch"
    uses: ClassVar[tuple[str, ...]] = ("flow",)
    denoise: float = 1.0

    def __post_init__(self) -> None:
        check_score_step(self.denoise)

    @property
    def counted(self) -> tuple[str, ...]:
        """The inverse, and the score step if it is taken."""
        return ("exact inverse", "score step after either") if self.denoise else ("exact inverse",)

    def prepare(self, model: Model, guidance: Guidance) -> "Sequential":
        """Raise unless the guidance suits the flow."""
        guidance.check(model.config.num_classes)
        return self

    def __call__(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) and labels (B,) -> patches of clean images (B, T, D)."""
        inverse = invert_sequentially(model.flow, z, labels, guidance=guidance)
        return inverse._replace(x=score_denoise(model.flow, inverse.x, labels, step=self.denoise))


@dataclass(frozen=True)
class Jacobi:
    """The exact inverse by fixed-point iteration, within a tolerance, then a score step as after `Sequential`.

    groups: patches iterated together, one number for all blocks or one a block; none for all patches at once; or
    "measured" to have `measure_groups` choose for each block, once for every strength of guidance, with this call_cost.
    """

    uses: ClassVar[tuple[str, ...]] = ("flow",)
    counted: ClassVar[tuple[str, ...]] = ()
    tolerance: float = TOLERANCE
    groups: int | tuple[int, ...] | Literal["measured"] | None = None
    denoise: float = 1.0
    call_cost: float = CALL_COST

    def __post_init__(self) -> None:
        check_score_step(self.denoise)
        check_tolerance(self.tolerance)
        if isinstance(self.groups, list):
            object.__setattr__(self, "groups", tuple(self.groups))
        if isinstance(self.groups, str) and self.groups != "measured":
            raise InputError(
                f"Expected groups of a number of patches, a list of them, or 'measured'; got {self.groups!r}."
            )

    @property
    def title(self) -> str:
        """Says whether all patches are iterated at once."""
        return f"exact inverse, Jacobi iteration{' in groups' if self.groups is not None else ''}"

    def prepare(self, model: Model, guidance: Guidance) -> "Jacobi":
        """The same with its groups measured, if they are to be."""
        guidance.check(model.config.num_classes)
        if self.groups != "measured":
            group_sizes(self.groups, model.config.flow.blocks, model.config.num_patches)
            return self
        flow, indices = model.flow, range(MEASURED_ON)
        z = flow.scale_noise(normal_for(indices, tuple(flow.prior_variance.shape), "groups").to(model.device))
        labels = torch.tensor(indices, device=model.device) % max(1, model.config.num_classes)
        sizes = measure_groups(flow, z, labels, guidance=guidance, tolerance=self.tolerance, call_cost=self.call_cost)
        return replace(self, groups=sizes)

    def __call__(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) and labels (B,) -> patches of clean images (B, T, D)."""
        assert self.groups != "measured"
        inverse = invert_by_jacobi(
            model.flow, z, labels, guidance=guidance, tolerance=self.tolerance, groups=self.groups
        )
        return inverse._replace(x=score_denoise(model.flow, inverse.x, labels, step=self.denoise))


@dataclass(frozen=True)
class Refine:
    """The exact inverse for all blocks at once, from the reverse model's guess of every state, then a score step."""

    title: ClassVar[str] = "exact inverse, from the reverse model's guess"
    uses: ClassVar[tuple[str, ...]] = ("flow", "reverse")
    counted: ClassVar[tuple[str, ...]] = ()
    tolerance: float = TOLERANCE
    denoise: float = 1.0

    def __post_init__(self) -> None:
        check_score_step(self.denoise)
        check_tolerance(self.tolerance)

    def prepare(self, model: Model, guidance: Guidance) -> "Refine":
        """Raise unless the model has a reverse model, and the guidance suits the flow."""
        check_has_reverse(model)
        guidance.check(model.config.num_classes)
        return self

    def __call__(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) and labels (B,) -> patches of clean images (B, T, D)."""
        assert model.reverse is not None
        start = guess_states(model.reverse, z, labels, guidance)
        inverse = refine(model.flow, z, labels, start=start, guidance=guidance, tolerance=self.tolerance)
        return inverse._replace(x=score_denoise(model.flow, inverse.x, labels, step=self.denoise))


def check_has_reverse(model: Model) -> None:
    """Raise unless the model has a reverse model."""
    if model.reverse is None:
        raise InputError("Expected a model with a reverse model; this one has only a flow. Use method sequential.")


ONE_PASS = OnePass()
SAMPLERS: Mapping[str, Sampler] = {
    "reverse": ONE_PASS,
    "sequential": Sequential(),
    "jacobi": Jacobi(),
    "gs-jacobi": Jacobi(groups="measured"),
    "refine": Refine(),
}


def find_sampler(method: str | Sampler) -> Sampler:
    """The sampler of this name; a sampler is itself."""
    if not isinstance(method, str):
        if isinstance(method, type) or not hasattr(method, "prepare"):
            raise InputError(f"Expected a method by name, or a sampler as Jacobi() is one; got {method!r}.")
        return method
    return choose(SAMPLERS, method, "method")


def parse_sampler(text: str) -> Sampler:
    """A sampler from one word.

    >>> parse_sampler("gs-jacobi,tolerance=1e-4")
    Jacobi(tolerance=0.0001, groups='measured', denoise=1.0, call_cost=64.0)
    """
    head, settings = split_shorthand(text)
    return with_settings(find_sampler(head), settings)
