"""How images come from noise: what every call that draws takes by keyword, checked once."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypedDict

from biflow.errors import InputError, nearest
from biflow.samplers import Sampler, find_sampler
from biflow.sampling.guidance import Guidance


class SamplingOptions(TypedDict, total=False):
    """How images come from noise; `SamplingSettings` has the defaults.

    guidance: its strength, 0 for none, or a `Guidance`.
    method: "reverse" is the learned reverse model, one pass; "sequential" the exact inverse of the flow, patch by
    patch, then one score step against its noise; "jacobi", "gs-jacobi" and "refine" come to the same images, within a
    tolerance, in fewer calls one after another.  An object of `biflow.samplers` sets more: `Jacobi(tolerance=1e-5)`.
    seed: the same gives the same images, whatever the batch size.
    batch_size: images at a time.
    """

    guidance: float | Guidance
    method: str | Sampler
    seed: int
    batch_size: int


@dataclass(frozen=True)
class SamplingSettings:
    """`SamplingOptions` with the defaults for what was left out."""

    guidance: float | Guidance = 0.0
    method: str | Sampler = "reverse"
    seed: int = 0
    batch_size: int = 256

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The options, checked.

        >>> SamplingSettings.of({"seed": 3}).batch_size
        256
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise InputError(f"Unknown option {name!r}; {nearest(name, known)}")
        settings = cls(**options)
        check_seed(settings.seed)
        check_batch_size(settings.batch_size)
        return settings

    @property
    def strength(self) -> Guidance:
        """The guidance, whole."""
        return self.guidance if isinstance(self.guidance, Guidance) else Guidance(self.guidance)

    @property
    def sampler(self) -> Sampler:
        """What draws."""
        return find_sampler(self.method)


def check_batch_size(batch_size: int) -> None:
    """Raise unless this is a number of images."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"Expected a batch size of 1 or more; got {batch_size}.")


def check_seed(seed: int) -> None:
    """Raise unless this is a whole number, not below 0."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"Expected a whole number as seed, 0 or more; got {seed!r}.")
