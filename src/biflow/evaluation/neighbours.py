"""Nearest-neighbour metrics of images or their features, as pure functions; in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.evaluation.metrics import check_features, check_same_width

BLOCK = 4096  # rows and columns of a distance matrix: 128 MiB
SAME = 1e-12  # relative to squared lengths: rounding error in an item's distance to itself


def nearest_distances(items: Tensor, others: Tensor) -> Tensor:
    """Euclidean distance from each of items (N, ...) to the nearest of others (M, ...): (N,)."""
    return torch.cdist(items.flatten(1).double(), others.flatten(1).double()).amin(dim=1)


class PrecisionAndRecall(NamedTuple):
    """Share of samples that look real, and of real images that look like samples; from 0 to 1."""

    precision: float
    recall: float


def precision_and_recall(
    samples: Tensor, reference: Tensor, *, neighbours: int = 3, block: int = BLOCK
) -> PrecisionAndRecall:
    """Precision and recall of samples' features (N, F) against those of real images (M, F).

    A set covers the union of balls around its items, each with the distance to the item's k-th neighbour as radius.
    Precision is the share of samples covered by the real images, recall the share of real images covered by the samples
    (Kynkäänniemi et al. 2019, arXiv 1904.06991, eqs. 1 and 2; k = 3 there and in the evaluator of guided-diffusion,
    which uses 50,000 samples and 10,000 real images).  No distance matrix is larger than block x block.
    """
    for each in (samples, reference):
        check_features(each, least=neighbours + 1)
    check_same_width(samples, reference)
    reach, reference_reach = (squared_reach(each, neighbours, block=block) for each in (samples, reference))
    real = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    found = torch.zeros(len(reference), dtype=torch.bool, device=samples.device)
    for rows in _parts(len(samples), block):
        for columns in _parts(len(reference), block):
            distances = _squared_distances(samples[rows], reference[columns])
            real[rows] |= (distances <= reference_reach[None, columns]).any(dim=1)
            found[columns] |= (distances <= reach[rows, None]).any(dim=0)
    return PrecisionAndRecall(real.double().mean().item(), found.double().mean().item())


def squared_reach(items: Tensor, neighbours: int, *, block: int = BLOCK) -> Tensor:
    """Squared distance from each of items (N, F) to its k-th nearest other item: (N,)."""
    found = []
    for rows in _parts(len(items), block):
        nearest = torch.empty(len(items[rows]), 0, dtype=torch.float64, device=items.device)
        for columns in _parts(len(items), block):
            candidates = torch.cat([nearest, _squared_distances(items[rows], items[columns])], dim=1)
            nearest = candidates.topk(min(neighbours + 1, candidates.shape[1]), largest=False).values
        found.append(nearest.amax(dim=1))  # the item itself is the first of the k + 1
    return torch.cat(found)


def _squared_distances(items: Tensor, others: Tensor) -> Tensor:
    items, others = items.double(), others.double()
    lengths = items.square().sum(1)[:, None] + others.square().sum(1)
    squared = (lengths - 2 * items @ others.T).clamp(min=0)
    return squared.masked_fill(squared < SAME * lengths, 0)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
