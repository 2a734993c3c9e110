import pytest
import torch

from biflow.losses.perceptual import absolute_distance, adaptive, direction_distance, squared_distance


def maps(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 5, 2, 2, generator=generator)]


def test_values_are_compared_per_image():
    images, target = maps(0)[0], maps(1)[0]
    for i in range(2):
        torch.testing.assert_close(squared_distance(images, target)[i], (images[i] - target[i]).square().mean())
        torch.testing.assert_close(absolute_distance(images, target)[i], (images[i] - target[i]).abs().mean())


def test_directions_ignore_the_norm_of_features():
    ours, theirs = maps(0), maps(1)
    louder = [3 * each for each in theirs]
    torch.testing.assert_close(direction_distance(ours, louder), direction_distance(ours, theirs))
    assert direction_distance(ours, [2 * each for each in ours]).abs().max() < 1e-6


def test_opposite_directions_are_a_squared_distance_of_four_in_every_map():
    ours = maps(0)
    torch.testing.assert_close(direction_distance(ours, [-each for each in ours]), torch.full((2,), 8.0))


def test_a_calibration_weights_channels():
    ours, theirs = maps(0), maps(1)
    ones = [torch.ones(3), torch.ones(5)]
    torch.testing.assert_close(direction_distance(ours, theirs, ones), direction_distance(ours, theirs))
    assert not direction_distance(ours, theirs, [torch.zeros(3), torch.zeros(5)]).any()
    first_alone = [torch.tensor([1.0, 0.0, 0.0]), torch.zeros(5)]
    unit = [each / each.norm(dim=1, keepdim=True) for each in (ours[0], theirs[0])]
    expected = (unit[0] - unit[1])[:, 0].square().mean(dim=(1, 2))
    torch.testing.assert_close(direction_distance(ours, theirs, first_alone), expected)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_adaptive_weight_has_no_gradient(power):
    distance = torch.tensor([0.04, 1.0, 9.0], requires_grad=True)
    adaptive(distance, power, 0.01).sum().backward()
    torch.testing.assert_close(distance.grad, (distance.detach() + 0.01) ** -power)
