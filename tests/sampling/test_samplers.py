"""Each sampler against the functions that it is made of, and their residuals, calls and guesses."""

import pytest
import torch

from biflow.config import FlowConfig, ReverseConfig
from biflow.data.randomness import normal_for
from biflow.models.model import Model
from biflow.sampling.denoise import score_denoise
from biflow.sampling.draw import Engine
from biflow.sampling.guidance import Guidance
from biflow.sampling.jacobi import invert_by_jacobi, measure_groups
from biflow.sampling.one_pass import guess_states, sample_in_one_pass
from biflow.sampling.options import SamplingSettings
from biflow.sampling.refine import refine
from biflow.sampling.samplers import GSJacobi, Jacobi, OnePass, Refine, Sequential
from biflow.sampling.sequential import invert_sequentially
from tests.builders import noise_and_labels, tiny_config, tiny_model

GUIDANCE = Guidance(1.5)
SIZES = {"layers": 1, "width": 16, "head_width": 8}


def model_with(guidance: str = "two_passes", **changes: object) -> Model:
    model = tiny_model(tiny_config(reverse=ReverseConfig(**SIZES, guidance=guidance, **changes)))
    model.networks.double()
    return model


def test_an_exact_inverse_is_followed_by_its_share_of_a_score_step():
    model, (z, labels) = model_with(), noise_and_labels()
    found = Sequential(denoise=0.3)(model, z, labels, GUIDANCE)
    inverse = invert_sequentially(model.flow, z, labels, guidance=GUIDANCE)
    expected = score_denoise(model.flow, inverse.x, labels, step=0.3)
    torch.testing.assert_close(found.x, expected)
    assert not torch.allclose(expected, score_denoise(model.flow, inverse.x, labels))


def test_jacobi_hands_on_its_settings():
    model, (z, labels) = model_with(), noise_and_labels()
    settings = {"tolerance": 1e-2, "groups": (1, 2, 3)}
    found = Jacobi(**settings, denoise=0)(model, z, labels, GUIDANCE)
    expected = invert_by_jacobi(model.flow, z, labels, guidance=GUIDANCE, **settings)
    assert torch.equal(found.x, expected.x)
    assert found.network_calls == expected.network_calls


@pytest.mark.parametrize("guidance", ["trained", "two_passes"])
def test_refine_starts_from_the_guess_under_the_same_guidance(guidance):
    model, (z, labels) = model_with(guidance), noise_and_labels()
    found = Refine(tolerance=0.3, denoise=0)(model, z, labels, GUIDANCE)
    starts = [guess_states(model.reverse, z, labels, each) for each in (GUIDANCE, Guidance())]
    ends = [refine(model.flow, z, labels, start=start, guidance=GUIDANCE, tolerance=0.3) for start in starts]
    assert torch.equal(found.x, ends[0].x)
    assert torch.equal(found.residual, ends[0].residual)
    assert not torch.equal(ends[0].residual, ends[1].residual)
    tight = refine(model.flow, z, labels, start=starts[0], guidance=GUIDANCE, tolerance=1e-9)
    assert tight.rounds > ends[0].rounds


def test_a_guess_is_guided_as_far_as_the_reverse_model_was_trained():
    z, labels = noise_and_labels()
    for guidance, strongest in (("trained", 2.0), ("two_passes", 5.0)):
        model = model_with(guidance, max_guidance=2.0)
        for strength in (1.0, 5.0):
            found = guess_states(model.reverse, z, labels, Guidance(strength))
            expected = model.reverse.read_states(model.reverse(z, labels, min(strength, strongest)))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("denoising", ["learned", "score", "none"])
def test_one_pass_is_guided_and_denoised_as_the_reverse_model_was_trained(denoising):
    model, (z, labels) = model_with(denoising=denoising), noise_and_labels()
    found = OnePass()(model, z, labels, GUIDANCE).x
    expected = sample_in_one_pass(model.reverse, z, labels, guidance=GUIDANCE).x
    assert torch.equal(expected, model.reverse(z, labels, 1.5).image)
    if denoising == "score":
        expected = score_denoise(model.flow, expected, labels)
    assert torch.equal(found, expected)


def test_groups_are_measured_on_noise_of_the_prior():
    model = tiny_model(tiny_config(patch_size=1))
    model.flow.prior_variance.fill_(9.0)
    z = 3 * normal_for(range(8), (16, 1), "groups")
    labels = torch.arange(8) % 3
    settings = {"tolerance": 0.1, "call_cost": 4.0}
    expected, other = (measure_groups(model.flow, noise, labels, guidance=GUIDANCE, **settings) for noise in (z, z / 3))
    assert GSJacobi(**settings).prepare(model, GUIDANCE).groups == expected != other


def test_the_noise_of_an_image_is_keyed_by_seed_index_and_attempt_and_scaled_to_the_prior():
    flow = FlowConfig(blocks=3, layers=2, width=16, head_width=8, volume_preserving=True)
    model = tiny_model(tiny_config(flow=flow))
    model.flow.prior_variance.copy_(torch.rand(4, 4) + 0.5)
    engine, std = Engine(model), model.flow.prior_variance.sqrt()
    torch.testing.assert_close(engine.noise([4, 9], 3), std * normal_for([4, 9], (4, 4), "sample", 3))
    torch.testing.assert_close(engine.noise([4], 3, attempt=2), std * normal_for([4], (4, 4), "sample", 3, 2))


def test_samples_are_drawn_for_the_indices_from_the_start_on():
    engine, labels = Engine(tiny_model()), torch.tensor([2, 0, 1, 3])
    settings = SamplingSettings.of({"method": "sequential", "seed": 5, "batch_size": 3})
    drawn = engine.sample(labels, settings, start=7, redraws=0).pixels
    z = engine.noise(range(7, 11), 5)
    x = Sequential()(engine.model, z, labels, Guidance()).x
    assert torch.equal(drawn, engine.model.codec.decode(engine.model.to_latents(x)))
