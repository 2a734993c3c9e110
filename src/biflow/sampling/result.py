"""The result of a sampler."""

from typing import NamedTuple

from torch import Tensor


class SamplerOutput(NamedTuple):
    """Sampled patches and their cost."""

    x: Tensor  # (B, T, D)
    network_calls: int  # block evaluations of the flow, or evaluations of the reverse model
    rounds: int  # sequential calls, which cannot run in parallel
    residual: Tensor | None = None  # (B,), of an exact inverse: largest change in its last update, 0 if exact
