"""What the nearest neighbours among images, or among their features, say; pure functions, in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.evaluation.metrics import check_features, check_same_width

BLOCK = 4096  # items on either side of a table of distances: 128 MiB
SAME = 1e-12  # of squared lengths: what rounding leaves of the distance of an item from itself


def nearest_distances(items: Tensor, others: Tensor) -> Tensor:
    """Euclidean distance from each of items (N, ...) to the nearest of others (M, ...): (N,)."""
    return torch.cdist(items.flatten(1).double(), others.flatten(1).double()).amin(dim=1)


def nearest_distances_within(items: Tensor) -> Tensor:
    """Euclidean distance from each of items (N, ...) to the nearest other one: (N,)."""
    distances = torch.cdist(items.flatten(1).double(), items.flatten(1).double())
    return distances.fill_diagonal_(torch.inf).amin(dim=1)


class PrecisionAndRecall(NamedTuple):
    """Shares, from 0 to 1: of samples that look real, and of real images that look like samples."""

    precision: float
    recall: float


def precision_and_recall(
    samples: Tensor, reference: Tensor, *, neighbours: int = 3, block: int = BLOCK
) -> PrecisionAndRecall:
    """Precision and recall of samples' features (N, F) for those of real images (M, F).

    A set covers the balls around its items that reach to their k-th neighbour in it; precision is the share of samples
    that the real images cover, recall the share of real images that the samples cover (Kynkaanniemi et al. 2019, arXiv
    1904.06991, eqs. 1 and 2; k = 3 there and in the evaluator of guided-diffusion, which takes 50,000 samples and
    10,000 real images).  No table is larger than block x block.
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
    """Squared distance from each of items (N, F) to its k-th nearest other one: (N,)."""
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
