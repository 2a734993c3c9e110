"""How far the flow's features are from an encoder's, patch by patch (FlowBack, arXiv 2511.22345, eq. 4)."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from biflow.losses.perceptual import full


def cosine_distance(projected: Tensor, target: Tensor) -> Tensor:
    """Mean over patches of 1 - cosine: (B, T, F) and (B, T, F) -> (B,); the gradient flows into the first alone."""
    return 1 - F.cosine_similarity(full(projected), full(target.detach()), dim=-1).mean(dim=1)


def squared_distance(projected: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference: (B, T, F) and (B, T, F) -> (B,); the gradient flows into the first alone."""
    return (full(projected) - full(target.detach())).square().mean(dim=(1, 2))


def absolute_distance(projected: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference: (B, T, F) and (B, T, F) -> (B,); the gradient flows into the first alone."""
    return (full(projected) - full(target.detach())).abs().mean(dim=(1, 2))


FEATURE_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_distance,
    "mse": squared_distance,
    "l1": absolute_distance,
}


def resample(features: Tensor, side: int) -> Tensor:
    """Features on a grid, (B, F, h, w) -> a sequence in raster order on a square grid, (B, side * side, F).

    Averages where the grid is finer, interpolates between the nearest where it is coarser.
    """
    if features.shape[-2:] != (side, side):
        features = F.interpolate(full(features), (side, side), mode="bilinear", antialias=True)
    return features.flatten(2).transpose(1, 2)
