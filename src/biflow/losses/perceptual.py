"""How far apart two sets of images are, image by image: pure functions of their values or of their features.

Differences are taken in float32 or better, whatever precision the networks ran in: small ones drown in bfloat16.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Window = tuple[float, float, float, float]
"""A part of an image: its top, left, height and width, as shares of the image's."""

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


def squared_distance(images: Tensor, target: Tensor) -> Tensor:
    """Mean over all values of the squared difference: (B, ...) and (B, ...) -> (B,)."""
    return (full(images) - full(target)).square().flatten(1).mean(dim=1)


def absolute_distance(images: Tensor, target: Tensor) -> Tensor:
    """Mean over all values of the absolute difference: (B, ...) and (B, ...) -> (B,)."""
    return (full(images) - full(target)).abs().flatten(1).mean(dim=1)


def direction_distance(
    maps: Sequence[Tensor], target: Sequence[Tensor], calibration: Sequence[Tensor] | None = None
) -> Tensor:
    """Squared distance between the directions of features, summed over channels and maps, averaged over places.

    maps and target: one (B, F, H, W) for each layer.  calibration: a weight (F,) for every channel of each layer, as
    LPIPS learned them (Zhang et al. 2018, arXiv 1801.03924, eq. 1); all 1 without.  Returns (B,).
    """
    total = torch.zeros(())
    for layer, (a, b) in enumerate(zip(maps, target, strict=True)):
        squares = (_direction(a) - _direction(b)).square()  # (B, F, H, W)
        if calibration is not None:
            squares = squares * calibration[layer][:, None, None]
        total = total.to(squares) + squares.sum(dim=1).mean(dim=(1, 2))
    return total


def full(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _direction(features: Tensor) -> Tensor:
    features = full(features)
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def adaptive(distance: Tensor, power: float, offset: float) -> Tensor:
    """Distances D (...) times D's own weight (D + offset)^-power, which has no gradient (BiFlow, eq. 7)."""
    return distance * (distance.detach() + offset).pow(-power) if power else distance
