import json

import pytest
import torch
from rich.console import Console

from biflow.config import FitConfig
from biflow.errors import InputError, Interrupted
from biflow.losses.likelihood import standard_normal_log_prob
from biflow.models.patches import patchify
from biflow.training.distributed import World
from biflow.training.hooks import read_history
from biflow.training.loop import Trainer
from biflow.training.objectives import Batch, FitFlow, FitReverse
from biflow.training.optim import EMA, learning_rate_factor, make_optimizer
from biflow.training.run import open_run
from biflow.training.stages import measure_state_rms, train_model, training_batches
from tests.builders import tiny_images, tiny_model, tiny_run

ALONE = World(0, 1, torch.device("cpu"))


def tiny_batch() -> Batch:
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(images, images + 0.2, torch.arange(6) % 4, torch.tensor([0.0, 0.5, 1.0, 0.0, 2.0, 0.0]))


def train_in(folder, *, resume=False, stop_at: int | None = None, **changes):
    """A tiny run in a folder; stopped as by Ctrl-C after so many steps of all stages."""
    with open_run(tiny_run(**changes), tiny_images(), folder, resume=resume, console=Console(quiet=True)) as run:
        taken = iter(range(1, 1000))
        should_stop = (lambda: next(taken) == stop_at) if stop_at else (lambda: False)
        object.__setattr__(run, "should_stop", should_stop)
        return train_model(run).model


def weights(model) -> list[torch.Tensor]:
    return [*model.flow.state_dict().values(), *(model.reverse.state_dict().values() if model.reverse else ())]


def test_flow_objective_is_the_negative_log_likelihood_per_dimension():
    flow, batch = tiny_model().flow, tiny_batch()
    out = flow(patchify(batch.noisy, 2), batch.labels)
    expected = -(standard_normal_log_prob(out.z) + out.log_det).mean() / 16
    torch.testing.assert_close(FitFlow(flow)(batch).total, expected)


def test_reverse_objective_moves_the_reverse_model_and_never_the_flow():
    model = tiny_model()
    FitReverse(model.reverse, model.flow)(tiny_batch()).total.backward()
    assert all(parameter.grad is None for parameter in model.flow.parameters())
    without = [name for name, parameter in model.reverse.named_parameters() if parameter.grad is None]
    assert without == []


def test_reverse_objective_compares_each_level_with_the_same_level_of_the_flow():
    model, batch = tiny_model(), tiny_batch()
    trajectory = model.flow(patchify(batch.noisy, 2), batch.labels)
    out = model.reverse(trajectory.z, batch.labels)
    read = model.reverse.read_states(out.hidden)
    levels = [(guess - state).square().mean() for guess, state in zip(read, trajectory.states[:-1], strict=True)]
    image = (out.image - patchify(batch.clean, 2)).square().mean()
    loss = FitReverse(model.reverse, model.flow)(batch)
    torch.testing.assert_close(loss.parts["alignment"], sum(levels))
    torch.testing.assert_close(loss.total, sum(levels) + image)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    trainer = Trainer(FitFlow(tiny_model().flow), FitConfig(steps=60, warmup_steps=5), ALONE)
    losses: list[float] = []
    trainer.train(lambda _: tiny_batch(), hooks=[lambda report: losses.append(report.loss.total.item())])
    assert losses[-1] < losses[0] - 0.5


def test_weight_decay_spares_biases_and_gains():
    optimizer = make_optimizer(tiny_model().flow, FitConfig(weight_decay=0.1))
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}


def test_schedule_warms_up_then_falls_to_zero():
    config = FitConfig(steps=100, warmup_steps=10)
    factors = [learning_rate_factor(step, config) for step in range(101)]
    assert factors[9] == 1
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0)


def test_average_follows_its_definition():
    layer = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(layer, decay=0.5)
    start = layer.weight.item()
    with torch.no_grad():
        layer.weight.add_(1)
    ema.update(step=1000)
    assert ema.state_dict()["weight"].item() == pytest.approx(start + 0.5)
    ema.copy_to_model()
    assert layer.weight.item() == pytest.approx(start + 0.5)


def test_state_rms_is_measured_on_the_flows_states():
    model, images = tiny_model(), tiny_images()
    run = make_run(images)
    rms = measure_state_rms(run, model.flow)
    assert rms.shape == (3,)
    with torch.no_grad():
        model.flow.blocks[2].project_out.weight.zero_()
        model.flow.blocks[2].project_out.bias.fill_(0.7)
    torch.testing.assert_close(measure_state_rms(run, model.flow), rms)  # levels below the last block stay


def make_run(images, **changes):
    from biflow.training.stages import Run

    return Run(tiny_run(**changes), images, ALONE, None, lambda *_: [])


@pytest.mark.parametrize("stop_at", [1, 3, 6, 7, 10, 11])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, stop_at):
    unbroken = train_in(tmp_path / "unbroken")
    try:
        train_in(tmp_path / "broken", stop_at=stop_at)
    except Interrupted:
        pass
    else:
        assert stop_at == 6  # the end of a stage: nothing is left to interrupt there
    resumed = train_in(tmp_path / "broken", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(unbroken), weights(resumed), strict=True))
    histories = [read_history(tmp_path / name / "metrics.jsonl") for name in ("unbroken", "broken")]
    for ours, theirs in zip(*histories, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_hooks_do_not_change_the_training():
    def draw_random_numbers(_):
        torch.rand(3)

    flows = []
    for hooks in ([], [draw_random_numbers]):
        trainer = Trainer(FitFlow(tiny_model().flow), tiny_run().fit_flow, ALONE)
        trainer.train(training_batches(make_run(tiny_images()), "flow", trainer.config), hooks=hooks)
        flows.append(trainer.model)
    assert all(torch.equal(a, b) for a, b in zip(*(flow.parameters() for flow in flows), strict=True))


def test_batches_are_the_same_however_many_processes_share_them():
    run = make_run(tiny_images())
    config = run.config.fit_flow
    whole = training_batches(run, "flow", config)(5)
    for rank in range(2):
        from dataclasses import replace

        part = training_batches(replace(run, world=World(rank, 2, torch.device("cpu"))), "flow", config)(5)
        for ours, theirs in zip(part, whole, strict=True):
            assert torch.equal(ours, theirs[2 * rank : 2 * rank + 2])


def test_history_holds_every_recorded_step_as_json(tmp_path):
    train_in(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        (stage, step) for stage in ("flow", "reverse") for step in range(1, 7)
    ]
    assert {"loss", "alignment", "image", "grad_norm", "seconds"} <= lines[-1].keys()


def test_a_flow_stage_alone_leaves_no_reverse_model(tmp_path):
    assert train_in(tmp_path / "run", stage="flow").reverse is None


def test_a_folder_with_files_is_not_started_in(tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(InputError, match="has files"):
        train_in(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(InputError, match="Start it without --resume"):
        train_in(tmp_path / "never", resume=True)
    assert not (tmp_path / "never").exists()


def test_resuming_with_other_settings_is_refused(tmp_path):
    train_in(tmp_path / "run")
    with pytest.raises(InputError, match="same recipe and overrides"):
        train_in(tmp_path / "run", resume=True, seed=1)


def test_a_damaged_state_is_named(tmp_path):
    train_in(tmp_path / "run")
    state = tmp_path / "run" / "states" / "flow.pt"
    state.write_bytes(state.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"flow\.pt.*Delete this file"):
        train_in(tmp_path / "run", resume=True)


def test_an_output_below_a_file_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        train_in(tmp_path / "file" / "run")
