"""Supervision of the reverse model by the flow's states (BiFlow, arXiv 2512.10953, learning the inverse)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from biflow.losses.perceptual import squared_distance


def hidden_alignment(predicted: Sequence[Tensor], states: Sequence[Tensor], rms: Tensor) -> Tensor:
    """Mean squared distance between predicted and actual states of the flow, per level and image: (levels, B).

    predicted[i]: (B, T, D), the prediction of level i's head, in the flow's units.
    states[i]: (B, T, D), the flow's state at that level; no gradient.
    rms: (levels,), root mean square of each level's states; both sides are divided by it, so that every level has
    equal weight (norm control by normalised trajectories).
    """
    distances = [
        squared_distance(guess / scale, state.detach() / scale)
        for guess, state, scale in zip(predicted, states, rms, strict=True)
    ]
    return torch.stack(distances)
