import pytest
import torch

from biflow.config import ReverseConfig
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


def tiny_trained(hand_over: str = "recovered") -> ReverseModel:
    sizes = {"layers": 1, "width": 16, "head_width": 8}
    return tiny_reverse(reverse=ReverseConfig(**sizes, guidance="trained", hand_over=hand_over))


def test_trained_guidance_is_one_pass_that_depends_on_the_strength():
    model, (z, labels) = tiny_trained(), noise_and_labels()
    calls = []
    model.denoise.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    images = [model(z, labels, w).image for w in (0.0, 0.5, 2.0)]
    assert calls == [5, 5, 5]
    assert not torch.allclose(images[0], images[1])
    assert not torch.allclose(images[1], images[2])


def test_training_pass_without_guidance_is_the_plain_pass():
    model, (z, labels) = tiny_trained(), noise_and_labels()
    plain, recovered = model(z, labels, 0.0), model.forward_recovered(z, labels, torch.zeros(5, dtype=z.dtype))
    torch.testing.assert_close(recovered.image, plain.image)
    for ours, theirs in zip(recovered.hidden, plain.hidden, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("hand_over", ["guided", "recovered"])
def test_recovered_states_undo_the_extrapolation_of_every_block(hand_over):
    model, (z, labels) = tiny_trained(hand_over), noise_and_labels()
    w = torch.tensor([0.7, 0.0, 1.9, 0.0, 0.3], dtype=z.dtype)
    strength, nothing = model.strengths(w), model.strengths(0 * w)
    nobody, weight = torch.full_like(labels, model.null_label), w[:, None, None]
    state = model.positions(model.project_in(z))
    recovered = []
    for block in [*reversed(list(model.blocks)), model.denoise]:
        guided, without = block(state, labels, strength), block(state, nobody, nothing)
        recovered.append((guided + weight * without) / (1 + weight))
        torch.testing.assert_close((1 + weight) * recovered[-1] - weight * without, guided)
        state = guided if hand_over == "guided" else recovered[-1]
    out = model.forward_recovered(z, labels, w)
    torch.testing.assert_close(out.image, model.project_out(recovered[-1]))
    for ours, theirs in zip(out.hidden, recovered[-2::-1], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_state_without_label_gets_no_gradient():
    model, (z, _) = tiny_trained(), noise_and_labels()
    labels = torch.zeros(5, dtype=torch.long)
    model.forward_recovered(z, labels, torch.ones(5, dtype=z.dtype)).image.sum().backward()
    rows = model.denoise.classes.weight.grad
    assert rows[0].abs().sum() > 0
    assert rows[model.null_label].abs().sum() == 0


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
