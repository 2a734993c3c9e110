"""The random training inputs against what their docstrings say of their distributions."""

import math

import pytest
import torch

from biflow.data.augment import GUIDED_SHARE, WINDOW_ASPECT, add_noise, draw_guidance, draw_window, flip
from biflow.data.randomness import normal_for, uniform_for
from biflow.losses.perceptual import WHOLE


def test_noise_is_gaussian_and_uniform_around_the_value():
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    uniform = uniform_for(range(6), (1, 4, 4), "dequantise", "key") - 0.5
    normal = normal_for(range(6), (1, 4, 4), "noise", "key")
    found = add_noise(images, range(6), 0.3, "key", bin_width=0.1)
    torch.testing.assert_close(found, images + 0.1 * uniform + 0.3 * normal)
    assert torch.equal(add_noise(images, range(6), 0.0, "key"), images)


def test_half_of_the_images_are_mirrored_left_to_right():
    images = torch.arange(6).view(1, 1, 2, 3).expand(1000, -1, -1, -1)
    found = flip(images, range(1000), "key")
    kept = (found == images).flatten(1).all(1)
    assert torch.equal(found[~kept], torch.tensor([[[2, 1, 0], [5, 4, 3]]]).expand(int((~kept).sum()), 1, 2, 3))
    assert kept.double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_guidance_is_log_uniform_for_a_quarter_of_the_images_with_a_label():
    found = draw_guidance(torch.arange(20_000) % 2, range(20_000), 3.0, 1, "key")
    assert not found[1::2].any()
    drawn = found[::2][found[::2] > 0]
    assert GUIDED_SHARE == 0.25
    assert len(drawn) / 10_000 == pytest.approx(0.25, abs=0.02)
    logs = drawn.log1p() / math.log(4)  # uniform on [0, 1]
    assert (logs.histc(10, 0, 1) / len(drawn)).tolist() == pytest.approx([0.1] * 10, abs=0.02)


def test_windows_have_a_uniform_area_and_a_log_uniform_aspect_and_lie_inside():
    windows = torch.tensor([draw_window("key", i) for i in range(3000)], dtype=torch.float64)
    top, left, height, width = windows.T
    assert windows.min() >= 0
    assert (top + height).max() <= 1
    assert (left + width).max() <= 1
    cropped = [tuple(window) != WHOLE for window in windows.tolist()]
    areas, aspects = (height * width)[cropped], (width / height).log()[cropped] / math.log(WINDOW_ASPECT)
    assert areas.min() >= 0.08
    small = areas < 0.7  # larger ones of an extreme aspect do not fit, and are drawn again
    assert areas[small].mean().item() == pytest.approx((0.08 + 0.7) / 2, abs=0.02)
    assert aspects.abs().max() <= 1
    assert (aspects[small].histc(5, -1, 1) / small.sum()).tolist() == pytest.approx([0.2] * 5, abs=0.04)
    for first, size in ((top, height), (left, width)):
        assert (first / (1 - size))[cropped].mean().item() == pytest.approx(0.5, abs=0.03)
