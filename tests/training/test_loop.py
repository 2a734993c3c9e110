"""Training against a loop written by hand, and what its model is during and after it."""

import math

import pytest
import torch
from torch import nn

from biflow.config import FitConfig
from biflow.training.batches import Batch
from biflow.training.loop import Trainer
from biflow.training.objective import LossParts, Objective
from biflow.training.optim import EMA, learning_rate_factor
from tests.training.test_training import ALONE

STEPS = 12
CONFIG = {
    "steps": STEPS,
    "warmup_steps": 3,
    "learning_rate": 0.05,
    "last_learning_rate": 0.01,
    "betas": (0.6, 0.8),
    "weight_decay": 0.3,
    "clip_norm": 0.5,
    "ema_decay": 0.5,
    "log_every": 1,
}


class Regression(Objective):
    """A linear layer that fits the first label's square; its gradient is infinite where an image is exactly 7."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 2))
        self.modes: list[bool] = []

    def forward(self, batch: Batch) -> LossParts:
        self.modes.append(self.model.training)
        found = self.model(batch.clean.flatten(1))
        loss = (found - batch.labels[:, None]).square().mean() + 0 * (7 - batch.clean.max()).sqrt()
        spike = (7 - batch.clean).abs().amin() * self.model.weight.sum()
        total = loss + 1e-3 * (spike * 0 if batch.clean.max() < 7 else (spike.square()).sqrt())
        return LossParts(total, {"squares": loss.detach()})


def batch_at(step: int) -> Batch:
    """Small images and labels; step 4 is NaN, and the gradient, though not the loss, of step 7."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(6, 1, 2, 2, generator=generator)
    if step == 4:
        images[0] = torch.nan
    if step == 7:
        images[0, 0, 0, 0] = 7.0
    return Batch(images, images, torch.arange(6), torch.zeros(6))


def new_objective() -> Regression:
    torch.manual_seed(0)
    return Regression()


def factor(step: int) -> float:
    """Three steps up, nine down by half a cosine to a fifth."""
    if step < 3:
        return (1 / 3, 2 / 3, 1.0)[step]
    return 0.2 + 0.8 * (1 + math.cos(math.pi * (step - 3) / 9)) / 2


def by_hand() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Live and averaged weights after training with AdamW (arXiv 1711.05101), written out."""
    objective = new_objective()
    weights = [*objective.model.parameters()]
    averages = [p.detach().clone() for p in weights]
    first, second, count = [0.0, 0.0], [0.0, 0.0], 0
    for step in range(STEPS):
        objective.model.zero_grad()
        objective(batch_at(step)).total.backward()
        gradients = [p.grad for p in weights]
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        if not norm.isfinite():
            assert step in {4, 7}
            continue
        count, rate = count + 1, 0.05 * factor(step)
        gradients = [g * min(1.0, 0.5 / (norm + 1e-6)) for g in gradients]
        for i, (p, g) in enumerate(zip(weights, gradients, strict=True)):
            first[i], second[i] = 0.6 * first[i] + 0.4 * g, 0.8 * second[i] + 0.2 * g * g
            update = first[i] / (1 - 0.6**count) / ((second[i] / (1 - 0.8**count)).sqrt() + 1e-8)
            decay = 0.3 if p.ndim == 2 else 0.0
            p.data = p.data * (1 - rate * decay) - rate * update
            kept = min(0.5, (1 + step) / (10 + step))
            averages[i] = kept * averages[i] + (1 - kept) * p.data
    return [p.detach() for p in weights], averages


def test_training_is_the_loop_written_by_hand():
    live, averages = by_hand()
    trainer = Trainer(new_objective(), FitConfig(**CONFIG), ALONE)
    kept = []
    trainer.train(batch_at, hooks=[lambda _: kept.append([p.detach().clone() for p in trainer.model.parameters()])])
    assert trainer.skipped == 2
    for ours, theirs in zip(kept[-1], live, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(trainer.model.parameters(), averages, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert not trainer.model.training
    assert all(trainer.plain.modes)


def test_the_loss_of_step_seven_is_finite_and_its_gradient_is_not():
    objective = new_objective()
    loss = objective(batch_at(7)).total
    loss.backward()
    assert loss.isfinite()
    assert not objective.model.weight.grad.isfinite().all()


@pytest.mark.parametrize("step", range(STEPS))
def test_the_schedule_is_its_formula(step):
    assert learning_rate_factor(step, FitConfig(**CONFIG)) == pytest.approx(factor(step))


def trained_a_little() -> Trainer:
    trainer = Trainer(new_objective(), FitConfig(**CONFIG), ALONE)
    for step in range(3):
        trainer._take_step(batch_at(step))
        trainer.step += 1
    return trainer


def test_evaluation_uses_the_averaged_weights_in_eval_mode_and_leaves_training_as_it_was():
    trainer = trained_a_little()
    live = [p.detach().clone() for p in trainer.model.parameters()]
    averaged, objective = trainer.averaged_model(), trainer.plain
    assert not averaged.training
    for ours, theirs in zip(averaged.parameters(), trainer.ema.average.values(), strict=True):
        assert torch.equal(ours, theirs)
    objective.modes.clear()
    found = trainer.evaluate(batch_at(1)).total
    assert objective.modes == [False]
    expected = (averaged(batch_at(1).clean.flatten(1)) - torch.arange(6)[:, None]).square().mean()
    torch.testing.assert_close(found, expected)
    assert trainer.model.training
    assert all(torch.equal(a, b) for a, b in zip(live, trainer.model.parameters(), strict=True))


def test_parts_of_a_step_average_to_the_whole():
    whole, parts = (Trainer(new_objective(), FitConfig(**CONFIG, accumulate=n), ALONE) for n in (1, 3))
    found = [trainer._take_step(batch_at(0)) for trainer in (whole, parts)]
    torch.testing.assert_close(found[0][0].total, found[1][0].total)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_the_gradient_norm_is_that_of_all_parts_together():
    trainer = Trainer(new_objective(), FitConfig(**CONFIG), ALONE)
    trainer.parts = [nn.ParameterList([p]) for p in trainer.model.parameters()]
    norm = trainer._take_step(batch_at(0))[1]
    objective = new_objective()
    objective(batch_at(0)).total.backward()
    gradients = torch.cat([p.grad.flatten() for p in objective.model.parameters()])
    torch.testing.assert_close(norm, gradients.norm())


def test_the_average_forgets_the_first_weights():
    layer = nn.Linear(1, 1, bias=False)
    ema, expected = EMA(layer, decay=0.99), layer.weight.item()
    for step in range(30):
        layer.weight.data += 1
        ema.update(step)
        kept = (1 + step) / (10 + step)
        expected = kept * expected + (1 - kept) * layer.weight.item()
    assert ema.average["weight"].item() == pytest.approx(expected)
