"""Nearest-neighbour metrics, compared with loops over all pairs."""

import pytest
import torch

from biflow.errors import InputError
from biflow.evaluation.neighbours import (
    nearest_distances,
    precision_and_recall,
    squared_reach,
)
from biflow.quickstart.measures import measure_copying
from tests.builders import tiny_images


def features(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def test_nearest_distances_equal_brute_force():
    x, y = features(6, 3, 0), features(9, 3, 1)
    expected = [min((a - b).norm().item() for b in y) for a in x]
    assert nearest_distances(x, y).tolist() == pytest.approx(expected)


def test_copies_of_training_images_are_found():
    train = tiny_images(60)
    assert measure_copying(train.images[:20], train)["nearer_than_real_share"] == 1
    assert measure_copying(tiny_images(60, seed=5).images, train)["nearer_than_real_share"] < 0.2


def test_samples_that_repeat_each_other_have_no_spread():
    train = tiny_images(60)
    assert measure_copying(train.images[:1].repeat(30, 1, 1, 1), train)["spread_ratio"] == 0
    assert measure_copying(train.images, train)["spread_ratio"] == pytest.approx(1)


def test_squared_reach_is_the_distance_to_the_kth_other_item_for_any_block_size():
    x = features(23, 5, 0)
    x[7] = x[3]  # a copy is the nearest other item
    expected = torch.cdist(x, x).sort(dim=1).values[:, 3].square()
    for block in (1, 2, 5, 100):
        torch.testing.assert_close(squared_reach(x, 3, block=block), expected)
    assert squared_reach(x, 1)[[3, 7]].tolist() == [0, 0]


def test_precision_and_recall_of_a_small_example():
    """The real images at 0, 1 and 5 have radii 1, 1 and 4: they cover the samples 1.5 and 2, not 20.

    The samples at 1.5, 2 and 20 have radii 0.5, 0.5 and 18: they cover the real images 1 and 5, not 0.
    """
    real, samples = torch.tensor([[0.0], [1], [5]]), torch.tensor([[1.5], [2], [20]])
    found = precision_and_recall(samples, real, neighbours=1)
    assert found == pytest.approx((2 / 3, 2 / 3))


def test_precision_and_recall_equal_loops_for_any_block_size():
    real, samples = features(40, 3, 0), features(31, 3, 1) * 1.5 + 0.5

    def covered(items, by):
        reach = [sorted((a - b).norm() for b in by)[3] for a in by]
        return sum(any((x - a).norm() <= r for a, r in zip(by, reach, strict=True)) for x in items) / len(items)

    expected = (covered(samples, real), covered(real, samples))
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    for block in (7, 16, 4096):
        assert precision_and_recall(samples, real, block=block) == pytest.approx(expected)


def test_precision_and_recall_are_one_for_equal_sets_and_zero_for_distant_sets():
    x = features(50, 16, 0)
    assert precision_and_recall(x, x, block=20) == (1, 1)
    assert precision_and_recall(x, x[torch.randperm(50)].float()) == (1, 1)
    assert precision_and_recall(x, x + 100) == (0, 0)


def test_samples_of_one_mode_have_high_precision_and_low_recall():
    real = torch.cat([features(40, 2, 0), features(40, 2, 1) + 100])
    found = precision_and_recall(features(40, 2, 2), real)
    assert found.precision > 0.8
    assert found.recall < 0.5


def test_too_small_sets_and_different_widths_are_rejected():
    with pytest.raises(InputError, match="features of at least 4 images; got 3"):
        precision_and_recall(features(3, 2, 0), features(9, 2, 0))
    with pytest.raises(InputError, match="of the same width; got 2 and 3"):
        precision_and_recall(features(9, 2, 0), features(9, 3, 0))
    with pytest.raises(InputError, match="got NaN or Inf for 9 of 9"):
        precision_and_recall(features(9, 2, 0), features(9, 2, 0) * torch.nan)
