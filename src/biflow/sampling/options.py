"""How images are sampled: the keyword arguments of every call that samples, checked once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, TypedDict

from torch import Tensor

from biflow.errors import InputError, check_number, nearest
from biflow.sampling.guidance import NO_GUIDANCE, Guidance
from biflow.sampling.samplers import ONE_PASS, Sampler, find_sampler


class SamplingOptions(TypedDict, total=False):
    """How images are sampled; `SamplingSettings` has the defaults.

    guidance: guidance strength, 0 for none, or a `Guidance`.
    method: the name of a sampler. "reverse" is one pass of the learned reverse model; "sequential" inverts the flow
    exactly, patch by patch, then denoises by one score step; "jacobi", "gs-jacobi" and "refine" iterate to nearly
    the same images in fewer sequential calls. Pass a sampler object to change its settings:
    `Jacobi(tolerance=1e-5)`.
    seed: the same seed gives the same images at any batch size.
    batch_size: images per batch; affects speed and memory only.
    """

    guidance: float | Guidance
    method: str | Sampler
    seed: int
    batch_size: int


def check_indices(indices: Iterable[Any]) -> list[int]:
    """Indices of samples as a list; raises unless they are whole numbers from 0.

    >>> check_indices(range(3))
    [0, 1, 2]
    """
    if not isinstance(indices, Iterable):
        raise InputError(f"Expected indices in a list, such as [0, 1]; got {indices!r}.")
    found = [each.item() if isinstance(each, Tensor) else each for each in indices]
    for each in found:
        check_number(each, "every index", whole=True)
    return [int(each) for each in found]


@dataclass(frozen=True)
class SamplingSettings:
    """`SamplingOptions` with defaults, as objects."""

    guidance: Guidance = NO_GUIDANCE
    sampler: Sampler = ONE_PASS
    seed: int = 0
    batch_size: int = 256

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The options, checked.

        >>> SamplingSettings.of({"seed": 3, "guidance": 0.5}).guidance.strength
        0.5
        """
        given = dict(options)
        for name in given.keys() - SamplingOptions.__annotations__.keys():
            raise InputError(f"Unknown option {name!r}; {nearest(name, SamplingOptions.__annotations__)}")
        if "method" in given:
            given["sampler"] = find_sampler(given.pop("method"))
        if not isinstance(given.get("guidance", cls.guidance), Guidance):
            given["guidance"] = Guidance(given["guidance"])
        settings = cls(**given)
        check_number(settings.seed, "seed", whole=True)
        check_number(settings.batch_size, "batch_size", least=1, whole=True)
        return replace(settings, seed=int(settings.seed), batch_size=int(settings.batch_size))
