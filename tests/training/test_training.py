import contextlib
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from biflow.config import FitConfig, FlowConfig, ReverseConfig
from biflow.data.augment import add_noise
from biflow.distributed import World
from biflow.errors import InputError, Interrupted
from biflow.features.judge import Judge
from biflow.losses.likelihood import normal_log_prob
from biflow.models.codec import PixelCodec
from biflow.models.model import new_model
from biflow.models.patches import patchify
from biflow.training.batches import Batch
from biflow.training.checkpoints import newest
from biflow.training.hooks import read_history
from biflow.training.loop import Trainer
from biflow.training.objectives import FitClassifier, FitFlow
from biflow.training.optim import EMA, Optimizers, learning_rate_factor
from biflow.training.run import open_run
from biflow.training.stages import Run, fit, measure_mean_squares, train_model, training_batches
from tests.builders import tiny_config, tiny_images, tiny_model, tiny_objective, tiny_run

ALONE = World(0, 1, torch.device("cpu"))


FITS = ("fit_flow", "fit_reverse")


def tiny_batch() -> Batch:
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(images, images + 0.2, torch.arange(6) % 4, torch.tensor([0.0, 0.5, 1.0, 0.0, 2.0, 0.0]))


def train_in(folder, *, resume=False, stop_at: int | None = None, **changes):
    """Train a tiny run in a folder; stop_at interrupts it at this step, counted over all stages."""
    with open_run(tiny_run(**changes), tiny_images(), folder, resume=resume, console=Console(quiet=True)) as run:
        taken = iter(range(1, 1000))
        should_stop = (lambda: next(taken) == stop_at) if stop_at else (lambda: False)
        return train_model(replace(run, should_stop=should_stop)).model


def weights(model) -> list[torch.Tensor]:
    return [*model.flow.state_dict().values(), *(model.reverse.state_dict().values() if model.reverse else ())]


def test_flow_objective_is_the_negative_log_likelihood_per_dimension():
    flow, batch = tiny_model().flow, tiny_batch()
    out = flow(patchify(batch.noisy, 2), batch.labels)
    expected = -(normal_log_prob(out.z, torch.ones(4, 4)) + out.log_det).mean() / 16
    torch.testing.assert_close(FitFlow(flow)(batch).total, expected)


def test_the_reverse_objective_trains_the_reverse_model_and_not_the_flow():
    model = tiny_model()
    tiny_objective(model)(tiny_batch()).total.backward()
    assert all(parameter.grad is None for parameter in model.flow.parameters())
    without = [name for name, parameter in model.reverse.named_parameters() if parameter.grad is None]
    assert without == []


def test_the_reverse_objective_compares_each_level_with_the_same_level_of_the_flow():
    model, batch = tiny_model(), tiny_batch()
    trajectory = model.flow(patchify(batch.noisy, 2), batch.labels)
    out = model.reverse(trajectory.z, batch.labels)
    predicted = model.reverse.read_states(out)
    levels = [(guess - state).square().mean() for guess, state in zip(predicted, trajectory.states[:-1], strict=True)]
    image = (out.image - patchify(batch.clean, 2)).square().mean()
    loss = tiny_objective(model)(batch)
    torch.testing.assert_close(loss.parts["alignment"], sum(levels))
    torch.testing.assert_close(loss.total, sum(levels) + image)


SIZES = {"layers": 1, "width": 16, "head_width": 8}


@pytest.mark.parametrize("strategy", ["alignment", "distillation", "naive"])
@pytest.mark.parametrize("denoising", ["learned", "score", "none"])
def test_every_strategy_trains_all_its_parameters(strategy, denoising):
    config = ReverseConfig(**SIZES, strategy=strategy, denoising=denoising)
    model, batch = tiny_model(tiny_config(reverse=config)), tiny_batch()
    loss = tiny_objective(model)(batch)
    loss.total.backward()
    assert [name for name, parameter in model.reverse.named_parameters() if parameter.grad is None] == []
    assert set(loss.parts) == ({"mse"} if strategy == "naive" else {"mse", "alignment"})
    out = model.reverse(model.flow(patchify(batch.noisy, 2), batch.labels).z, batch.labels)
    target = batch.clean if denoising == "learned" else batch.noisy
    torch.testing.assert_close(loss.parts["mse"], (out.image - patchify(target, 2)).square().mean())


