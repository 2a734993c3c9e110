import pytest
import torch
from torch import nn

from biflow.config import ReverseConfig
from biflow.errors import InputError
from biflow.sampling.guidance import Guidance
from biflow.sampling.one_pass import sample_in_one_pass
from biflow.sampling.samplers import OnePass, Sequential
from tests.builders import noise_and_labels, tiny_config, tiny_model, tiny_reverse


def test_one_pass_is_one_network_call():
    z, labels = noise_and_labels()
    drawn = sample_in_one_pass(tiny_reverse(), z, labels)
    assert drawn.network_calls == 1
    assert drawn.x.shape == z.shape
    assert not drawn.x.requires_grad


def test_guidance_changes_the_result():
    model, (z, labels) = tiny_reverse(), noise_and_labels(batch=3)
    plain, guided = (sample_in_one_pass(model, z, labels, guidance=Guidance(w)).x for w in (0.0, 1.0))
    assert not torch.allclose(plain, guided)


@pytest.mark.parametrize("guidance", ["trained", "two_passes"])
def test_the_denoising_block_takes_a_strength_of_its_own(guidance):
    config = ReverseConfig(width=16, layers=1, head_width=8, guidance=guidance)
    model, (z, labels) = tiny_reverse(reverse=config), noise_and_labels(batch=3)
    nn.init.normal_(model.strengths.out.weight) if guidance == "trained" else None
    same, other = (model(z, labels, 1.0, denoise) for denoise in (1.0, 0.0))
    assert torch.equal(same.image, model(z, labels, 1.0).image)
    assert torch.equal(other.hidden[0], same.hidden[0])
    assert not torch.allclose(other.image, same.image)
    state = other.hidden[0]  # the last block alone, unguided
    strength = model.strengths(torch.zeros(1)) if guidance == "trained" else 0.0
    torch.testing.assert_close(other.image, model.project_out(model.denoise(state, labels, strength)))
    drawn = sample_in_one_pass(model, z, labels, guidance=Guidance(1.0, denoise=0.0))
    assert torch.equal(drawn.x, other.image)


def test_a_strength_for_a_missing_denoising_block_is_refused():
    config = ReverseConfig(width=16, layers=1, head_width=8, denoising="score")
    model = tiny_model(tiny_config(reverse=config))
    with pytest.raises(InputError, match=r"denoise=0\.5: this reverse model has no denoising block. Leave it out"):
        OnePass().prepare(model, Guidance(1, denoise=0.5))
    with pytest.raises(InputError, match=r"denoise=0\.5 for an exact inverse, which has no denoising block"):
        Sequential().prepare(model, Guidance(1, denoise=0.5))


def test_annealed_guidance_is_refused():
    z, labels = noise_and_labels()
    with pytest.raises(InputError, match=r"annealed guidance, .* are for the exact inverse"):
        sample_in_one_pass(tiny_reverse(), z, labels, guidance=Guidance(1, annealed=True))


def test_a_strength_beyond_the_trained_range_warns_and_says_the_range():
    config = ReverseConfig(width=16, layers=1, head_width=8, guidance="trained", max_guidance=1.5)
    model = tiny_model(tiny_config(reverse=config))
    OnePass().prepare(model, Guidance(1.5))
    for guidance in (Guidance(2), Guidance(1, denoise=2)):
        with pytest.warns(UserWarning, match=r"Guidance 2 is above 1\.5, the largest seen in training"):
            OnePass().prepare(model, guidance)
