import pytest
import torch

from biflow.errors import InputError
from biflow.models.reverse_model import ReverseModel
from tests.builders import noise_and_labels, tiny_config, tiny_reverse


def test_levels_count_as_in_the_flow():
    model = tiny_reverse()
    z, labels = noise_and_labels()
    out = model(z, labels)
    assert out.image.shape == z.shape
    assert len(out.hidden) == 3
    first_made = model.blocks[2](model.positions(model.project_in(z)), labels)
    torch.testing.assert_close(out.hidden[2], first_made)


def test_every_patch_sees_every_patch():
    model = tiny_reverse()
    z, labels = noise_and_labels(batch=1)
    for place in (0, 3):
        changed = z.clone()
        changed[:, place] += 1
        difference = (model(z, labels).image - model(changed, labels).image).abs().amin(dim=2)
        assert (difference > 0).all()


def test_guidance_extrapolates_every_block():
    model, (z, labels), w = tiny_reverse(), noise_and_labels(), 1.5
    state = model.positions(model.project_in(z))
    nobody = torch.full_like(labels, model.null_label)
    for block in [*reversed(list(model.blocks)), model.denoise]:
        state = (1 + w) * block(state, labels) - w * block(state, nobody)
    torch.testing.assert_close(model(z, labels, w).image, model.project_out(state))


def test_guidance_without_a_class_changes_nothing():
    model, (z, _) = tiny_reverse(), noise_and_labels()
    nobody = torch.full((5,), model.null_label)
    torch.testing.assert_close(model(z, nobody, 2.0).image, model(z, nobody).image)


def test_heads_speak_the_units_of_the_flow():
    model, (z, labels) = tiny_reverse(), noise_and_labels()
    hidden = model(z, labels).hidden
    plain = model.read_states(hidden)
    model.state_rms.fill_(2.5)
    for scaled, unscaled in zip(model.read_states(hidden), plain, strict=True):
        torch.testing.assert_close(scaled, 2.5 * unscaled)


def test_a_config_without_a_reverse_model_is_refused():
    with pytest.raises(InputError, match=r"Add model\.reverse"):
        ReverseModel(tiny_config(reverse=None))
