"""What every sampler returns."""

from typing import NamedTuple

from torch import Tensor


class Sample(NamedTuple):
    """Patches made from noise, and what they cost."""

    x: Tensor  # (B, T, D)
    network_calls: int  # evaluations: of a block for the flow, of the model for the reverse model
    rounds: int  # those of them that must follow one another
    residual: Tensor | None = None  # (B,), of an exact inverse: the largest change of its last update, 0 if exact