def test_joint_training_trains_the_flow_exactly_as_training_it_alone(tmp_path):
    """The reverse model's loss does not affect the flow, not even through gradient clipping."""
    config = {"model": tiny_config(reverse=ReverseConfig(**SIZES, guidance="trained")), "stage": "joint"}
    joint = train_in(tmp_path / "joint", **config)
    alone, run = new_model(config["model"], tuple("abc")), make_run(tiny_images(), **config)
    run = replace(run, states=tmp_path / "alone")
    run.states.mkdir()
    fit(run, "joint", FitFlow(alone.flow), run.config.fit_flow)
    for ours, theirs in zip(joint.flow.state_dict().values(), alone.flow.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    fresh = new_model(config["model"], tuple("abc")).reverse
    moved = [not torch.equal(a, b) for a, b in zip(joint.reverse.parameters(), fresh.parameters(), strict=True)]
    assert all(moved)
    assert not torch.equal(joint.reverse.state_rms, torch.ones(3))


def test_joint_training_resumes_exactly(tmp_path):
    unbroken = train_in(tmp_path / "unbroken", stage="joint")
    with pytest.raises(Interrupted):
        train_in(tmp_path / "broken", stage="joint", stop_at=3)
    resumed = train_in(tmp_path / "broken", stage="joint", resume=True)
    for ours, theirs in zip(weights(resumed), weights(unbroken), strict=True):
        assert torch.equal(ours, theirs)


def test_states_are_normalised_only_if_asked_for(tmp_path):
    plain = train_in(tmp_path / "plain", model=tiny_config(reverse=ReverseConfig(**SIZES, normalise=False)))
    assert torch.equal(plain.reverse.state_rms, torch.ones(3))
    assert not torch.equal(train_in(tmp_path / "normalised").reverse.state_rms, torch.ones(3))


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    trainer = Trainer(FitFlow(tiny_model().flow), FitConfig(steps=60, warmup_steps=5), ALONE)
    losses: list[float] = []
    trainer.train(lambda _: tiny_batch(), hooks=[lambda report: losses.append(report.loss.total.item())])
    assert losses[-1] < losses[0] - 0.5


def test_weight_decay_spares_biases_and_gains():
    (adamw,) = Optimizers(tiny_model().flow, FitConfig(weight_decay=0.1)).all
    for group in adamw.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}


def test_schedule_warms_up_then_falls_to_zero():
    config = FitConfig(steps=100, warmup_steps=10)
    factors = [learning_rate_factor(step, config) for step in range(101)]
    assert factors[9] == 1
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0)


def test_schedule_can_stay_or_end_above_zero():
    constant = FitConfig(steps=100, warmup_steps=10, schedule="constant")
    assert [learning_rate_factor(step, constant) for step in (4, 9, 50, 99)] == [0.5, 1, 1, 1]
    ending = FitConfig(steps=100, warmup_steps=0, learning_rate=1e-3, last_learning_rate=1e-4)
    assert learning_rate_factor(100, ending) == pytest.approx(0.1)


def test_gradients_are_not_clipped_without_a_limit():
    batch = tiny_batch()
    norms, moved = [], []
    for limit in (None, 1e-3):
        trainer = Trainer(FitFlow(tiny_model().flow), FitConfig(clip_norm=limit, warmup_steps=0), ALONE)
        norms.append(trainer._take_step(batch)[1])
        moved.append(max(p.grad.abs().max() for p in trainer.model.parameters()))
    assert norms[0] == norms[1]
    assert moved[1] < moved[0] / 10


def test_bfloat16_training_stays_near_float32_and_keeps_its_weights_in_it():
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(FitFlow(tiny_model().flow), FitConfig(precision=precision, warmup_steps=0), ALONE)
        losses.append([trainer._take_step(tiny_batch())[0].total.item() for _ in range(3)])
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_dequantised_images_fill_their_bins_evenly():
    images = PixelCodec().encode(tiny_images(100).images)
    width = PixelCodec.bin_width
    offsets = (add_noise(images, range(100), 0.0, "test", bin_width=width) - images) / width
    assert offsets.min() >= -0.5001
    assert offsets.max() <= 0.5001
    assert offsets.mean().abs() < 0.03
    assert offsets.std() == pytest.approx(12**-0.5, rel=0.05)


def test_a_flow_for_likelihood_sees_dequantised_images():
    run = make_run(tiny_images(), model=tiny_config(dequantise=True, noise_std=0.0, reverse=None), stage="flow")
    objective = FitFlow(tiny_model(run.config.model).flow)
    batch = training_batches(run, "flow", objective, run.config.fit_flow)(0)
    offsets = (batch.noisy - batch.clean).abs()
    assert 0 < offsets.max() <= PixelCodec.bin_width / 2 * 1.0001


