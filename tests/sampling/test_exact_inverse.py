import pytest
import torch

from biflow.config import FlowConfig
from biflow.errors import InputError
from biflow.models.flow_block import Affine, restore
from biflow.models.forward_flow import ForwardFlow
from biflow.sampling.denoise import score_denoise
from biflow.sampling.guidance import Guidance
from biflow.sampling.jacobi import LARGEST_GUESS, invert_by_jacobi, measure_groups
from biflow.sampling.sequential import invert_sequentially
from tests.builders import noise_and_labels, tiny_config, tiny_flow

EXACT = {
    "sequential": invert_sequentially,
    "jacobi": lambda *args, **options: invert_by_jacobi(*args, tolerance=0, **options),
    "groups of two": lambda *args, **options: invert_by_jacobi(*args, tolerance=0, groups=2, **options),
    "one by one": lambda *args, **options: invert_by_jacobi(*args, tolerance=0, groups=1, **options),
    "a size per block": lambda *args, **options: invert_by_jacobi(*args, tolerance=0, groups=[4, 1, 2], **options),
}
GUIDANCES = {
    "none": Guidance(),
    "constant": Guidance(1.5),
    "annealed": Guidance(2.0, annealed=True),
    "shift": Guidance(1.0, on="shift"),
    "log-scale": Guidance(1.0, on="log_scale"),
    "temperature": Guidance(1.0, temperature=0.5),
}
VARIANTS = {
    "deep-shallow": {"layers": (1, 1, 3)},
    "rms norm, SwiGLU": {"norm": "rms", "mlp": "swiglu", "mlp_ratio": 2.5},
    "rotary, query-key norm": {"positions": "rotary", "qk_norm": True},
    "clip": {"clip": 0.05},
    "volume preserving": {"volume_preserving": True},
}


def variant(name: str) -> ForwardFlow:
    return tiny_flow(flow=FlowConfig(**{"blocks": 3, "layers": 2, "width": 16, "head_width": 8, **VARIANTS[name]}))


@pytest.mark.parametrize("invert", EXACT.values(), ids=EXACT)
def test_inverse_inverts_forward(invert):
    flow, (x, labels) = tiny_flow(), noise_and_labels()
    back = invert(flow, flow(x, labels).z, labels)
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("invert", EXACT.values(), ids=EXACT)
def test_forward_inverts_inverse(invert):
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    x = invert(flow, z, labels).x
    torch.testing.assert_close(flow(x, labels).z, z, rtol=0, atol=1e-9)


