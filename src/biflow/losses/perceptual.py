"""Per-image distances between images or their features.

Computed in at least float32 whatever the networks' precision: bfloat16 loses small differences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Window = tuple[float, float, float, float]
"""A crop of an image: top, left, height and width, as fractions of the image's size."""

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


def squared_distance(images: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference per image: (B, ...) and (B, ...) -> (B,); no gradient through the target."""
    return (full(images) - full(target.detach())).square().flatten(1).mean(dim=1)


def absolute_distance(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference per image: (B, ...) and (B, ...) -> (B,); no gradient through the target."""
    return (full(images) - full(target.detach())).abs().flatten(1).mean(dim=1)


def direction_distance(
    maps: Sequence[Tensor], target: Sequence[Tensor], calibration: Sequence[Tensor] | None = None
) -> Tensor:
    """Squared distance between unit-normalised feature maps, summed over channels and layers, averaged over positions.

    maps and target: one (B, F, H, W) per layer. calibration: LPIPS' learned channel weights, one (F,) per layer
    (Zhang et al. 2018, arXiv 1801.03924, eq. 1); 1 by default. Returns (B,).
    """
    total = torch.zeros(())
    for layer, (a, b) in enumerate(zip(maps, target, strict=True)):
        squares = (_normalise(a) - _normalise(b)).square()  # (B, F, H, W)
        if calibration is not None:
            squares = squares * calibration[layer][:, None, None]
        total = total.to(squares) + squares.sum(dim=1).mean(dim=(1, 2))
    return total


def full(values: Tensor) -> Tensor:
    """Promote to at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _normalise(features: Tensor) -> Tensor:
    features = full(features)
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def adaptive(distance: Tensor, power: float, offset: float) -> Tensor:
    """Distances D (...) weighted by (D + offset)^-power, without gradient through the weight (BiFlow, eq. 7)."""
    return distance * (distance.detach() + offset).pow(-power) if power else distance
