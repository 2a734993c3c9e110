"""Training on a GPU: prefetched batches, steps without synchronisation, compiled layers."""

from copy import deepcopy

import pytest
import torch

from biflow.config import FitConfig
from biflow.distributed import World
from biflow.training.batches import on_device
from biflow.training.loop import Trainer
from biflow.training.objectives import FitFlow
from biflow.training.stages import training_batches
from tests.builders import tiny_images, tiny_model, tiny_run
from tests.training.test_engine import broken_batch
from tests.training.test_training import make_run, tiny_batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
GPU = World(0, 1, torch.device("cuda", 0))


def trainer_of(**changes) -> Trainer:
    config = FitConfig(**{"warmup_steps": 0, "compile": False, **changes})
    return Trainer(FitFlow(tiny_model().flow), config, GPU)


def on_gpu(batch):
    return batch.map(lambda part: part.to("cuda"))


def test_prefetched_batches_equal_those_made_in_turn():
    objective, fit = FitFlow(tiny_model().flow), tiny_run().fit_flow
    make_batch = training_batches(make_run(tiny_images()), "flow", objective, fit)
    for step, batch in zip(range(2, 6), on_device(make_batch, range(2, 6), GPU.device), strict=True):
        wanted = make_batch(step)
        for found, part in zip(batch, wanted, strict=True):
            if isinstance(part, torch.Tensor):
                assert found.is_cuda
                assert torch.equal(found.cpu(), part)


def test_an_error_in_the_prefetch_thread_is_raised():
    def make_batch(step):
        if step == 3:
            raise ValueError("broken")
        return tiny_batch()

    found = on_device(make_batch, range(5), GPU.device)
    assert len([next(found) for _ in range(3)]) == 3
    with pytest.raises(ValueError, match="broken"):
        next(found)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_with_nan_leaves_the_weights_unchanged_and_is_counted_a_step_later(optimizer, precision):
    trainer = trainer_of(optimizer=optimizer, precision=precision)
    trainer._take_step(on_gpu(tiny_batch()))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    kept = deepcopy(trainer.optimizers.state_dict(GPU))
    trainer._take_step(on_gpu(broken_batch()))
    assert trainer.skipped == 0
    for name, state in trainer.optimizers.state_dict(GPU).items():
        assert all(torch.equal(value, kept[name][key]) for key, value in state.items())
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    trainer._take_step(on_gpu(tiny_batch()))
    assert (trainer.skipped, trainer.skipped_in_a_row) == (1, 1)
    trainer._read_flags()
    assert (trainer.skipped, trainer.skipped_in_a_row) == (1, 0)


def test_compilation_does_not_change_training():
    losses = []
    for compiled in (False, None):
        trainer = trainer_of(compile=compiled)
        assert trainer.compiled == (compiled is None)
        losses.append([trainer._take_step(on_gpu(tiny_batch()))[0].total.item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
