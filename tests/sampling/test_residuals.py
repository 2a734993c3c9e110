"""What a sampler says of its result: the residual is that of a hand-written iteration, and never 0 for no solution."""

import pytest
import torch

from biflow.config import FlowConfig
from biflow.models.flow_block import FlowBlock, restore, shift_to_next_patch
from biflow.models.model import new_model
from biflow.sampling.jacobi import LARGEST_GUESS, bounded, invert_by_jacobi
from biflow.sampling.refine import refine
from biflow.sampling.result import SamplerOutput
from biflow.sampling.sequential import invert_sequentially
from tests.builders import noise_and_labels, tiny_config, tiny_flow


def refine_from_zero(flow, z, labels, **options) -> SamplerOutput:
    return refine(flow, z, labels, start=[torch.zeros_like(z)] * len(flow.blocks), **options)


INVERSES = {
    "sequential": lambda flow, z, labels, **_: invert_sequentially(flow, z, labels),
    "jacobi": invert_by_jacobi,
    "groups": lambda *args, **options: invert_by_jacobi(*args, groups=2, **options),
    "refine": refine_from_zero,
}


@pytest.mark.parametrize("tolerance", [0, 1e-2])
@pytest.mark.parametrize("invert", INVERSES.values(), ids=INVERSES)
def test_an_exploding_flow_gives_no_finite_image_and_no_residual_of_zero(invert, tolerance):
    flow, (z, labels) = tiny_flow().float(), noise_and_labels()
    for block in flow.flow_blocks:
        block.project_out.weight.data *= 1e4
    found = invert(flow, z.float(), labels, tolerance=tolerance)
    assert not invert_sequentially(flow, z.float(), labels).x.isfinite().flatten(1).all(1).any()
    assert not found.x.isfinite().flatten(1).all(1).any()
    assert found.residual.isnan().all()


@pytest.mark.parametrize("tolerance", [0, 1e-2])
@pytest.mark.parametrize("invert", INVERSES.values(), ids=INVERSES)
def test_large_solutions_are_not_clamped(invert, tolerance):
    sizes = FlowConfig(blocks=3, layers=2, width=16, head_width=8, clip=0.05)
    flow, (z, labels) = tiny_flow(flow=sizes), noise_and_labels()
    z = 1e3 * LARGEST_GUESS * z
    x = invert_sequentially(flow, z, labels).x
    found = invert(flow, z, labels, tolerance=tolerance)
    torch.testing.assert_close(found.x, x, rtol=1e-6, atol=1.0)
    torch.testing.assert_close(flow(found.x, labels).z, z, rtol=1e-6, atol=1.0)


@pytest.mark.parametrize("name", ["sequential", "jacobi", "refine"])
def test_a_single_patch_passes_through(name):
    invert = INVERSES[name]
    flow = tiny_flow(patch_size=4)
    z, labels = torch.randn(3, 1, 16, dtype=torch.float64), torch.arange(3)
    found = invert(flow, z, labels, tolerance=1e-3)
    assert torch.equal(found.x, z)
    assert torch.equal(flow(z, labels).z, z)
    assert not found.residual.any()


def iterate(block: FlowBlock, x, z, labels):
    """One fixed-point iteration of a whole block, without cache or guidance; its first patch is that of z."""
    x, z = block.reading_order(x), block.reading_order(z)
    x = torch.cat([z[:, :1], x[:, 1:]], dim=1)
    return block.reading_order(restore(z, shift_to_next_patch(block.predict(x, block.classes(labels)))))


def long_problem():
    flow = tiny_flow(image_size=6, patch_size=1)
    z = torch.randn(1, 36, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return flow, z, torch.tensor([1])


@torch.no_grad()
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_the_residual_of_jacobi_is_the_largest_last_change_of_a_block(tolerance):
    flow, z, labels = long_problem()
    x, calls, residual = z, 0, 0.0
    for block in reversed(flow.flow_blocks):
        above, change = x, 1.0
        while change > tolerance:
            new = iterate(block, x, above, labels)
            x, change, calls = new, (new - x).abs().max().item(), calls + 1
        residual = max(residual, change)
    found = invert_by_jacobi(flow, z, labels, tolerance=tolerance)
    assert found.network_calls == calls
    assert 0 < found.residual.item() == pytest.approx(residual, rel=1e-6)
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_the_residual_of_refine_is_the_largest_last_change_of_a_block(tolerance):
    flow, z, labels = long_problem()
    states, rounds, residual = [torch.zeros_like(z)] * 3 + [z], 0, [None] * 3
    while None in residual:
        new = [iterate(flow.flow_blocks[i], states[i], states[i + 1], labels) for i in range(3)]
        rounds += 1
        for i in (2, 1, 0):
            change = (new[i] - states[i]).abs().max().item()
            if residual[i] is None:
                states[i] = new[i]
                if change <= tolerance and None not in residual[i + 1 :]:
                    residual[i] = change
    found = refine_from_zero(flow, z, labels, tolerance=tolerance)
    assert found.rounds == rounds
    assert 0 < found.residual.item() == pytest.approx(max(residual), rel=1e-6)
    torch.testing.assert_close(found.x, states[0], rtol=0, atol=1e-12)


def test_a_tolerance_of_zero_stops_when_nothing_changes():
    flow, (z, labels) = new_model(tiny_config(), tuple("abc")).flow, noise_and_labels()  # fresh: the identity
    for found in (invert_by_jacobi(flow, z, labels, tolerance=0), refine(flow, z, labels, start=[z] * 3, tolerance=0)):
        assert torch.equal(found.x, z)
        assert found.network_calls == 3
        assert not found.residual.any()


@pytest.mark.parametrize("value", [5.0, float("nan"), float("inf"), -1e30])
def test_any_start_reaches_the_exact_inverse(value):
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    start, exact = [torch.full_like(z, value)] * 3, invert_sequentially(flow, z, labels).x
    for found in (invert_by_jacobi, refine):
        torch.testing.assert_close(found(flow, z, labels, start=start, tolerance=0).x, exact, rtol=0, atol=1e-9)


def test_a_guess_is_bounded_where_it_is_not_exact():
    guess = torch.tensor([[[1e6], [torch.nan], [torch.inf], [-1e6], [2.0]]])
    found = bounded(guess, exact=1).flatten().tolist()
    assert found == [1e6, 0, LARGEST_GUESS, -LARGEST_GUESS, 2]
