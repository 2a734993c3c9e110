"""Which blocks a loss on a block's features trains, for every alignment path (FlowBack, section 4.2)."""

import pytest
import torch

from biflow.config import FlowConfig
from biflow.models.alignment_paths import ALIGNMENT_PATHS, reverse_features
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


def features_of(path, flow, layers, **options):
    patches, labels = inputs()
    trajectory = flow(patches, labels, layers)
    return (ALIGNMENT_PATHS[path] if isinstance(path, str) else path)(flow, trajectory, labels, layers, **options)


def gradients(path, block, *, layer=2, **options) -> list[torch.Tensor]:
    """Gradients of a loss on one layer's features: for each block, of all its parameters, concatenated."""
    flow = deep_flow()
    weights = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (features_of(path, flow, [(block, layer)], **options)[block, layer].sin() @ weights).sum().backward()
    return [
        torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in each.parameters()])
        for each in flow.blocks
    ]


@pytest.mark.parametrize("block", range(1, BLOCKS + 1))
@pytest.mark.parametrize("path", ALIGNMENT_PATHS)
def test_a_loss_trains_exactly_the_blocks_that_its_path_claims(path, block):
    reached = [number for number, gradient in enumerate(gradients(path, block), start=1) if gradient.any()]
    assert reached == list(REACH[path](block))


@pytest.mark.parametrize("path", ALIGNMENT_PATHS)
def test_features_are_those_of_the_forward_pass_for_every_path(path):
    flow, layers = deep_flow(), [(1, 1), (2, 3), (4, 2)]
    patches, labels = inputs()
    trajectory = flow(patches, labels, layers)
    features = ALIGNMENT_PATHS[path](flow, trajectory, labels, layers)
    assert features.keys() == set(layers)
    for layer in layers:
        torch.testing.assert_close(features[layer], trajectory.features[layer], rtol=1e-10, atol=1e-12)


def test_the_literal_algorithm_has_the_gradient_of_detaching():
    for block in range(1, BLOCKS + 1):
        for literal, detached in zip(gradients("reverse_literal", block), gradients("detach", block), strict=True):
            assert torch.equal(literal, detached)


def test_reverse_approximates_the_gradient_of_the_exact_inverse_and_equals_it_with_a_sweep_per_patch():
    exact = torch.cat(gradients("reverse_sequential", 2))
    cosines = []
    for sweeps in range(1, 5):
        near = torch.cat(gradients(reverse_features, 2, sweeps=sweeps))
        cosines.append(torch.cosine_similarity(near, exact, dim=0).item())
    assert cosines[0] > 0.9
    assert cosines == sorted(cosines)
    torch.testing.assert_close(near, exact, rtol=1e-9, atol=1e-12)


def test_a_feature_depends_on_its_patch_and_those_before_it_in_reading_order():
    flow = deep_flow()
    patches, labels = inputs()
    for number, block in enumerate(flow.flow_blocks):
        x = patches.clone().requires_grad_()
        features = block.features(x, block.classes(labels), [2])[2]
        (gradient,) = torch.autograd.grad(features[:, 1].sum(), x)
        seen = gradient.abs().sum(dim=(0, 2)).bool().tolist()
        assert seen == ([False, True, True, True] if number % 2 else [True, True, False, False])


def test_only_layers_that_a_loss_reads_are_evaluated():
    """detach: layers up to the requested one; reverse: whole blocks from the top down to the lowest, and its layers."""
    flow = deep_flow()
    patches, labels = inputs()
    trajectory = flow(patches, labels)
    calls = []
    for number, block in enumerate(flow.flow_blocks, start=1):
        for depth, layer in enumerate(block.transformer.layers, start=1):
            layer.register_forward_hook(lambda *_, index=(number, depth): calls.append(index))
    ALIGNMENT_PATHS["detach"](flow, trajectory, labels, [(4, 2)])
    assert calls == [(4, 1), (4, 2)]
    calls.clear()
    ALIGNMENT_PATHS["reverse"](flow, trajectory, labels, [(3, 1)])
    assert calls == [(4, 1), (4, 2), (4, 3), (3, 1), (3, 2), (3, 3), (3, 1)]
