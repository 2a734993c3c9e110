import pytest
import torch

from biflow.config import ReverseConfig
from biflow.errors import InputError
from biflow.sampling.guidance import Guidance
from biflow.sampling.one_pass import sample_in_one_pass
from biflow.sampling.samplers import OnePass
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


def test_annealed_guidance_is_refused():
    z, labels = noise_and_labels()
    with pytest.raises(InputError, match=r"annealed guidance, .* are for the exact inverse"):
        sample_in_one_pass(tiny_reverse(), z, labels, guidance=Guidance(1, annealed=True))


def test_a_strength_beyond_the_trained_range_warns_and_says_the_range():
    config = ReverseConfig(width=16, layers=1, head_width=8, guidance="trained", max_guidance=1.5)
    model = tiny_model(tiny_config(reverse=config))
    OnePass().prepare(model, Guidance(1.5))
    with pytest.warns(UserWarning, match=r"Guidance 2 is above 1\.5, the largest seen in training"):
        OnePass().prepare(model, Guidance(2))
