import numpy as np
import pytest
import torch
from scipy import linalg

from biflow.evaluation.measures import measure_copying, milliseconds_per_image
from biflow.evaluation.metrics import (
    calibration_error,
    frechet_distance,
    nearest_distances,
    nearest_distances_within,
)
from tests.builders import tiny_images


def features(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def test_frechet_distance_to_itself_is_zero():
    x = features(50, 8, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_a_shift_is_its_squared_length():
    x = features(50, 8, 0)
    assert frechet_distance(x + 2, x) == pytest.approx(8 * 4)


def test_frechet_distance_of_a_scale_is_known():
    x = features(50, 8, 0) - features(50, 8, 0).mean(0)
    assert frechet_distance(3 * x, x) == pytest.approx(4 * x.T.cov().trace().item())


def test_frechet_distance_agrees_with_the_matrix_square_root():
    x, y = features(60, 8, 0), features(70, 8, 1) @ features(8, 8, 2)
    a, b = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-7)


def test_frechet_distance_holds_for_singular_covariances():
    x = features(50, 8, 0)
    x[:, 4:] = 0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x + 1, x) == pytest.approx(8)


def test_nearest_distances_are_those_of_brute_force():
    x, y = features(6, 3, 0), features(9, 3, 1)
    expected = [min((a - b).norm().item() for b in y) for a in x]
    assert nearest_distances(x, y).tolist() == pytest.approx(expected)
    within = [min((x[i] - x[j]).norm().item() for j in range(6) if j != i) for i in range(6)]
    assert nearest_distances_within(x).tolist() == pytest.approx(within)


def test_copies_of_training_images_are_found():
    train = tiny_images(60)
    assert measure_copying(train.images[:20], train)["nearer_than_real_share"] == 1
    assert measure_copying(tiny_images(60, seed=5).images, train)["nearer_than_real_share"] < 0.2


def test_samples_that_repeat_each_other_have_no_spread():
    train = tiny_images(60)
    assert measure_copying(train.images[:1].repeat(30, 1, 1, 1), train)["spread_ratio"] == 0
    assert measure_copying(train.images, train)["spread_ratio"] == pytest.approx(1)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    labels = torch.tensor([0, 0, 0, 1])
    sure = torch.tensor([[0.75, 0.25]]).expand(4, 2)
    assert calibration_error(sure, labels) == pytest.approx(0)
    assert calibration_error(torch.tensor([[1.0, 0.0]]).expand(4, 2), labels) == pytest.approx(0.25)
    apart = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.6, 0.4], [0.6, 0.4]])  # right 2 of 2, and 1 of 2
    assert calibration_error(apart, labels) == pytest.approx((0.05 + 0.1) / 2)


def test_timing_calls_every_sampler_equally_often():
    calls: dict[str, list[int]] = {"a": [], "b": []}
    times = milliseconds_per_image({name: calls[name].append for name in calls}, batch_size=4, repeats=3)
    assert calls == {"a": [4] * 6, "b": [4] * 6}
    assert set(times) == {"a", "b"}
