"""The transport between Gaussians, against the metric and against automatic differentiation."""

import pytest
import torch

from biflow.evaluation.metrics import Gaussian, frechet_distance
from biflow.losses.frechet import frechet_loss, matrix_power, transport


def features(count: int, seed: int, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + mixing[0]


def of(items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return items.mean(dim=0), items.T.cov(correction=0)


def test_the_distance_is_that_of_the_metric():
    ours, theirs = features(50, 0), features(60, 1)
    expected = frechet_distance(Gaussian(*of(ours), 50), Gaussian(*of(theirs), 60))
    assert transport(*of(ours), *of(theirs)).distance.item() == pytest.approx(expected, rel=1e-3)
    assert transport(*of(ours), *of(ours)).distance.item() == pytest.approx(0, abs=1e-2)


def test_the_transport_gives_features_the_mean_and_covariance_of_the_target():
    ours, theirs = features(50, 0), features(60, 1)
    mean, covariance = of(transport(*of(ours), *of(theirs))(ours))
    torch.testing.assert_close(mean, of(theirs)[0])
    torch.testing.assert_close(covariance, of(theirs)[1], rtol=0.01, atol=0.01)


def test_the_mean_loss_is_the_distance_and_its_gradient_that_of_the_distance():
    ours, theirs = features(50, 0).requires_grad_(), features(60, 1)
    move = transport(*of(ours.detach()), *of(theirs))
    loss = frechet_loss(ours, move).mean()
    assert loss.item() == pytest.approx(move.distance.item(), rel=1e-3)
    (found,) = torch.autograd.grad(loss, ours)
    mean, covariance = ours.mean(dim=0), ours.T.cov(correction=0)
    root = matrix_power(of(theirs)[1], 0.5)
    cross = torch.linalg.eigvalsh(root @ covariance @ root).sqrt().sum()
    distance = (mean - of(theirs)[0]).square().sum() + (covariance + of(theirs)[1]).trace() - 2 * cross
    (expected,) = torch.autograd.grad(distance, ours)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.002)


def test_fewer_samples_than_features_are_transported_too():
    move = transport(*of(features(3, 0)), *of(features(60, 1)))
    assert frechet_loss(features(3, 0), move, scale=2.0).isfinite().all()


def test_a_limited_transport_stretches_no_direction_further():
    ours, theirs = features(50, 0), features(60, 1)
    whole = transport(*of(ours), *of(theirs))
    values = torch.linalg.eigvalsh(whole.matrix)
    assert values.max() > 1.2
    limited = whole.limited(1.2)
    torch.testing.assert_close(torch.linalg.eigvalsh(limited.matrix), values.clamp(max=1.2))
    torch.testing.assert_close(limited(whole.mean[None]), whole.target_mean[None])


def test_samples_without_variance_are_transported_to_the_mean():
    same, theirs = torch.ones(4, 5, dtype=torch.float64), features(60, 1)
    move = transport(*of(same), *of(theirs))
    torch.testing.assert_close(move(same), of(theirs)[0].expand(4, 5))
    assert move.distance.isfinite()
    assert transport(*of(same), *of(same)).matrix.isfinite().all()


def test_powers_of_a_matrix():
    matrix = of(features(50, 0))[1]
    torch.testing.assert_close(matrix_power(matrix, 0.5) @ matrix_power(matrix, 0.5), matrix)
    inverse = torch.linalg.inv(matrix + 0.1 * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(matrix_power(matrix, -1, 0.1), inverse)
