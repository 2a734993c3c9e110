"""Densities and their units: nats, and bits per dimension."""

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def normal_log_prob(z: Tensor, variance: Tensor) -> Tensor:
    """Log-density of a normal prior with mean 0.

    z (B, T, D), variance (T, D).  Returns (B,) nats, summed over T and D, in float32 or better.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    z, variance = z.to(dtype), variance.to(dtype)
    return -0.5 * (z.square() / variance + variance.log() + LOG_2PI).sum(dim=(1, 2))


def bits_per_dim(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    """Density -> bits per dimension of data quantised to bins of this width.

    log_prob (B,) in nats, of a density over the units that `bin_width` is in.  Returns (B,).
    A density p is worth the probability p * bin_width**num_dims of one cell.
    """
    return -(log_prob / num_dims + math.log(bin_width)) / math.log(2)
