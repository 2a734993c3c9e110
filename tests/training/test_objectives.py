"""The losses, computed once more in float64 from their definitions."""

import pytest
import torch

from biflow.config import DistanceConfig, FitConfig, ReverseConfig
from biflow.models.patches import patchify
from biflow.training.loop import Trainer
from biflow.training.objectives import RMS_RATE, FitFlow, FitJoint
from tests.builders import tiny_config, tiny_model, tiny_objective
from tests.training.test_training import ALONE, tiny_batch

SIZES = {"layers": 1, "width": 16, "head_width": 8}
RMS = torch.tensor([0.5, 1.5, 3.0])


def double_batch():
    return tiny_batch().map(lambda part: part.double() if part.is_floating_point() else part)


def double_model(**reverse):
    model = tiny_model(tiny_config(reverse=ReverseConfig(**SIZES, **reverse)))
    model.networks.double()
    model.reverse.state_rms.copy_(RMS)
    return model


@pytest.mark.parametrize("power", [0.0, 0.75])
@pytest.mark.parametrize("denoising", ["learned", "none"])
@pytest.mark.parametrize("guidance", ["trained", "two_passes"])
def test_the_reverse_loss_is_its_definition(denoising, power, guidance):
    model, batch = double_model(denoising=denoising, guidance=guidance), double_batch()
    distances = [DistanceConfig(kind="mse", weight=3.0)]
    fit = {"distances": distances, "adaptive_power": power, "adaptive_offset": 0.05}
    loss = tiny_objective(model, **fit)(batch)
    states = model.flow(patchify(batch.noisy, 2), batch.labels).states
    trained = guidance == "trained"
    reverse = model.reverse
    out = reverse.forward_recovered(states[-1], batch.labels, batch.guidance) if trained else None
    out = out or reverse(states[-1], batch.labels)
    weighted = lambda each: each / (each + 0.05) ** power  # noqa: E731
    target = patchify(batch.clean if denoising == "learned" else batch.noisy, 2)
    image = (out.image - target).square().mean(dim=(1, 2))
    levels = range(0 if denoising == "learned" else 1, 3)
    heads = [
        (head(out.hidden[level]) - states[level] / RMS[level]).square().mean(dim=(1, 2))
        for head, level in zip(reverse.heads, levels, strict=True)
    ]
    total = 3 * weighted(image).mean() + sum(weighted(each).mean() for each in heads)
    torch.testing.assert_close(loss.total, total, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.parts["mse"], image.mean().detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.parts["alignment"], sum(heads).mean().detach(), rtol=1e-6, atol=0)


def joint(model, **changes) -> Trainer:
    objective = FitJoint(model.reverse, FitFlow(model.flow), tiny_objective(model).loss)
    model.flow.requires_grad_(True)  # which fitting the reverse model alone freezes
    return Trainer(objective, FitConfig(warmup_steps=0, **changes), ALONE)


def test_the_joint_loss_is_the_sum_of_both_and_the_reverse_loss_leaves_the_flow_alone():
    model, batch = double_model(), double_batch()
    reverse = tiny_objective(model)(batch).total
    alone = FitFlow(model.flow.requires_grad_(True))(batch).total
    alone.backward()
    expected = [p.grad.clone() for p in model.flow.parameters()]
    model.flow.zero_grad()
    trainer = joint(model)
    loss = trainer.objective(batch).total
    torch.testing.assert_close(loss, alone + reverse)
    loss.backward()
    for parameter, gradient in zip(model.flow.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def root_mean_squares(model, batch):
    states = model.flow(patchify(batch.noisy, 2), batch.labels).states[:-1]
    return torch.stack([state.square().mean().sqrt() for state in states]).detach()


@pytest.mark.parametrize("parts", [1, 3])
def test_joint_training_moves_the_root_mean_squares_once_a_step_from_the_whole_batch(parts):
    model, batch = double_model(), double_batch()
    found = root_mean_squares(model, batch)
    joint(model, accumulate=parts)._take_step(batch)
    expected = RMS + RMS_RATE * (found - RMS)
    assert RMS_RATE == 0.01
    torch.testing.assert_close(model.reverse.state_rms, expected.to(model.reverse.state_rms), rtol=1e-9, atol=0)


def test_a_step_of_joint_training_with_nan_leaves_the_root_mean_squares():
    model, batch = double_model(), double_batch()
    trainer = joint(model)
    trainer._take_step(batch._replace(noisy=batch.noisy * torch.nan))
    assert trainer.skipped == 1
    assert torch.equal(model.reverse.state_rms, RMS.double())
    found = root_mean_squares(model, batch)
    trainer._take_step(batch)
    torch.testing.assert_close(model.reverse.state_rms, (RMS + 0.01 * (found - RMS)).double())


def test_an_evaluation_of_joint_training_leaves_the_root_mean_squares():
    found = []
    for evaluated in (False, True):
        model, batch = double_model(), double_batch()
        trainer = joint(model)
        if evaluated:
            trainer.evaluate(batch._replace(noisy=3 * batch.noisy))
            assert torch.equal(model.reverse.state_rms, RMS.double())
        trainer._take_step(batch)
        found.append(model.reverse.state_rms)
    assert torch.equal(*found)


def test_flow_and_reverse_model_are_clipped_separately():
    model = double_model()
    flow, reverse = joint(model).parts
    assert {*flow.parameters()} == {*model.flow.parameters()}
    assert {*reverse.parameters()} == {*model.reverse.parameters()}


def test_the_digest_of_a_flow_covers_names_and_values():
    model = tiny_model()
    reverse = model.reverse
    assert reverse.matches_flow(tiny_model(seed=1).flow)  # not fitted yet
    reverse.record_flow(model.flow)
    assert reverse.matches_flow(model.flow)
    assert not reverse.matches_flow(tiny_model(seed=1).flow)
    other = tiny_model()
    first, last = (other.flow.flow_blocks[i] for i in (0, 2))
    first.classes, last.classes = last.classes, first.classes  # other values under these names
    assert not reverse.matches_flow(other.flow)
    layer = other.flow.flow_blocks[0].transformer.layers[0]
    layer.attention_norm, layer.mlp_norm = layer.mlp_norm, layer.attention_norm
    plain, renamed = (torch.nn.ParameterDict({name: torch.ones(2)}) for name in "ab")
    reverse.record_flow(plain)
    assert not reverse.matches_flow(renamed)
