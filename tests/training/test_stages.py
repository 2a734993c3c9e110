"""What a training step sees: its batch, made once more from the augmentations and their keys."""

import pytest
import torch

from biflow.config import FitConfig, ReadingConfig, ReverseConfig
from biflow.data.augment import add_noise, draw_guidance, draw_window, drop_labels, flip
from biflow.data.datasets import indices_at
from biflow.models.codec import PixelCodec
from biflow.models.patches import patchify
from biflow.training.objectives import FitFlow, FitJoint
from biflow.training.stages import training_batches
from tests.builders import tiny_config, tiny_images, tiny_model, tiny_objective
from tests.training.test_training import make_run, train_in

SIZES = {"layers": 1, "width": 16, "head_width": 8}


def objectives() -> dict[str, object]:
    """Objectives that train flow, guided reverse model, or both."""
    model = tiny_model(tiny_config(reverse=ReverseConfig(**SIZES, guidance="trained", max_guidance=1.5)))
    reverse = tiny_objective(model)
    joint = FitJoint(model.reverse, FitFlow(model.flow), reverse.loss)
    return {"flow": FitFlow(model.flow), "reverse": reverse, "joint": joint}


@pytest.mark.parametrize("stage", ["flow", "reverse", "joint"])
def test_a_batch_is_drawn_for_the_keys_of_seed_stage_step_and_image(stage):
    data, objective = tiny_images(40), objectives()[stage]
    run = make_run(data, reading=ReadingConfig(flip=True), seed=5)
    make_batch = training_batches(run, stage, objective, FitConfig(batch_size=40, label_drop=0.4))
    for step in (0, 3):
        batch, keys = make_batch(step), (5, stage, step)
        indices = indices_at(step, 5, stage, batch_size=40, num_images=40)
        rows = indices.tolist()
        clean = PixelCodec().encode(flip(data.images[indices], rows, *keys))
        labels = drop_labels(data.labels[indices], rows, 0.4, 3, *keys)
        assert torch.equal(batch.clean, clean)
        assert torch.equal(batch.noisy, add_noise(clean, rows, 0.2, *keys))
        assert torch.equal(batch.labels, labels)
        strongest = 0.0 if stage == "flow" else 1.5
        assert torch.equal(batch.guidance, draw_guidance(labels, rows, strongest, 3, *keys))
        assert bool(batch.guidance.any()) == (stage != "flow")
        assert batch.window == draw_window(*keys)
        assert batch.images is None
        assert not torch.equal(clean, PixelCodec().encode(data.images[indices]))  # some are mirrored


def test_a_fitted_reverse_model_knows_the_root_mean_squares_of_the_states_of_its_flow(tmp_path):
    model, data = train_in(tmp_path / "run"), tiny_images()
    noisy = add_noise(PixelCodec().encode(data.images), range(12), 0.2, 0, "state rms")
    states = model.flow(patchify(noisy, 2), data.labels).states[:-1]
    expected = torch.stack([state.square().mean().sqrt() for state in states])
    torch.testing.assert_close(model.reverse.state_rms, expected)
