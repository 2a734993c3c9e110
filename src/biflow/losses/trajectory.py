"""How a reverse model is held to the flow's trajectory (BiFlow, arXiv 2512.10953, section on learning the inverse)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from biflow.losses.perceptual import squared_distance


def hidden_alignment(predicted: Sequence[Tensor], states: Sequence[Tensor], rms: Tensor) -> Tensor:
    """Mean squared distance between the heads' readings and the flow's states, of every level and image: (levels, B).

    predicted[i]: (B, T, D), what the head of level i reads out of the hidden state, in the flow's units.
    states[i]: (B, T, D), the flow's state of the same level; no gradient flows into it.
    rms: (levels,), the size of each level's states; both sides are divided by it, so that no level
    outweighs another (norm control by normalised trajectories).
    """
    distances = [
        squared_distance(guess / scale, state.detach() / scale)
        for guess, state, scale in zip(predicted, states, rms, strict=True)
    ]
    return torch.stack(distances)
