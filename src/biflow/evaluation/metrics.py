"""Distances between two sets of images, as pure functions of their features or pixels."""

import torch
from torch import Tensor


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, (N, F) and (M, F).

    |mean difference|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), in float64; with Inception features this is FID
    (Heusel et al. 2017, arXiv 1706.08500, eq. 6).  The square root's trace comes from the eigenvalues of
    the symmetric C1^(1/2) C2 C1^(1/2), which also holds for singular covariances.
    """
    a, b = features.double(), reference.double()
    mean_term = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float(mean_term + cov_a.trace() + cov_b.trace() - 2 * cross)


def nearest_distances(items: Tensor, others: Tensor) -> Tensor:
    """Euclidean distance from each of items (N, ...) to the nearest of others (M, ...): (N,)."""
    return torch.cdist(items.flatten(1).double(), others.flatten(1).double()).amin(dim=1)


def nearest_distances_within(items: Tensor) -> Tensor:
    """Euclidean distance from each of items (N, ...) to the nearest other one: (N,)."""
    distances = torch.cdist(items.flatten(1).double(), items.flatten(1).double())
    return distances.fill_diagonal_(torch.inf).amin(dim=1)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error of probabilities (N, K) for labels (N,): 0 when confidence is accuracy.

    Images are put in bins of equal width by the probability of their best class; the mean over images of the
    difference between a bin's accuracy and its mean probability (Guo et al. 2017, arXiv 1706.04599, eq. 3).
    """
    confidence, guess = probabilities.double().max(dim=1)
    right = (guess == labels).double()
    places = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, places, right - confidence)
    return float(gaps.abs().sum() / len(labels))