@pytest.mark.parametrize("invert", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("name", VARIANTS)
def test_inverse_inverts_every_variant(name, invert):
    flow, (x, labels) = variant(name), noise_and_labels()
    torch.testing.assert_close(invert(flow, flow(x, labels).z, labels).x, x, rtol=0, atol=1e-9)


def guided_without_cache(flow: ForwardFlow, z: torch.Tensor, labels: torch.Tensor, guidance: Guidance) -> torch.Tensor:
    """The slow way: two full passes for every patch, nothing cached or batched together."""
    nobody = torch.full_like(labels, flow.config.null_label)
    last = z.shape[1] - 1
    for block in reversed(list(flow.blocks)):
        z = block.reading_order(z)
        x = z.clone()
        temperature = torch.full_like(z[:, 0, 0], guidance.temperature)
        for t in range(1, x.shape[1]):
            w = guidance.strength * (t / last if guidance.annealed else 1)
            given = block.predict(x, block.classes(labels))
            free = block.predict(x, block.classes(nobody), temperature=temperature)
            shift, log_scale = given.shift, given.log_scale
            if guidance.on != "log_scale":
                shift = (1 + w) * given.shift - w * free.shift
            if guidance.on != "shift":
                log_scale = (1 + w) * given.log_scale - w * free.log_scale
            x[:, t] = restore(z[:, t], Affine(shift[:, t - 1], log_scale[:, t - 1]))
        z = block.reading_order(x)
    return z


@torch.no_grad()
@pytest.mark.parametrize("invert", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
def test_guided_inverse_equals_two_full_passes_per_patch(guidance, invert):
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    fast = invert(flow, z, labels, guidance=guidance)
    torch.testing.assert_close(fast.x, guided_without_cache(flow, z, labels, guidance), rtol=0, atol=1e-9)
    assert torch.equal(fast.residual, torch.zeros_like(fast.residual))


@pytest.mark.parametrize("invert", EXACT.values(), ids=EXACT)
def test_sampling_leaves_the_noise_untouched(invert):
    z, labels = noise_and_labels()
    before = z.clone()
    invert(tiny_flow(), z, labels, guidance=Guidance(1.0))
    assert torch.equal(z, before)


def test_sampling_twice_gives_the_same_images():
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    first = invert_sequentially(flow, z, labels, guidance=Guidance(1.0)).x
    assert torch.equal(first, invert_sequentially(flow, z, labels, guidance=Guidance(1.0)).x)


def test_sequential_takes_one_call_per_patch_but_the_first():
    z, labels = noise_and_labels()
    assert invert_sequentially(tiny_flow(), z, labels).network_calls == 3 * (4 - 1)


@pytest.mark.parametrize("groups", [None, 1, 2, 3, [2, 1, 4]])
def test_jacobi_never_takes_more_calls_than_sequential(groups):
    z, labels = noise_and_labels()
    assert invert_by_jacobi(tiny_flow(), z, labels, tolerance=0, groups=groups).network_calls <= 3 * (4 - 1)


@pytest.mark.parametrize("groups", [None, 9])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_jacobi_obeys_its_tolerance_with_fewer_calls(tolerance, groups):
    flow = long_flow()
    z, labels = long_noise(3), torch.tensor([0, 1, 3])
    exact = invert_sequentially(flow, z, labels, guidance=Guidance(0.5))
    near = invert_by_jacobi(flow, z, labels, guidance=Guidance(0.5), tolerance=tolerance, groups=groups)
    assert near.network_calls < exact.network_calls
    assert near.residual.max() <= tolerance
    torch.testing.assert_close(near.x, exact.x, rtol=0, atol=20 * tolerance)


@pytest.mark.parametrize("groups", [None, 3])
def test_jacobi_agrees_with_sequential_in_float32(groups):
    flow = long_flow().float()
    z, labels = long_noise(3).float(), torch.tensor([0, 1, 3])
    near = invert_by_jacobi(flow, z, labels, tolerance=1e-6, groups=groups)
    torch.testing.assert_close(near.x, invert_sequentially(flow, z, labels).x, rtol=0, atol=1e-5)


def test_an_image_does_not_depend_on_how_long_others_iterate():
    flow = long_flow()
    z, labels = long_noise(4), torch.tensor([0, 1, 2, 3])
    z[0] *= 0.01
    together = invert_by_jacobi(flow, z, labels, groups=5)
    alone = invert_by_jacobi(flow, z[:1], labels[:1], groups=5)
    assert alone.network_calls < together.network_calls
    torch.testing.assert_close(together.x[:1], alone.x, rtol=0, atol=1e-12)


def test_starting_at_the_solution_saves_calls():
    flow, (x, labels) = tiny_flow(), noise_and_labels()
    states = flow(x, labels).states
    best = invert_by_jacobi(flow, states[-1], labels, start=states[:-1])
    assert best.network_calls == 3
    torch.testing.assert_close(best.x, x, rtol=0, atol=1e-9)


def test_overflowing_iterates_do_not_spoil_the_result():
    flow = tiny_flow().float()
    with torch.no_grad():
        for block in flow.blocks:
            block.project_out.weight.mul_(10)
    z, labels = noise_and_labels()
    z = z.float()
    wild = invert_by_jacobi(flow, z, labels, tolerance=0)
    exact = invert_sequentially(flow, z, labels).x
    finite = exact.isfinite()
    assert exact[finite].abs().max() > LARGEST_GUESS
    assert torch.equal(wild.x.isfinite(), finite)
    torch.testing.assert_close(wild.x[finite], exact[finite], rtol=1e-3, atol=1e-3)


def long_flow() -> ForwardFlow:
    """36 patches of one value."""
    return tiny_flow(image_size=6, patch_size=1)


def long_noise(batch: int) -> torch.Tensor:
    return torch.randn(batch, 36, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def test_measured_groups_are_one_valid_size_per_block_and_small_for_a_hard_block():
    flow = long_flow()
    with torch.no_grad():
        flow.blocks[0].project_out.weight.mul_(9)  # each patch hangs on those before it
        flow.blocks[1].project_out.weight.zero_()  # all patches at once
    z, labels = long_noise(4), torch.arange(4)
    sizes = measure_groups(flow, z, labels, call_cost=16)
    assert len(sizes) == 3
    assert sizes[1] == 35
    assert sizes[0] < 35
    exact = invert_sequentially(flow, z, labels).x
    near = invert_by_jacobi(flow, z, labels, groups=sizes, tolerance=1e-6)
    torch.testing.assert_close(near.x, exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -1e-3}, r"tolerance to be a number, 0 or more; got -0.001"),
        ({"tolerance": float("nan")}, "tolerance to be a number, 0 or more"),
        ({"tolerance": "a"}, "tolerance to be a number, 0 or more"),
        ({"groups": 0}, "group size to be a whole number from 1 to 4; got 0"),
        ({"groups": 5}, "group size to be a whole number from 1 to 4; got 5"),
        ({"groups": [2, 2]}, "one group size for each of 3 blocks; got 2"),
        ({"groups": [2, 2, 1.5]}, "group size to be a whole number from 1 to 4; got 1.5"),
        ({"start": [torch.zeros(5, 4, 4)]}, "a guess for each of 3 blocks; got 1"),
    ],
)
def test_tolerance_and_groups_out_of_range_are_refused(options, message):
    z, labels = noise_and_labels()
    with pytest.raises(InputError, match=message):
        invert_by_jacobi(tiny_flow(), z, labels, **options)