def test_the_prior_of_a_volume_preserving_flow_has_the_variance_of_its_noise(tmp_path):
    flow = FlowConfig(blocks=3, layers=2, width=16, head_width=8, volume_preserving=True)
    model = train_in(tmp_path / "run", model=tiny_config(flow=flow))
    run = make_run(tiny_images(), model=tiny_config(flow=flow))
    expected = measure_mean_squares(run, model.flow)[-1]
    torch.testing.assert_close(model.flow.prior_variance, expected)
    assert model.flow.prior_variance.std() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:dynamo_pgo:UserWarning")
def test_training_continues_without_a_compiler(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    with pytest.warns(UserWarning, match=r"without torch\.compile, which fails on this machine"):
        trainer = Trainer(FitFlow(tiny_model().flow), FitConfig(compile=True), ALONE)
    assert trainer._take_step(tiny_batch())[0].total.isfinite()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # raised inside Dynamo
def test_compiled_training_gives_the_same_losses():
    losses = []
    for compiled in (False, True):
        trainer = Trainer(FitFlow(tiny_model().flow), FitConfig(compile=compiled, warmup_steps=0), ALONE)
        losses.append([trainer._take_step(tiny_batch())[0].total.item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_average_follows_its_definition():
    layer = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(layer, decay=0.5)
    start = layer.weight.item()
    with torch.no_grad():
        layer.weight.add_(1)
    ema.update(1000)
    assert ema.average["weight"].item() == pytest.approx(start + 0.5)
    ema.copy_to_model()
    assert layer.weight.item() == pytest.approx(start + 0.5)


def test_state_rms_is_that_of_the_flows_states():
    model, run = tiny_model(), make_run(tiny_images())
    noisy = add_noise(PixelCodec().encode(run.data.images), range(12), 0.2, 0, "state rms")
    states = model.flow(patchify(noisy, 2), run.data.labels).states
    expected = [state.square().mean().sqrt() for state in states[:-1]]
    found = measure_mean_squares(run, model.flow)[:-1]
    torch.testing.assert_close([each.mean().sqrt() for each in found], expected)


def make_run(images, **changes) -> Run:
    return Run(tiny_run(**changes), images, PixelCodec(), ALONE, None, lambda *_: [])


def test_a_muon_run_resumes_exactly(tmp_path):
    fits = {name: getattr(tiny_run(), name).model_copy(update={"optimizer": "muon"}) for name in FITS}
    unbroken = train_in(tmp_path / "unbroken", **fits)
    with pytest.raises(Interrupted):
        train_in(tmp_path / "broken", stop_at=9, **fits)
    resumed = train_in(tmp_path / "broken", resume=True, **fits)
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(unbroken), strict=True))


@pytest.mark.parametrize("stop_at", [1, 3, 6, 7, 10, 11])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, stop_at):
    unbroken = train_in(tmp_path / "unbroken")
    try:
        train_in(tmp_path / "broken", stop_at=stop_at)
    except Interrupted:
        pass
    else:
        assert stop_at == 6  # the end of a stage, where there is nothing to interrupt
    resumed = train_in(tmp_path / "broken", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(unbroken), weights(resumed), strict=True))
    histories = [read_history(tmp_path / name / "metrics.jsonl") for name in ("unbroken", "broken")]
    for ours, theirs in zip(*histories, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_hooks_and_global_random_numbers_do_not_change_the_training():
    def draw_random_numbers(_):
        torch.rand(3)

    trained = []
    for hooks in ([], [draw_random_numbers]):
        model = tiny_model()
        objective = tiny_objective(model)
        trainer = Trainer(objective, tiny_run().fit_reverse, ALONE)
        trainer.train(batches_of(objective), hooks=hooks)
        trained.append(trainer.model)
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in trained), strict=True))


def batches_of(objective, world=ALONE):
    run = replace(make_run(tiny_images()), world=world)
    return training_batches(run, "some stage", objective, run.config.fit_flow)


def test_batches_are_the_same_however_many_processes_share_them():
    model = tiny_model(tiny_config(reverse=ReverseConfig(width=16, layers=1, head_width=8, guidance="trained")))
    objective = tiny_objective(model)
    whole = batches_of(objective)(5)
    for rank in range(2):
        part = batches_of(objective, World(rank, 2, torch.device("cpu")))(5)
        for ours, theirs in zip(part[:4], whole[:4], strict=True):
            assert torch.equal(ours, theirs[2 * rank : 2 * rank + 2])
        assert part.window == whole.window


