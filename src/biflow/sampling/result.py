"""The result of a sampler."""

from typing import NamedTuple

from torch import Tensor


class SamplerOutput(NamedTuple):
    """Sampled patches and their cost."""

    x: Tensor  # (B, T, D)
    network_calls: int  # block evaluations of the flow, or evaluations of the reverse model
    rounds: int  # sequential calls, which cannot run in parallel
    # (B,), of an exact inverse: largest change in its last update; 0 if exact, NaN if x contains NaN or Inf
    residual: Tensor | None = None


def zero_if_finite(x: Tensor) -> Tensor:
    """The residual of exact patches x (B, T, D): (B,), NaN if they contain NaN or Inf."""
    return (0 * x).amax(dim=(1, 2))
