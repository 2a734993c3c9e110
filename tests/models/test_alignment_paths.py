"""Which blocks a loss on the features of a block reaches, for every way of taking them (ALGORITHMS: FlowBack, 4.2)."""

import pytest
import torch

from biflow.config import FlowConfig
from biflow.models.alignment_paths import WAYS, reversed_
from tests.builders import tiny_config, tiny_model

BLOCKS, LAYERS = 4, 3
REACH = {  # the blocks that a loss on block t reaches, counted from 1
    "forward": lambda t: range(1, t + 1),
    "detach": lambda t: range(t, t + 1),
    "reverse": lambda t: range(t, BLOCKS + 1),
    "reverse_literal": lambda t: range(t, t + 1),
    "reverse_sequential": lambda t: range(t, BLOCKS + 1),
}


def deep_flow():
    """Four blocks of three layers in float64, every weight random."""
    sizes = FlowConfig(blocks=BLOCKS, layers=LAYERS, width=16, head_width=8)
    return tiny_model(tiny_config(flow=sizes, reverse=None)).flow.double()


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 3])


def features_of(way, flow, places, **options):
    patches, labels = inputs()
    trajectory = flow(patches, labels, places)
    return (WAYS[way] if isinstance(way, str) else way)(flow, trajectory, labels, places, **options)


def gradients(way, block, *, layer=2, **options) -> list[torch.Tensor]:
    """Of a loss on the features of one place: for each block, of all its parameters, one after another."""
    flow = deep_flow()
    weights = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (features_of(way, flow, [(block, layer)], **options)[block, layer].sin() @ weights).sum().backward()
    return [
        torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in each.parameters()])
        for each in flow.blocks
    ]


@pytest.mark.parametrize("block", range(1, BLOCKS + 1))
@pytest.mark.parametrize("way", WAYS)
def test_a_loss_reaches_exactly_the_blocks_that_its_way_claims(way, block):
    reached = [number for number, gradient in enumerate(gradients(way, block), start=1) if gradient.any()]
    assert reached == list(REACH[way](block))


@pytest.mark.parametrize("way", WAYS)
def test_features_are_those_of_the_forward_pass_whatever_the_way(way):
    flow, places = deep_flow(), [(1, 1), (2, 3), (4, 2)]
    patches, labels = inputs()
    trajectory = flow(patches, labels, places)
    found = WAYS[way](flow, trajectory, labels, places)
    assert found.keys() == set(places)
    for place in places:
        torch.testing.assert_close(found[place], trajectory.features[place], rtol=1e-10, atol=1e-12)


def test_the_literal_algorithm_has_the_gradient_of_detaching():
    for block in range(1, BLOCKS + 1):
        for literal, detached in zip(gradients("reverse_literal", block), gradients("detach", block), strict=True):
            assert torch.equal(literal, detached)


def test_reverse_is_near_the_gradient_of_the_exact_inverse_and_reaches_it_with_a_sweep_a_patch():
    exact = torch.cat(gradients("reverse_sequential", 2))
    cosines = []
    for sweeps in range(1, 5):
        near = torch.cat(gradients(reversed_, 2, sweeps=sweeps))
        cosines.append(torch.cosine_similarity(near, exact, dim=0).item())
    assert cosines[0] > 0.9
    assert cosines == sorted(cosines)
    torch.testing.assert_close(near, exact, rtol=1e-9, atol=1e-12)


def test_a_feature_belongs_to_its_patch_and_has_seen_it_and_those_read_before():
    flow = deep_flow()
    patches, labels = inputs()
    for number, block in enumerate(flow.flow_blocks):
        x = patches.clone().requires_grad_()
        features = block.features(x, block.classes(labels), [2])[2]
        (gradient,) = torch.autograd.grad(features[:, 1].sum(), x)
        seen = gradient.abs().sum(dim=(0, 2)).bool().tolist()
        assert seen == ([False, True, True, True] if number % 2 else [True, True, False, False])


def test_nothing_is_evaluated_that_no_loss_reads():
    """Detached, layers up to the one read; reversed, blocks from the top down to the lowest, whole, and its layers."""
    flow = deep_flow()
    patches, labels = inputs()
    trajectory = flow(patches, labels)
    calls = []
    for number, block in enumerate(flow.flow_blocks, start=1):
        for depth, layer in enumerate(block.transformer.layers, start=1):
            layer.register_forward_hook(lambda *_, place=(number, depth): calls.append(place))
    WAYS["detach"](flow, trajectory, labels, [(4, 2)])
    assert calls == [(4, 1), (4, 2)]
    calls.clear()
    WAYS["reverse"](flow, trajectory, labels, [(3, 1)])
    assert calls == [(4, 1), (4, 2), (4, 3), (3, 1), (3, 2), (3, 3), (3, 1)]
