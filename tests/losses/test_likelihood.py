import math

import torch
from torch.distributions import Normal

from biflow.losses.likelihood import bits_per_dim, normal_log_prob


def test_prior_is_a_normal_of_this_variance():
    z = torch.randn(4, 3, 5, dtype=torch.float64)
    variance = torch.rand(z.shape[1:], dtype=z.dtype) + 0.5
    torch.testing.assert_close(normal_log_prob(z, variance), Normal(0, variance.sqrt()).log_prob(z).sum((1, 2)))


def test_prior_of_half_precision_noise_is_computed_in_float32():
    assert normal_log_prob(torch.randn(2, 3, 4, dtype=torch.bfloat16), torch.ones(3, 4)).dtype == torch.float32


def test_uniform_density_over_256_levels_is_8_bits():
    log_prob = torch.tensor([-12 * math.log(2.0)], dtype=torch.float64)  # density 1/2 on [-1, 1], 12 dimensions
    torch.testing.assert_close(bits_per_dim(log_prob, 12, 2 / 256), torch.tensor([8.0], dtype=torch.float64))
