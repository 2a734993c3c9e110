"""What is done at random to a training batch: Gaussian noise on the images, labels dropped for guidance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from biflow.data.randomness import Key, normal_for, uniform_for


def add_noise(images: Tensor, indices: Sequence[int], std: float, *keys: Key) -> Tensor:
    """images (B, P, H, W) plus Gaussian noise of this standard deviation, drawn for (keys, index)."""
    return images + std * normal_for(indices, tuple(images.shape[1:]), "noise", *keys).to(images)


def drop_labels(labels: Tensor, indices: Sequence[int], share: float, null_label: int, *keys: Key) -> Tensor:
    """labels (B,), this share of them replaced by the null label, drawn for (keys, index)."""
    dropped = uniform_for(indices, "label drop", *keys).to(labels.device) < share
    return torch.where(dropped, null_label, labels)
