import pytest
import torch

from biflow.config import FlowConfig
from biflow.models.flow_block import Affine, restore, standardise
from biflow.models.forward_flow import ForwardFlow
from tests.builders import noise_and_labels, tiny_config, tiny_flow

FLOWS = {
    "three blocks": {},
    "one block": {"flow": FlowConfig(blocks=1, layers=1, width=16, head_width=16)},
    "one value a patch": {"patch_size": 1, "image_size": 2},
    "unconditional": {"num_classes": 0},
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


def test_a_fresh_flow_is_the_identity():
    flow = ForwardFlow(tiny_config())
    z, labels = noise_and_labels()
    out = flow(z.float(), labels)
    assert torch.equal(out.z, z.float())
    assert torch.equal(out.log_det, torch.zeros(5))


@pytest.mark.parametrize("place", [0, 1])
def test_a_block_maps_each_patch_by_the_patches_read_before_it(place):
    block = tiny_flow().blocks[place]
    x, labels = noise_and_labels()
    changed = x.clone()
    last_read = 0 if block.reads_backwards else 3
    changed[:, last_read] += 1
    before, after = block(x, labels)[0], block(changed, labels)[0]
    untouched = [t for t in range(4) if t != last_read]
    assert torch.equal(before[:, untouched], after[:, untouched])
    assert not torch.allclose(before[:, last_read], after[:, last_read])


def test_blocks_alternate_their_reading_direction():
    assert [block.reads_backwards for block in tiny_flow().blocks] == [False, True, False]


def test_label_changes_the_likelihood():
    flow = tiny_flow()
    x, _ = noise_and_labels(batch=1)
    values = [flow.log_prob(x, torch.tensor([label])).item() for label in range(4)]
    assert len(set(values)) == 4


def test_restore_undoes_standardise():
    x, shift, log_scale = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    affine = Affine(shift, log_scale)
    torch.testing.assert_close(restore(standardise(x, affine)[0], affine), x, rtol=0, atol=1e-12)


def test_affine_arithmetic_on_half_precision_is_float32():
    x, shift, log_scale = torch.randn(3, 2, 4, 3).bfloat16()
    z, log_det = standardise(x, Affine(shift, log_scale))
    assert z.dtype == log_det.dtype == torch.float32
