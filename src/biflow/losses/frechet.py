"""The Fréchet distance between Gaussians, and where its gradient moves each feature."""

from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-4  # of the mean variance of both Gaussians, added to a covariance that is inverted

TINY = 1e-12


class Transport(NamedTuple):
    """The optimal map of one Gaussian onto another: f -> target_mean + matrix (f - mean), and what it costs."""

    mean: Tensor  # (F,)
    matrix: Tensor  # (F, F), symmetric
    target_mean: Tensor  # (F,)
    distance: Tensor  # the Fréchet distance, a scalar

    def limited(self, stretch: float) -> "Transport":
        """The same map, stretching no direction by more than this factor."""
        values, vectors = torch.linalg.eigh(self.matrix)
        return self._replace(matrix=vectors * values.clamp(max=stretch) @ vectors.T)

    def __call__(self, features: Tensor) -> Tensor:
        """Move features (B, F) to where the other Gaussian has them."""
        return (features - self.mean) @ self.matrix + self.target_mean


def transport(mean: Tensor, covariance: Tensor, target_mean: Tensor, target_covariance: Tensor) -> Transport:
    """The optimal transport between two Gaussians of F features, in their dtype; use float64.

    The matrix is C^(-1/2) (C^(1/2) T C^(1/2))^(1/2) C^(-1/2) for the covariances C and T (Olkin and Pukelsheim 1982,
    eq. 9). Half the gradient of the Fréchet distance for one of N features f is (f - map(f)) / N.
    """
    variance = (covariance + target_covariance).trace() / len(covariance) / 2
    ridge = (RIDGE * variance).clamp(min=TINY)
    root, inverse = matrix_power(covariance, 0.5, ridge), matrix_power(covariance, -0.5, ridge)
    middle = matrix_power(root @ target_covariance @ root, 0.5)
    distance = (mean - target_mean).square().sum() + (covariance + target_covariance - 2 * middle).trace()
    return Transport(mean, inverse @ middle @ inverse, target_mean, distance.clamp(min=0))


def matrix_power(matrix: Tensor, exponent: float, ridge: Tensor | float = 0.0) -> Tensor:
    """A power of a symmetric positive semidefinite matrix (F, F), whose eigenvalues are first raised by `ridge`."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * (values.clamp(min=0) + ridge) ** exponent @ vectors.T


def frechet_loss(features: Tensor, move: Transport, scale: Tensor | float = 1.0) -> Tensor:
    """Squared distance of features (B, F) from where the transport moves them, over `scale`: (B,).

    Averaged over all samples it is the Fréchet distance of their Gaussian; its gradient is that of the distance, up to
    a factor, when `move` is from the statistics of a whole population (FD-Loss, arXiv 2604.28190). No gradient through
    the transport.
    """
    with torch.no_grad():
        target = move(features.to(move.matrix))
    return (features - target.to(features)).square().sum(dim=1) / scale
