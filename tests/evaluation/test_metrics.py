"""Metrics of sets of images: closed forms, loops, and torchmetrics and scipy as second implementations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torch import nn

from biflow.errors import InputError
from biflow.evaluation.cost import milliseconds_per_image
from biflow.evaluation.metrics import (
    Gaussian,
    Moments,
    calibration_error,
    enough_samples,
    frechet_distance,
    inception_score,
    kernel_distance,
    squared_discrepancy,
)


def features(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return frechet_distance(Gaussian.fit(one), Gaussian.fit(other))


def diagonal(mean: list[float], variance: list[float]) -> Gaussian:
    return Gaussian(torch.tensor(mean).double(), torch.tensor(variance).double().diag(), 100)


seeds = st.integers(0, 10_000)
quickly = settings(max_examples=25, deadline=None)


def test_frechet_distance_to_itself_is_zero():
    x = features(50, 8, 0)
    assert distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_a_shift_is_its_squared_length():
    x = features(50, 8, 0)
    assert distance(x + 2, x) == pytest.approx(8 * 4)


def test_frechet_distance_of_a_scale_is_known():
    x = features(50, 8, 0) - features(50, 8, 0).mean(0)
    assert distance(3 * x, x) == pytest.approx(4 * x.T.cov().trace().item())


def test_frechet_distance_of_diagonal_gaussians_is_the_sum_over_axes():
    one, other = diagonal([0, 1, 2], [1, 4, 0]), diagonal([3, 1, 0], [9, 0, 0])
    axes = [(3**2, (1 - 3) ** 2), (0, (2 - 0) ** 2), (2**2, 0)]  # of means, of deviations
    assert frechet_distance(one, other) == pytest.approx(sum(a + b for a, b in axes))


def test_frechet_distance_agrees_with_the_matrix_square_root():
    x, y = features(60, 8, 0), features(70, 8, 1) @ features(8, 8, 2)
    a, b = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert distance(x, y) == pytest.approx(float(expected), rel=1e-7)


def test_frechet_distance_holds_for_singular_covariances():
    x = features(50, 8, 0)
    x[:, 4:] = 0
    assert distance(x, x) == pytest.approx(0, abs=1e-9)
    assert distance(x + 1, x) == pytest.approx(8)
    few = features(5, 30, 1)  # fewer samples than features
    assert distance(few + 1, few) == pytest.approx(30, rel=1e-6)


@quickly
@given(seeds, st.integers(2, 30), st.integers(1, 12))
def test_frechet_distance_is_symmetric_nonnegative_and_rotation_invariant(seed, count, width):
    x, y = features(count, width, seed), features(count + 3, width, seed + 1) * 2 + 1
    rotation = torch.linalg.qr(features(width, width, seed + 2)).Q
    assert distance(x, y) >= 0
    assert distance(x, x) >= 0
    assert distance(y, x) == pytest.approx(distance(x, y), rel=1e-6, abs=1e-6)
    assert distance(x @ rotation, y @ rotation) == pytest.approx(distance(x, y), rel=1e-6, abs=1e-6)


@quickly
@given(seeds, st.lists(st.integers(1, 20), min_size=1, max_size=5), st.floats(-1e4, 1e4))
def test_moments_of_batches_equal_those_of_all_features(seed, sizes, offset):
    """Two accumulators that are merged at the end, as with two processes; also with a mean far from zero."""
    x = features(sum(sizes) + 2, 6, seed) + offset
    parts = [Moments.empty(6).update(x[:2]), Moments.empty(6)]
    for i, batch in enumerate(x[2:].split(sizes)):
        parts[i % 2] = parts[i % 2].update(batch)
    found, expected = parts[0].merge(parts[1]).gaussian(), Gaussian.fit(x)
    assert found.count == expected.count == len(x)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-9, atol=1e-9)


def test_covariance_of_a_single_feature_has_shape_one_by_one():
    x = torch.tensor([[1.0], [3.0]])
    assert Gaussian.fit(x).covariance.tolist() == [[2.0]]
    assert Gaussian.fit(x).covariance.dtype == torch.float64


def test_enough_samples_means_more_samples_than_features():
    assert enough_samples(2049, 2048)
    assert not enough_samples(2048, 2048)
    assert torch.linalg.matrix_rank(Gaussian.fit(features(9, 8, 0)).covariance) == 8
    assert torch.linalg.matrix_rank(Gaussian.fit(features(8, 8, 0)).covariance) == 7


def cubic(a: torch.Tensor, b: torch.Tensor) -> float:
    return (float(a @ b) / len(a) + 1) ** 3


def test_squared_discrepancy_equals_loops_over_pairs():
    x, y = features(7, 4, 0), features(5, 4, 1) + 1
    expected = sum(cubic(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (7 * 6)
    expected += sum(cubic(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (5 * 4)
    expected -= 2 * sum(cubic(a, b) for a in x for b in y) / 35
    assert float(squared_discrepancy(x, y)) == pytest.approx(expected)


def test_kernel_distance_of_sets_from_one_distribution_is_zero_on_average():
    scores = [kernel_distance(features(40, 5, 2 * s), features(40, 5, 2 * s + 1), subsets=1).mean for s in range(200)]
    error = np.std(scores) / math.sqrt(len(scores))
    assert abs(np.mean(scores)) < 4 * error
    assert min(scores) < 0 < max(scores)


def test_kernel_distance_of_different_distributions_is_far_above_its_deviation():
    found = kernel_distance(features(300, 5, 0) + 1, features(300, 5, 1), subsets=20, subset_size=100)
    assert found.mean > 5 * found.deviation > 0


def test_kernel_distance_draws_the_same_subsets_for_the_same_seed():
    x, y = features(50, 5, 0), features(60, 5, 1)
    same = [kernel_distance(x, y, subsets=3, subset_size=20, seed=7) for _ in range(2)]
    assert same[0] == same[1]
    assert kernel_distance(x, y, subsets=3, subset_size=20, seed=8) != same[0]


def test_kernel_distance_of_whole_sets_does_not_depend_on_their_order():
    x, y = features(30, 5, 0), features(30, 5, 1)
    found = kernel_distance(x, y, subsets=4)
    assert found.mean == pytest.approx(float(squared_discrepancy(x, y)))
    assert found.deviation == pytest.approx(0, abs=1e-12)


def test_subsets_of_the_kernel_distance_are_no_larger_than_the_smaller_set():
    many, few = features(50, 4, 0), features(10, 4, 1)
    for sets in ((many, few), (few, many)):
        assert kernel_distance(*sets, subset_size=1000) == kernel_distance(*sets, subset_size=10)


def test_inception_score_of_certain_predictions_is_the_number_of_classes():
    assert inception_score(torch.eye(7).repeat(3, 1) * 1000).mean == pytest.approx(7)


def test_inception_score_of_uniform_or_equal_predictions_is_one():
    assert inception_score(torch.zeros(9, 7)).mean == pytest.approx(1)
    assert inception_score(torch.tensor([[3.0, 1.0, 0.0]]).expand(9, 3)).mean == pytest.approx(1)


def test_inception_score_does_not_depend_on_the_order_of_the_classes():
    """A published example: split in the order of the file, sorted samples would score 1 per class of a split."""
    certain = torch.eye(20) * 1000
    sorted_by_class, in_turn = certain.repeat_interleave(50, dim=0), certain.repeat(50, 1)
    found = inception_score(sorted_by_class, split_size=200)
    assert found.mean == pytest.approx(inception_score(in_turn, split_size=200).mean, rel=0.03)
    assert found.mean > 18
    assert inception_score(sorted_by_class).mean == pytest.approx(20)
    assert inception_score(sorted_by_class, split_size=200) == found


@pytest.mark.parametrize(("count", "splits"), [(7, 1), (10, 1), (11, 1), (19, 1), (20, 2), (25, 2), (30, 3)])
def test_no_split_of_the_inception_score_is_small(count, splits):
    """Of images that are all sure of one class each, a split scores the number of classes that it holds."""
    found = inception_score(torch.eye(count) * 1000, split_size=10)
    sizes = [count // splits + (i < count % splits) for i in range(splits)]
    assert found.mean == pytest.approx(np.mean(sizes))
    assert found.deviation == pytest.approx(np.std(sizes), abs=1e-9)


def test_inception_score_equals_its_formula():
    logits = features(20, 6, 0)
    p = logits.softmax(dim=1)
    divergence = (p * (p.log() - p.mean(0).log())).sum(dim=1)
    assert inception_score(logits).mean == pytest.approx(divergence.mean().exp().item())


class Own(nn.Module):
    """A network for torchmetrics whose input already is the features."""

    num_features = 6

    def forward(self, images):
        return images.flatten(1)


@pytest.mark.filterwarnings("ignore")
def test_metrics_agree_with_torchmetrics():
    fid, kid, inception = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("fid", "kid", "inception"))
    own = Own()
    x, y = features(60, 6, 0).float(), (features(60, 6, 1) * 1.5 + 0.3).float()

    def computed(metric):
        metric.update(y[:, :, None, None], real=True)
        metric.update(x[:, :, None, None], real=False)
        return metric.compute()

    frechet = computed(fid.FrechetInceptionDistance(feature=own, input_img_size=(6, 1, 1)))
    assert distance(x, y) == pytest.approx(float(frechet), rel=1e-4)
    kernel, _ = computed(kid.KernelInceptionDistance(feature=own, subsets=1, subset_size=60))
    assert kernel_distance(x, y, subsets=1).mean == pytest.approx(float(kernel), rel=1e-4)
    score = inception.InceptionScore(feature=own, splits=1)
    score.update(x[:, :, None, None])
    assert inception_score(x).mean == pytest.approx(float(score.compute()[0]), rel=1e-4)


def test_invalid_features_are_rejected():
    x = features(9, 4, 0)
    broken = x.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(InputError, match="got NaN or Inf for 1 of 9"):
        Gaussian.fit(broken)
    with pytest.raises(InputError, match="got NaN or Inf for 1 of 9"):
        Moments.empty(4).update(broken)
    with pytest.raises(InputError, match="features of at least 2 images; got 1"):
        Gaussian.fit(x[:1])
    with pytest.raises(InputError, match="features of at least 2 images; got 0"):
        Moments.empty(4).gaussian()
    with pytest.raises(InputError, match="features of at least 2 images; got 1"):
        kernel_distance(x, x[:1])
    with pytest.raises(InputError, match=r"features \(N, F\); got \(9, 4, 1\)"):
        Gaussian.fit(x[:, :, None])
    for compare in (distance, kernel_distance):
        with pytest.raises(InputError, match="of the same width; got 4 and 3"):
            compare(x, x[:, :3])
    with pytest.raises(InputError, match="of the same width; got 4 and 3"):
        Moments.empty(4).update(x[:, :3])


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    labels = torch.tensor([0, 0, 0, 1])
    sure = torch.tensor([[0.75, 0.25]]).expand(4, 2)
    assert calibration_error(sure, labels) == pytest.approx(0)
    assert calibration_error(torch.tensor([[1.0, 0.0]]).expand(4, 2), labels) == pytest.approx(0.25)
    apart = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.6, 0.4], [0.6, 0.4]])  # right 2 of 2, and 1 of 2
    assert calibration_error(apart, labels) == pytest.approx((0.05 + 0.1) / 2)
    uneven = torch.tensor([[0.95, 0.05]] * 3 + [[0.6, 0.4]])  # three images in one bin, one in another
    assert calibration_error(uneven, labels) == pytest.approx((3 * 0.05 + 0.6) / 4)


@quickly
@given(seeds, st.integers(1, 40), st.integers(1, 20))
def test_calibration_error_equals_a_loop_over_bins(seed, count, bins):
    probabilities = features(count, 4, seed).softmax(dim=1)
    labels = features(count, 4, seed + 1).argmax(dim=1)
    confidence, guess = probabilities.max(dim=1)
    error = 0.0
    for i in range(bins):
        inside = (confidence >= i / bins) & ((confidence < (i + 1) / bins) | (i == bins - 1))
        if inside.any():
            right = (guess == labels)[inside].double().mean()
            error += inside.double().mean() * (right - confidence[inside].mean()).abs()
    assert calibration_error(probabilities, labels, bins) == pytest.approx(float(error), abs=1e-9)


def test_timing_calls_every_sampler_equally_often():
    calls: dict[str, list[int]] = {"a": [], "b": []}
    times = milliseconds_per_image({name: calls[name].append for name in calls}, batch_size=4, repeats=3)
    assert calls == {"a": [4] * 6, "b": [4] * 6}
    assert set(times) == {"a", "b"}
