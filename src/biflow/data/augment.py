"""Random training inputs: image noise, flips, label dropout, guidance strengths and crops."""

from collections.abc import Sequence

import torch
from torch import Tensor

from biflow.data.randomness import Key, normal_for, stream, uniform_for
from biflow.losses.perceptual import WHOLE, Window

GUIDED_SHARE = 0.25
WINDOW_AREA, WINDOW_ASPECT, WINDOW_TRIES = (0.08, 1.0), 4 / 3, 10  # the aspect is between 1 / this and this


def add_noise(images: Tensor, indices: Sequence[int], std: float, *keys: Key, bin_width: float = 0.0) -> Tensor:
    """Add noise drawn for (keys, index) to images (B, P, H, W): Gaussian of this standard deviation, and uniform.

    The uniform noise fills a bin of this width around each value. At the distance between grey levels it dequantises:
    the density of the result bounds the probability of the quantised image.
    """
    shape = tuple(images.shape[1:])
    if bin_width:
        images = images.add((uniform_for(indices, shape, "dequantise", *keys) - 0.5).to(images), alpha=bin_width)
    if std:
        images = images.add(normal_for(indices, shape, "noise", *keys).to(images), alpha=std)
    return images


def flip(images: Tensor, indices: Sequence[int], *keys: Key) -> Tensor:
    """Mirror images (B, P, H, W) left to right with probability 1/2, drawn for (keys, index)."""
    mirrored = uniform_for(indices, (), "flip", *keys).to(images.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def drop_labels(labels: Tensor, indices: Sequence[int], share: float, null_label: int, *keys: Key) -> Tensor:
    """Replace labels (B,) by the null label with probability `share`, drawn for (keys, index)."""
    if not share:
        return labels
    dropped = uniform_for(indices, (), "label drop", *keys).to(labels.device) < share
    return torch.where(dropped, null_label, labels)


def draw_guidance(labels: Tensor, indices: Sequence[int], max_guidance: float, null_label: int, *keys: Key) -> Tensor:
    """Guidance strengths w (B,) for training, drawn for (keys, index): 0 for most images and the null label.

    For the others 1 + w is log-uniform on [1, 1 + max_guidance], which favours weak guidance.
    """
    if not max_guidance:
        return torch.zeros(len(labels), dtype=torch.float32, device=labels.device)
    draws = uniform_for(indices, (), "guidance", *keys).to(labels.device)
    guided = (draws < GUIDED_SHARE) & (labels != null_label)
    return torch.where(guided, (1 + max_guidance) ** (draws / GUIDED_SHARE) - 1, 0.0)


def draw_window(*keys: Key) -> Window:
    """A random crop of uniform area and log-uniform aspect, as for training classifiers, drawn for the keys."""
    generator = stream("window", *keys)
    for _ in range(WINDOW_TRIES):
        area = generator.uniform(*WINDOW_AREA)
        aspect = WINDOW_ASPECT ** generator.uniform(-1, 1)
        height, width = (area / aspect) ** 0.5, (area * aspect) ** 0.5
        if height <= 1 and width <= 1:
            return generator.uniform(0, 1 - height), generator.uniform(0, 1 - width), height, width
    return WHOLE
