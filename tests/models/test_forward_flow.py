import pytest
import torch

from biflow.config import FlowConfig
from biflow.models.flow_block import Affine, restore, standardise
from biflow.models.forward_flow import ForwardFlow
from tests.builders import noise_and_labels, tiny_config, tiny_flow


def flow_of(**changes: object) -> dict[str, object]:
    return {"flow": FlowConfig(**{"blocks": 3, "layers": 2, "width": 16, "head_width": 8, **changes})}


FLOWS = {
    "three blocks": {},
    "one block": {"flow": FlowConfig(blocks=1, layers=1, width=16, head_width=16)},
    "one value per patch": {"patch_size": 1, "image_size": 2},
    "unconditional": {"num_classes": 0},
    "deep-shallow": flow_of(layers=(1, 1, 3)),
    "rms norm": flow_of(norm="rms"),
    "SwiGLU": flow_of(mlp="swiglu", mlp_ratio=2.5),
    "rotary": flow_of(positions="rotary"),
    "query-key norm": flow_of(qk_norm=True),
    "clipped": flow_of(clip=0.05),
    "volume preserving": flow_of(volume_preserving=True),
}


@pytest.fixture(params=FLOWS.values(), ids=FLOWS.keys())
def flow(request) -> ForwardFlow:
    return tiny_flow(**request.param)


def random_patches(flow: ForwardFlow, batch: int) -> torch.Tensor:
    shape = (batch, flow.config.num_patches, flow.config.patch_dim)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_log_det_is_that_of_the_jacobian(flow):
    x, labels = random_patches(flow, 1), torch.tensor([flow.config.null_label])
    size = x.numel()
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v, labels).z, x).reshape(size, size)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow(x, labels).log_det[0], expected, rtol=0, atol=1e-9)


def test_log_prob_adds_the_prior_and_the_log_det(flow):
    x, labels = random_patches(flow, 3), torch.full((3,), flow.config.null_label)
    out = flow(x, labels)
    prior = torch.distributions.Normal(0, 1).log_prob(out.z).sum((1, 2))
    torch.testing.assert_close(flow.log_prob(x, labels), prior + out.log_det)


def test_states_run_from_the_data_to_the_noise(flow):
    x, labels = random_patches(flow, 2), torch.zeros(2, dtype=torch.long)
    out = flow(x, labels)
    assert len(out.states) == flow.config.flow.blocks + 1
    assert out.states[0] is x
    assert out.states[-1] is out.z


@pytest.mark.parametrize("changes", FLOWS.values(), ids=FLOWS.keys())
def test_a_fresh_flow_is_the_identity(changes):
    flow = ForwardFlow(tiny_config(**changes))
    x = random_patches(flow, 3).float()
    out = flow(x, torch.full((3,), flow.config.null_label))
    assert torch.equal(out.z, x)
    assert torch.equal(out.log_det, torch.zeros(3))


def test_layers_of_a_list_are_those_of_each_block():
    flow = ForwardFlow(tiny_config(**FLOWS["deep-shallow"]))
    assert [len(block.transformer.layers) for block in flow.blocks] == [1, 1, 3]


def test_clip_bounds_shift_and_log_scale():
    free, clipped = tiny_flow(), tiny_flow(**FLOWS["clipped"])
    x, labels = noise_and_labels()
    unbounded, bounded = (flow.blocks[0].predict(x, flow.blocks[0].classes(labels)) for flow in (free, clipped))
    assert max(part.abs().max() for part in unbounded) > 0.05
    for part, limited in zip(unbounded, bounded, strict=True):
        assert torch.equal(limited, part.clamp(-0.05, 0.05))


def test_volume_preserving_shifts_and_does_not_scale():
    flow = tiny_flow(**FLOWS["volume preserving"])
    x, labels = noise_and_labels()
    out = flow(x, labels)
    assert torch.equal(out.log_det, torch.zeros_like(out.log_det))
    assert not torch.allclose(out.z, x)