def test_a_batch_not_divisible_by_the_processes_is_refused():
    with pytest.raises(InputError, match="Set batch_size to a multiple of 3"):
        World(0, 3, torch.device("cpu")).share(torch.arange(4))


def test_batches_have_the_noise_and_guidance_that_the_objective_sets():
    model = tiny_model(tiny_config(reverse=ReverseConfig(width=16, layers=1, head_width=8, guidance="trained")))
    for objective in (tiny_objective(model), FitFlow(model.flow), FitClassifier(nn.Identity())):
        batches = [batches_of(objective)(step) for step in range(4)]
        noise = torch.cat([batch.noisy - batch.clean for batch in batches])
        guidance = torch.cat([batch.guidance for batch in batches])
        assert bool(noise.any()) == (objective.noise_std > 0)
        assert bool(guidance.any()) == (objective.max_guidance > 0)


def test_a_judge_resumes_exactly(tmp_path):
    def judge_after(*sessions: int) -> list[torch.Tensor]:
        for stop_after in sessions:
            torch.manual_seed(0)
            judge, steps = Judge(1, 3), iter(range(1, 100))
            folder = tmp_path / str(len(sessions))
            folder.mkdir(exist_ok=True)
            run = replace(
                make_run(tiny_images()), states=folder, should_stop=lambda n=stop_after, s=steps: next(s) == n
            )
            with contextlib.suppress(Interrupted):
                fit(run, "judge", FitClassifier(judge), run.config.fit_flow.model_copy(update={"label_drop": 0.0}))
        return list(judge.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(judge_after(99), judge_after(2, 99), strict=True))


def test_history_holds_every_recorded_step_as_json(tmp_path):
    train_in(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        (stage, step) for stage in ("flow", "reverse") for step in range(1, 7)
    ]
    assert {"loss", "alignment", "mse", "grad_norm", "seconds"} <= lines[-1].keys()


def test_a_flow_stage_alone_leaves_no_reverse_model(tmp_path):
    assert train_in(tmp_path / "run", stage="flow").reverse is None


def test_a_folder_with_files_is_not_started_in(tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(InputError, match="has files"):
        train_in(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_resuming_where_there_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="Start it without --resume"):
        train_in(tmp_path / "never", resume=True)
    assert not (tmp_path / "never").exists()


def test_resuming_with_other_settings_is_refused(tmp_path):
    train_in(tmp_path / "run")
    with pytest.raises(InputError, match=r"Expected seed=0, .*; got 1\. .*same recipe and overrides"):
        train_in(tmp_path / "run", resume=True, seed=1)


@pytest.mark.parametrize(("key", "value"), [("image_size", 8), ("channels", 3), ("num_classes", 2)])
def test_a_model_that_does_not_fit_the_data_is_refused(tmp_path, key, value):
    with pytest.raises(InputError, match=f"Expected model.{key} to be .* got {value}"):
        train_in(tmp_path / "run", model=tiny_config(**{key: value}))
    assert not (tmp_path / "run").exists()


def test_an_unconditional_model_trains_on_labelled_images(tmp_path):
    model = train_in(tmp_path / "run", model=tiny_config(num_classes=0))
    assert model.class_names == ()
    assert model.flow.blocks[0].classes.weight.shape[0] == 1


def test_a_damaged_checkpoint_is_named_and_an_older_one_loaded(tmp_path):
    unbroken = train_in(tmp_path / "run")
    newest = tmp_path / "run" / "states" / "flow" / "step_00000006" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:2000])
    with pytest.warns(UserWarning, match=r"Skipped a damaged .*step_00000006.state\.pt has changed \(2000 bytes of"):
        resumed = train_in(tmp_path / "run", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(unbroken), weights(resumed), strict=True))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train_in(tmp_path / "run")
    wider = tiny_config(flow=FlowConfig(blocks=3, layers=2, width=32, head_width=8))
    other = train_in(tmp_path / "other", model=wider)
    trainer = Trainer(FitFlow(other.flow), tiny_run().fit_flow, ALONE)
    found, _ = newest(tmp_path / "run" / "states" / "flow")
    with pytest.raises(InputError, match=r"a training state of this model in .*step_00000006; cannot load it"):
        trainer.load(found)


def test_an_output_below_a_file_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        train_in(tmp_path / "file" / "run")