@pytest.mark.parametrize("invert", EXACT.values(), ids=EXACT)
def test_an_unconditional_flow_is_guided_by_temperature_only(invert):
    flow, (z, _) = tiny_flow(num_classes=0), noise_and_labels()
    labels = torch.zeros(5, dtype=torch.long)
    with pytest.raises(InputError, match="this one is unconditional"):
        invert(flow, z, labels, guidance=Guidance(1.0))
    guided = invert(flow, z, labels, guidance=Guidance(1.0, temperature=1.5)).x
    assert not torch.allclose(guided, invert(flow, z, labels).x)


def test_guidance_changes_the_result_and_zero_does_not():
    flow, (z, labels) = tiny_flow(), noise_and_labels()
    plain = invert_sequentially(flow, z, labels).x
    torch.testing.assert_close(plain, invert_sequentially(flow, z, labels, guidance=Guidance(0.0)).x, rtol=0, atol=0)
    with_class = labels != flow.config.null_label
    guided = invert_sequentially(flow, z, labels, guidance=Guidance(1.0)).x
    assert not torch.allclose(plain[with_class], guided[with_class])


@pytest.mark.parametrize("strength", [-0.5, float("nan"), float("inf"), "a"])
def test_invalid_strengths_are_refused(strength):
    with pytest.raises(InputError, match="guidance to be a number, 0 or more"):
        Guidance(strength)


def test_other_invalid_guidance_is_refused():
    with pytest.raises(InputError, match="Unknown guidance on 'scale'; did you mean log_scale"):
        Guidance(1, on="scale")
    with pytest.raises(InputError, match=r"temperature to be a number above 0; got 0"):
        Guidance(1, temperature=0)


def test_denoising_follows_the_score():
    flow, (x, labels) = tiny_flow(), noise_and_labels()
    step, direction = 1e-6, torch.randn_like(x)
    slope = (flow.log_prob(x + step * direction, labels) - flow.log_prob(x - step * direction, labels)) / (2 * step)
    moved = (score_denoise(flow, x, labels) - x) / flow.config.noise_std**2
    torch.testing.assert_close((moved * direction).sum((1, 2)), slope, rtol=1e-5, atol=1e-5)


def test_denoising_scales_with_its_step():
    flow, (x, labels) = tiny_flow(), noise_and_labels()
    whole = score_denoise(flow, x, labels) - x
    torch.testing.assert_close(score_denoise(flow, x, labels, step=0.5) - x, 0.5 * whole)
    assert torch.equal(score_denoise(flow, x, labels, step=0), x)


def test_denoising_of_a_standard_normal_shrinks_towards_zero():
    flow = ForwardFlow(tiny_config()).double()  # fresh: the identity, so that log p(x) = -x**2 / 2
    x, labels = noise_and_labels()
    torch.testing.assert_close(score_denoise(flow, x, labels), x * (1 - 0.2**2))
