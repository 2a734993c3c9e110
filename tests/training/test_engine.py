"""Precision, gradient accumulation, activation checkpointing, and steps with NaN."""

import json
from copy import deepcopy

import pytest
import torch

from biflow.config import FitConfig
from biflow.errors import Diverged, InputError
from biflow.training.hooks import History
from biflow.training.loop import Trainer
from biflow.training.objectives import FitFlow
from tests.builders import tiny_model
from tests.training.test_training import ALONE, tiny_batch


def steps(count: int = 3, **changes) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and last weights of a few steps on one batch."""
    trainer = Trainer(FitFlow(tiny_model().flow), FitConfig(warmup_steps=0, **changes), ALONE)
    losses = [trainer._take_step(tiny_batch())[0].total.item() for _ in range(count)]
    return losses, [parameter.detach() for parameter in trainer.model.parameters()]


def test_accumulation_gives_the_loss_and_gradient_of_the_full_batch():
    found = []
    for parts in (1, 3):
        trainer = Trainer(FitFlow(tiny_model().flow.double()), FitConfig(accumulate=parts), ALONE)
        batch = tiny_batch()._replace(noisy=tiny_batch().noisy.double())
        loss = trainer._add_gradients(batch).total
        found.append([loss.detach(), *(parameter.grad for parameter in trainer.model.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(InputError, match="divisible by accumulate=4; got 6 images"):
        steps(accumulate=4)


def test_activation_checkpointing_does_not_change_training():
    for ours, theirs in zip(steps(recompute=True), steps(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_saves_less_for_the_backward_pass():
    kept = {}
    for recompute in (False, True):
        trainer = Trainer(FitFlow(tiny_model().flow), FitConfig(recompute=recompute), ALONE)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            trainer._add_gradients(tiny_batch())
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False]


def test_float16_training_stays_near_float32_with_weights_in_float32():
    losses, parameters = steps(precision="float16")
    assert losses == pytest.approx(steps()[0], rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in parameters)


def broken_batch():
    batch = tiny_batch()
    return batch._replace(noisy=torch.full_like(batch.noisy, torch.nan))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_with_nan_changes_nothing_and_is_counted(precision, optimizer):
    config = FitConfig(precision=precision, warmup_steps=0, optimizer=optimizer)
    trainer = Trainer(FitFlow(tiny_model().flow), config, ALONE)
    trainer._take_step(tiny_batch())
    before = [*(p.detach().clone() for p in trainer.model.parameters()), *trainer.ema.average.values()]
    kept = deepcopy(trainer.optimizers.state_dict(ALONE))
    trainer._take_step(broken_batch())
    assert (trainer.skipped, trainer.skipped_in_a_row) == (1, 1)
    after = [*trainer.model.parameters(), *trainer.ema.average.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for name, state in trainer.optimizers.state_dict(ALONE).items():
        assert state.keys() == kept[name].keys()
        assert all(torch.equal(value, kept[name][key]) for key, value in state.items())
    trainer._take_step(tiny_batch())
    assert (trainer.skipped, trainer.skipped_in_a_row) == (1, 0)


def test_training_stops_after_max_skipped_steps_keeps_the_last_good_state_and_names_the_block(tmp_path):
    config = FitConfig(steps=20, max_skipped=3, save_every=1, warmup_steps=0)
    flow = tiny_model().flow
    flow.flow_blocks[1].project_out.weight.data *= 1e4
    trainer = Trainer(FitFlow(flow), config, ALONE)
    reports = []
    with pytest.raises(Diverged, match=r"step 3: .* 3 steps in a row\. .*lock (2|3) of the flow \(block 1 is at"):
        trainer.train(lambda _: tiny_batch(), hooks=[reports.append], save_to=tmp_path)
    assert [report.skipped for report in reports] == [1, 2, 3]
    assert not list(tmp_path.iterdir())


def test_skipped_steps_are_logged_as_valid_json(tmp_path):
    trainer = Trainer(FitFlow(tiny_model().flow), FitConfig(steps=3, warmup_steps=0, log_every=1), ALONE)
    batches = [tiny_batch(), broken_batch(), tiny_batch()]
    trainer.train(batches.__getitem__, hooks=[History(tmp_path / "log.jsonl", "flow", trainer)])
    text = (tmp_path / "log.jsonl").read_text()
    assert "NaN" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["skipped"] for line in lines] == [0, 1, 1]
    assert [line["loss"] is None for line in lines] == [False, True, False]
