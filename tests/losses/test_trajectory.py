import torch

from biflow.losses.trajectory import hidden_alignment


def levels(seed: int, sizes=(1.0, 3.0)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for size in sizes]


def test_alignment_is_zero_when_the_heads_predict_the_states():
    states = levels(0)
    assert not hidden_alignment(states, states, torch.tensor([1.0, 3.0])).any()


def test_alignment_is_the_mean_square_per_level_and_image_in_units_of_the_level():
    guess, states, rms = levels(0), levels(1), torch.tensor([2.0, 5.0], dtype=torch.float64)
    expected = [((g - s) / r).square().mean(dim=(1, 2)) for g, s, r in zip(guess, states, rms, strict=True)]
    torch.testing.assert_close(hidden_alignment(guess, states, rms), torch.stack(expected))


def test_no_gradient_flows_into_the_states():
    guess, states = levels(0), levels(1)
    for tensor in (*guess, *states):
        tensor.requires_grad_()
    hidden_alignment(guess, states, torch.ones(2)).sum().backward()
    assert all(g.grad is not None for g in guess)
    assert all(s.grad is None for s in states)
