"""Supervision of the reverse model by the flow's states (BiFlow, arXiv 2512.10953, learning the inverse)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from biflow.losses.perceptual import squared_distance


def hidden_alignment(predicted: Sequence[Tensor], states: Sequence[Tensor], rms: Tensor) -> Tensor:
    """Mean squared distance between predicted and actual states of the flow, per level and image: (levels, B).

    predicted[i] and states[i]: (B, T, D) at level i, in the flow's units; no gradient through states. rms: (levels,),
    root mean square of each level's states; both are divided by it, so that every level has equal weight.
    """
    levels = zip(predicted, states, rms, strict=True)
    return torch.stack([squared_distance(guess / scale, state / scale) for guess, state, scale in levels])
