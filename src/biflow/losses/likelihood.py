"""Log-densities in nats, and bits per dimension."""

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def normal_log_prob(z: Tensor, variance: Tensor) -> Tensor:
    """Log-density of z (B, T, D) under a zero-mean normal prior with variance (T, D).

    Returns (B,) in nats, summed over T and D, at least float32.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    z, variance = z.to(dtype), variance.to(dtype)
    return -0.5 * (z.square() / variance + variance.log() + LOG_2PI).sum(dim=(1, 2))


def bits_per_dim(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    """Log-density (B,) in nats -> bits per dimension (B,) of data quantised to bins of this width.

    The density is in the units of `bin_width`: a density p gives one cell the probability p * bin_width**num_dims.
    """
    return -(log_prob / num_dims + math.log(bin_width)) / math.log(2)
