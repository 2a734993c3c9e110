import pytest
import torch

from biflow.errors import InputError
from biflow.sampling.guidance import NO_GUIDANCE, Guidance
from biflow.sampling.refine import refine
from biflow.sampling.sequential import invert_sequentially
from tests.builders import noise_and_labels, tiny_flow

GUIDANCES = [Guidance(), Guidance(1.5), Guidance(2.0, annealed=True, on="shift"), Guidance(1.0, temperature=0.5)]


def rough_start(flow, z, labels, guidance=NO_GUIDANCE):
    """The true states plus noise."""
    x = invert_sequentially(flow, z, labels, guidance=guidance).x
    states = flow(x, labels).states[:-1]
    generator = torch.Generator().manual_seed(3)
    return [state + 0.1 * torch.randn(state.shape, generator=generator, dtype=state.dtype) for state in states]


@pytest.mark.parametrize("guidance", GUIDANCES, ids=str)
def test_without_tolerance_it_is_the_exact_inverse(guidance):
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    refined = refine(flow, z, labels, start=rough_start(flow, z, labels), guidance=guidance, tolerance=0)
    exact = invert_sequentially(flow, z, labels, guidance=guidance).x
    torch.testing.assert_close(refined.x, exact, rtol=0, atol=1e-9)


def test_any_start_converges_to_the_exact_inverse():
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    start = [torch.full_like(z, 5.0), torch.zeros_like(z), torch.randn_like(z)]
    refined = refine(flow, z, labels, start=start, tolerance=0)
    torch.testing.assert_close(refined.x, invert_sequentially(flow, z, labels).x, rtol=0, atol=1e-9)
    assert refined.rounds <= 3 * (4 - 1)


def test_the_true_states_converge_in_one_round():
    flow, (x, labels) = tiny_flow(), noise_and_labels()
    states = flow(x, labels).states
    refined = refine(flow, states[-1], labels, start=states[:-1])
    assert (refined.rounds, refined.network_calls) == (1, 3)
    torch.testing.assert_close(refined.x, x, rtol=0, atol=1e-9)


def test_it_obeys_its_tolerance_and_skips_blocks_that_are_done():
    flow = tiny_flow(image_size=6, patch_size=1)
    z = torch.randn(3, 36, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 3])
    refined = refine(flow, z, labels, start=rough_start(flow, z, labels), tolerance=1e-4)
    assert refined.residual.max() <= 1e-4
    assert refined.rounds < 3 * 35
    assert refined.rounds < refined.network_calls < 3 * refined.rounds
    torch.testing.assert_close(refined.x, invert_sequentially(flow, z, labels).x, rtol=0, atol=2e-3)


def test_an_image_does_not_depend_on_how_long_others_iterate():
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    start = rough_start(flow, z, labels)
    start = [torch.cat([state[:1], state[1:] + 2]) for state in start]
    together = refine(flow, z, labels, start=start)
    alone = refine(flow, z[:1], labels[:1], start=[state[:1] for state in start])
    assert alone.rounds < together.rounds
    torch.testing.assert_close(together.x[:1], alone.x, rtol=0, atol=1e-12)


def test_a_guess_for_every_block_is_needed():
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    with pytest.raises(InputError, match="a guess for each of 3 blocks; got 1"):
        refine(flow, z, labels, start=[z])
