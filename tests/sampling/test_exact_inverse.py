import pytest
import torch

from biflow.errors import InputError
from biflow.models.flow_block import Affine, restore
from biflow.models.forward_flow import ForwardFlow
from biflow.sampling.denoise import score_denoise
from biflow.sampling.guidance import Guidance, extrapolate
from biflow.sampling.sequential import invert_sequentially
from tests.builders import noise_and_labels, tiny_config, tiny_flow


def test_inverse_undoes_forward():
    flow, (x, labels) = tiny_flow(), noise_and_labels()
    back = invert_sequentially(flow, flow(x, labels).z, labels)
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-9)


def test_forward_undoes_inverse():
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    x = invert_sequentially(flow, z, labels).x
    torch.testing.assert_close(flow(x, labels).z, z, rtol=0, atol=1e-9)


def test_cost_is_one_call_for_every_patch_but_the_first():
    z, labels = noise_and_labels()
    assert invert_sequentially(tiny_flow(), z, labels).network_calls == 3 * (4 - 1)


def test_sampling_leaves_the_noise_untouched():
    z, labels = noise_and_labels()
    before = z.clone()
    invert_sequentially(tiny_flow(), z, labels, guidance=Guidance(1.0))
    assert torch.equal(z, before)


def test_sampling_twice_gives_the_same_images():
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    first = invert_sequentially(flow, z, labels, guidance=Guidance(1.0)).x
    assert torch.equal(first, invert_sequentially(flow, z, labels, guidance=Guidance(1.0)).x)


def guided_without_cache(flow: ForwardFlow, z: torch.Tensor, labels: torch.Tensor, w: list[float]) -> torch.Tensor:
    """The slow way: two full passes for every patch, nothing cached or batched together."""
    nobody = torch.full_like(labels, flow.config.null_label)
    for block in reversed(list(flow.blocks)):
        z = block.reading_order(z)
        x = z.clone()
        for t in range(1, x.shape[1]):
            guided = extrapolate(*(block.predict(x, block.classes(which)) for which in (labels, nobody)), w[t])
            x[:, t] = restore(z[:, t], Affine(guided.shift[:, t - 1], guided.log_scale[:, t - 1]))
        z = block.reading_order(x)
    return z


@torch.no_grad()
@pytest.mark.parametrize("annealed", [False, True])
def test_guided_inverse_with_caches_equals_two_full_passes_a_patch(annealed):
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    fast = invert_sequentially(flow, z, labels, guidance=Guidance(1.5, annealed=annealed)).x
    strengths = [0.0, 0.5, 1.0, 1.5] if annealed else [1.5] * 4
    torch.testing.assert_close(fast, guided_without_cache(flow, z, labels, strengths), rtol=0, atol=1e-9)


def test_guidance_changes_the_result_and_zero_does_not():
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    plain = invert_sequentially(flow, z, labels).x
    torch.testing.assert_close(plain, invert_sequentially(flow, z, labels, guidance=Guidance(0.0)).x, rtol=0, atol=0)
    with_class = labels != flow.config.null_label
    assert not torch.allclose(
        plain[with_class], invert_sequentially(flow, z, labels, guidance=Guidance(1.0)).x[with_class]
    )


@pytest.mark.parametrize("strength", [-0.5, float("nan"), float("inf")])
def test_guidance_that_is_no_strength_is_refused(strength):
    with pytest.raises(InputError, match="guidance of 0"):
        Guidance(strength)


def test_denoising_follows_the_score():
    flow, (x, labels) = tiny_flow(), noise_and_labels()
    step, direction = 1e-6, torch.randn_like(x)
    slope = (flow.log_prob(x + step * direction, labels) - flow.log_prob(x - step * direction, labels)) / (2 * step)
    moved = (score_denoise(flow, x, labels) - x) / flow.config.noise_std**2
    torch.testing.assert_close((moved * direction).sum((1, 2)), slope, rtol=1e-5, atol=1e-5)


def test_denoising_of_a_standard_normal_shrinks_towards_zero():
    flow = ForwardFlow(tiny_config()).double()  # fresh: the identity, so that log p(x) = -x**2 / 2
    x, labels = noise_and_labels()
    torch.testing.assert_close(score_denoise(flow, x, labels), x * (1 - 0.2**2))