def test_prior_variance_scales_the_likelihood_and_the_noise():
    flow = tiny_flow(**FLOWS["volume preserving"])
    x, labels = noise_and_labels()
    variance = torch.rand(4, 4, dtype=torch.float64) + 0.5
    flow.prior_variance.copy_(variance)
    z = flow(x, labels).z
    expected = torch.distributions.Normal(0, variance.sqrt()).log_prob(z).sum((1, 2))
    torch.testing.assert_close(flow.log_prob(x, labels), expected)
    torch.testing.assert_close(flow.scale_noise(x).square(), x.square() * variance)


def test_rotary_positions_hold_no_parameters_and_distinguish_positions():
    flow = tiny_flow(**FLOWS["rotary"])
    assert not any("rotary" in name or "positions" in name for name in flow.state_dict())
    block, (x, labels) = flow.blocks[0], noise_and_labels(batch=1)
    x = x[:, :1].repeat(1, 4, 1) + 0.1 * torch.arange(4)[:, None].flip(0)
    swapped = x[:, [1, 0, 2, 3]]
    last, other = (block.predict(each, block.classes(labels)).shift[:, 3] for each in (x, swapped))
    assert not torch.allclose(last, other)


@pytest.mark.parametrize("index", [0, 1])
def test_a_block_maps_each_patch_by_the_patches_read_before_it(index):
    block = tiny_flow().blocks[index]
    x, labels = noise_and_labels()
    changed = x.clone()
    last_read = 0 if block.reads_backwards else 3
    changed[:, last_read] += 1
    before, after = (block(each, block.classes(labels)).z for each in (x, changed))
    untouched = [t for t in range(4) if t != last_read]
    assert torch.equal(before[:, untouched], after[:, untouched])
    assert not torch.allclose(before[:, last_read], after[:, last_read])


def test_a_block_predicts_log_scales_first_as_tarflow_does():
    block = tiny_flow().flow_blocks[0]
    block.project_out.weight.data.zero_()
    block.project_out.bias.data.copy_(torch.arange(8.0))
    found = block.predict(torch.randn(1, 1, 4).double(), block.classes(torch.tensor([0])))
    assert found.log_scale.flatten().tolist() == [0, 1, 2, 3]
    assert found.shift.flatten().tolist() == [4, 5, 6, 7]


@torch.no_grad()
def test_the_largest_log_scales_are_absolute_and_of_each_blocks_own_input():
    flow, (x, labels) = tiny_flow(), noise_and_labels()
    for block in flow.flow_blocks:
        block.project_out.weight.mul_(3)
        block.project_out.bias.sub_(0.3)
    expected = []
    for block, state in zip(flow.flow_blocks, flow(x, labels).states, strict=False):
        log_scale = block.predict(block.reading_order(state), block.classes(labels)).log_scale
        assert log_scale.abs().max() > log_scale.max()
        expected.append(log_scale.abs().max().item())
    assert flow.largest_log_scales(x, labels) == pytest.approx(expected)


def test_blocks_alternate_their_reading_direction():
    assert [block.reads_backwards for block in tiny_flow().blocks] == [False, True, False]


def test_label_changes_the_likelihood():
    flow = tiny_flow()
    x, _ = noise_and_labels(batch=1)
    values = [flow.log_prob(x, torch.tensor([label])).item() for label in range(4)]
    assert len(set(values)) == 4


def test_restore_inverts_standardise():
    x, shift, log_scale = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    affine = Affine(shift, log_scale)
    torch.testing.assert_close(restore(standardise(x, affine)[0], affine), x, rtol=0, atol=1e-12)


def test_affine_arithmetic_on_half_precision_is_float32():
    x, shift, log_scale = torch.randn(3, 2, 4, 3).bfloat16()
    z, log_det = standardise(x, Affine(shift, log_scale))
    assert z.dtype == log_det.dtype == torch.float32
