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


def test_a_block_returns_the_patches_and_not_its_class_tokens():
    block, hidden = tiny_reverse().blocks[0], torch.randn(3, 4, 16, dtype=torch.float64)
    for layer in block.transformer.layers:  # now the identity
        for last in (layer.attention.out, layer.mlp[2]):
            last.weight.data.zero_()
            last.bias.data.zero_()
    assert torch.equal(block(hidden, torch.tensor([0, 1, 3])), hidden)


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


def tiny_trained() -> ReverseModel:
    sizes = {"layers": 1, "width": 16, "head_width": 8}
    return tiny_reverse(reverse=ReverseConfig(**sizes, guidance="trained"))


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


def test_recovered_states_undo_the_extrapolation_of_every_block():
    model, (z, labels) = tiny_trained(), noise_and_labels()
    w = torch.tensor([0.7, 0.0, 1.9, 0.0, 0.3], dtype=z.dtype)
    strength, nothing = model.strengths(w), model.strengths(0 * w)
    nobody, weight = torch.full_like(labels, model.null_label), w[:, None, None]
    state = model.positions(model.project_in(z))
    recovered = []
    for block in [*reversed(list(model.blocks)), model.denoise]:
        guided, without = block(state, labels, strength), block(state, nobody, nothing)
        recovered.append((guided + weight * without) / (1 + weight))
        torch.testing.assert_close((1 + weight) * recovered[-1] - weight * without, guided)
        state = recovered[-1]
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
    out = model(z, labels)
    plain = model.read_states(out)
    model.state_rms.fill_(2.5)
    for scaled, unscaled in zip(model.read_states(out), plain, strict=True):
        torch.testing.assert_close(scaled, 2.5 * unscaled)


def test_a_config_without_a_reverse_model_is_refused():
    with pytest.raises(InputError, match=r"Add model\.reverse"):
        ReverseModel(tiny_config(reverse=None))


SIZES = {"layers": 1, "width": 16, "head_width": 8}


@pytest.mark.parametrize("strategy", ["alignment", "distillation", "naive"])
@pytest.mark.parametrize("denoising", ["learned", "score", "none"])
def test_every_strategy_and_denoising_makes_an_image_and_knows_its_states(strategy, denoising):
    model = tiny_reverse(reverse=ReverseConfig(**SIZES, strategy=strategy, denoising=denoising))
    z, labels = noise_and_labels()
    out = model(z, labels)
    assert out.image.shape == z.shape
    assert len(out.hidden) == 3
    if strategy == "naive":
        assert len(model.heads) == 0
        with pytest.raises(InputError, match=r"model\.reverse\.strategy=alignment"):
            model.read_states(out)
    else:
        states = model.read_states(out)
        assert [state.shape for state in states] == [z.shape] * 3
        assert (states[0] is out.image) == (denoising != "learned")


@pytest.mark.parametrize("denoising", ["learned", "none"])
def test_distillation_hands_on_states_and_nothing_more(denoising):
    model = tiny_reverse(reverse=ReverseConfig(**SIZES, strategy="distillation", denoising=denoising))
    z, labels = noise_and_labels()
    state, first = model.positions(model.project_in(z)), model.first_head
    for level in (2, 1, 0):
        made = model.blocks[level](state, labels)
        if level >= first:
            state = model.positions(model.lifts[level - first](model.heads[level - first](made)))
    if model.denoise:
        made = model.denoise(state, labels)
    torch.testing.assert_close(model(z, labels).image, model.project_out(made))
