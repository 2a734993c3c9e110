"""Classifier-free guidance as arithmetic on what a flow block predicts."""

import math
from dataclasses import dataclass

from biflow.errors import InputError
from biflow.models.flow_block import Affine


@dataclass(frozen=True)
class Guidance:
    """A strength, 0 for none, and how it is spread over the patches.

    annealed: it grows evenly from 0 at the first patch read to the full strength at the last
    (TARFlow, arXiv 2412.06329); otherwise it is the same everywhere.
    """

    strength: float = 0.0
    annealed: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.strength, int | float) or not 0 <= self.strength < math.inf:
            raise InputError(f"Expected guidance of 0 (none) or more, and finite; got {self.strength!r}.")

    def at(self, patch: int, num_patches: int) -> float:
        """The strength for one patch, counted from 0 in reading order."""
        return self.strength * patch / (num_patches - 1) if self.annealed else self.strength


NO_GUIDANCE = Guidance()


def extrapolate(conditional: Affine, unconditional: Affine, strength: float) -> Affine:
    """Both predictions moved away from the unconditional one; strength 0 changes nothing.

    Linear in the shift and in the log-scale, as TARFlow guides (arXiv 2412.06329).
    """
    return Affine(*(c + strength * (c - u) for c, u in zip(conditional, unconditional, strict=True)))
