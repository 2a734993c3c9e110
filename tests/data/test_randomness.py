import math

import numpy as np
import pytest
import torch

from biflow.data.randomness import (
    FIRST_FACTOR,
    GOLDEN,
    SECOND_FACTOR,
    _fill_normal,
    _starts,
    _words,
    normal_for,
    seeded_weights,
    uniform_for,
)


def test_words_are_those_of_splitmix64():
    """The published first numbers of the seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert _words(np.array([1234567], np.uint64), 4)[0].tolist() == expected


def test_normal_and_uniform_numbers_are_their_formulas():
    words = _words(_starts([5, 2**63], ("a", 1)), 4)
    low, high = (words & 0xFFFFFFFF).astype(np.float64), (words >> 32).astype(np.float64)
    signed = np.where(high < 2**31, high, high - 2**32)
    radius, angle = np.sqrt(-2 * np.log((low + 0.5) / 2**32)), np.pi * signed / 2**31
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    np.testing.assert_allclose(normal_for([5, 2**63], (8,), "a", 1).numpy(), normal, atol=1e-5)
    uniform = np.stack([low // 256, high // 256], axis=2).reshape(2, 8) / 2**24
    np.testing.assert_array_equal(uniform_for([5, 2**63], (8,), "a", 1).numpy(), uniform)


def test_normal_numbers_are_finite_even_where_a_uniform_one_is_zero():
    """For the start whose first word is 0 in its low half, by SplitMix64 backwards."""
    word = 7 << 32
    for shift, factor in ((31, SECOND_FACTOR), (27, FIRST_FACTOR), (30, 1)):
        unshifted = word
        for _ in range(64 // shift):
            unshifted = word ^ (unshifted >> shift)
        word = unshifted * pow(int(factor), -1, 2**64) % 2**64
    start = np.array([(word - int(GOLDEN)) % 2**64], np.uint64)
    assert _words(start, 1).item() == 7 << 32
    pairs = np.empty((1, 2, 1), np.float32)
    _fill_normal(pairs, start)
    assert np.hypot(*pairs.flatten()) == pytest.approx(math.sqrt(-2 * math.log(0.5 / 2**32)), rel=1e-5)


def test_normal_numbers_have_the_moments_of_a_normal():
    z = normal_for(range(2000), (50,), "moments").double()
    assert abs(z.mean()) < 0.01
    assert abs(z.var() - 1) < 0.02
    assert abs(z.pow(4).mean() - 3) < 0.1


def test_seeded_weights_are_float32_and_leave_what_surrounds_them():
    def made() -> torch.Tensor:
        with seeded_weights(3):
            return torch.nn.Linear(4, 4).weight

    expected = made()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            found = made()
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.dtype == torch.float32
    assert not found.is_inference()
    assert torch.equal(found, expected)
