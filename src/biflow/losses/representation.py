"""Distances between the flow's projected features and an encoder's (FlowBack, arXiv 2511.22345, eq. 4)."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from biflow.losses.perceptual import absolute_distance, full, squared_distance


def cosine_distance(projected: Tensor, target: Tensor) -> Tensor:
    """Mean over patches of 1 - cosine similarity: (B, T, F) twice -> (B,); no gradient through the target."""
    return 1 - F.cosine_similarity(full(projected), full(target.detach()), dim=-1).mean(dim=1)


FEATURE_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_distance,
    "mse": squared_distance,
    "l1": absolute_distance,
}


def resample(features: Tensor, side: int) -> Tensor:
    """Resize a grid (B, F, h, w) to side x side, bilinear and antialiased, then flatten in raster order: (B, T, F)."""
    if features.shape[-2:] != (side, side):
        features = F.interpolate(full(features), (side, side), mode="bilinear", antialias=True)
    return features.flatten(2).transpose(1, 2)
