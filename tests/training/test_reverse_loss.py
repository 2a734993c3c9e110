import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from biflow.checkpoint import load_model, save_model
from biflow.config import DistanceConfig, ReverseConfig, ReverseFitConfig
from biflow.data.augment import draw_window
from biflow.errors import InputError, Interrupted
from biflow.models.codec import PixelCodec
from biflow.models.patches import patchify
from biflow.pipeline import Pipeline
from biflow.tensors import write_safetensors
from biflow.training.batches import Batch
from biflow.training.hooks import read_history
from biflow.training.reverse_loss import ReverseLoss
from biflow.training.run import open_run
from biflow.training.stages import train_model
from tests.builders import tiny_config, tiny_images, tiny_model, tiny_objective, tiny_run, with_names

ELSEWHERE = f"{__name__}:Nothing"


class Nothing(nn.Module):
    """A network whose outputs are NaN or Inf."""

    def forward(self, images):
        return images / 0


def batch() -> Batch:
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(images, images + 0.2, torch.arange(6) % 4, torch.tensor([0.0, 0.5, 1.0, 0.0, 2.0, 0.0]))


def train_in(folder, **changes):
    with open_run(tiny_run(**changes), tiny_images(), folder, resume=False, console=Console(quiet=True)) as run:
        return train_model(run).model


def fit_with(*distances: DistanceConfig, **changes) -> ReverseFitConfig:
    return ReverseFitConfig(**{**tiny_run().fit_reverse.model_dump(), "distances": distances, **changes})


def test_distances_are_summed_with_weights_and_logged_without():
    model = tiny_model()
    terms = (DistanceConfig(kind="mse", weight=2.0), DistanceConfig(kind="l1", weight=0.5), DistanceConfig(kind="mse"))
    loss = tiny_objective(model, distances=terms)(batch())
    parts = loss.parts
    assert set(parts) == {"mse", "l1", "mse_2", "alignment"}
    assert parts["mse"] == parts["mse_2"]
    torch.testing.assert_close(loss.total, parts["alignment"] + 3 * parts["mse"] + 0.5 * parts["l1"])


def test_an_adaptive_weight_brings_every_term_near_its_weight():
    """Three levels and the image: with p = 1 each is D / (D + c), just under 1."""
    model = tiny_model()
    plain, adapted = tiny_objective(model)(batch()), tiny_objective(model, adaptive_power=1.0)(batch())
    assert 3.5 < adapted.total < 4
    assert plain.parts == adapted.parts


def test_a_window_is_a_crop_inside_the_image():
    windows = torch.tensor([draw_window("test", i) for i in range(500)])
    top, left, height, width = windows.unbind(1)
    assert windows.min() >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    area, aspect = height * width, width / height
    assert area.min() >= 0.08 - 1e-6
    assert 0.74 < aspect.min() < aspect.max() < 1.34
    assert 0.45 < area.mean() < 0.6
    assert draw_window("test", 1) == draw_window("test", 1)


@pytest.mark.parametrize("stage", ["both", "joint"])
def test_a_classifier_is_trained_first_for_the_distance_that_needs_it(stage, tmp_path):
    fit = fit_with(DistanceConfig(kind="mse"), DistanceConfig(kind="classifier", weight=0.4))
    model = train_in(tmp_path / "run", fit_reverse=fit, stage=stage)
    assert read_history(tmp_path / "run" / "metrics.jsonl")[0]["stage"] == "classifier"
    assert not any("classifier" in name for name in model.reverse.state_dict())


def test_a_classifier_needs_classes(tmp_path):
    fit = fit_with(DistanceConfig(kind="classifier"))
    with pytest.raises(InputError, match="Choose another"):
        train_in(tmp_path / "run", fit_reverse=fit, model=tiny_config(num_classes=0))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("distance", "message"),
    [
        ({"kind": "module", "network": "torch.nn:Linear"}, "without arguments"),
        ({"kind": "module", "network": f"{__name__}:broken"}, "without arguments; FileNotFoundError: weights.pth"),
        ({"kind": "module", "network": f"{__name__}:Cut"}, "its network blocks it"),
        ({"kind": "module", "network": ELSEWHERE}, "one number for each of two images"),
        (
            {"kind": "module", "network": f"{__name__}:wants_three_channels"},
            "to accept 1x4x4 images; it fails: .*\\. Set inp",
        ),
    ],
)
def test_networks_that_reject_the_images_are_refused_before_training(distance, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train_in(tmp_path / "run", fit_reverse=fit_with(DistanceConfig(**distance)))
    assert not (tmp_path / "run").exists()


def broken() -> nn.Module:
    raise FileNotFoundError("weights.pth")


class Cut(nn.Module):
    """A network that blocks the gradient."""

    @torch.no_grad()
    def forward(self, images):
        return images.mean(dim=1)


def wants_three_channels() -> nn.Module:
    return nn.Conv2d(3, 4, 3)


def test_images_and_latents_are_compared_in_their_own_space():
    model = tiny_model()
    loss = ReverseLoss(
        ReverseFitConfig(distances=(DistanceConfig(kind="l1"), DistanceConfig(kind="l1", space="images"))),
        model.config,
        codec=PixelCodec(),
        image_shape=(1, 4, 4),
    )
    seen = []
    loss.codec.to_images = lambda latents: seen.append(latents) or 3 * latents
    parts = loss(model.reverse, model.flow(torch.randn(6, 4, 4), torch.arange(6) % 4), batch()).parts
    assert len(seen) == 2
    torch.testing.assert_close(parts["l1_2"], 3 * parts["l1"])


def test_a_model_of_latents_trains_and_is_compared_after_the_decoder(autoencoder, tmp_path):
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = replace(tiny_images(), images=images)
    fit = fit_with(DistanceConfig(kind="mse"), DistanceConfig(kind="l1", space="images"))
    config = tiny_run(model=tiny_config(codec=f"vae:{autoencoder}", channels=4), fit_reverse=fit)
    with open_run(config, data, tmp_path / "run", resume=False, console=Console(quiet=True)) as run:
        model = train_model(run).model
    assert {"mse", "l1", "alignment"} <= read_history(tmp_path / "run" / "metrics.jsonl")[-1].keys()
    save_model(model, tmp_path / "model")
    assert Pipeline.from_pretrained(tmp_path / "model").sample_pixels([0]).shape == (1, 3, 8, 8)


def test_a_reverse_model_is_fitted_to_a_trained_flow(tmp_path):
    flow_only = train_in(tmp_path / "flow", stage="flow", model=tiny_config(reverse=None))
    save_model(flow_only, tmp_path / "flow" / "model")
    source = str(tmp_path / "flow" / "model")
    model = train_in(tmp_path / "reverse", stage="reverse", flow_from=source)
    for name, tensor in flow_only.flow.state_dict().items():
        assert torch.equal(model.flow.state_dict()[name], tensor)
    assert not torch.equal(model.reverse.state_rms, torch.ones(3))
    save_model(model, tmp_path / "both")
    assert load_model(tmp_path / "both").reverse.matches_flow(flow_only.flow)


def test_a_flow_of_another_kind_is_refused_before_training(tmp_path):
    save_model(tiny_model(tiny_config(noise_std=0.3)), tmp_path / "model")
    with pytest.raises(
        InputError, match=r"with model.noise_std=0.3; got model.noise_std=0.2. Set model.noise_std=0.3."
    ):
        train_in(tmp_path / "run", stage="reverse", flow_from=str(tmp_path / "model"))
    assert not (tmp_path / "run").exists()


def test_a_reverse_model_of_another_flow_is_refused_at_save_and_at_load(tmp_path):
    first, second = train_in(tmp_path / "a"), train_in(tmp_path / "b", seed=1)
    mixed = first.with_networks(first.flow, second.reverse)
    with pytest.raises(InputError, match="Expected the flow that the reverse model was fitted to"):
        save_model(mixed, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()
    save_model(first, tmp_path / "right")
    load_model(tmp_path / "right")
    config = tmp_path / "right" / "config.json"  # a mixture by hand, whose author removed the checksums
    config.write_text(json.dumps(json.loads(config.read_text()) | {"digests": None}))
    load_model(tmp_path / "right")
    write_safetensors(mixed.networks.state_dict(), tmp_path / "right" / "model.safetensors")
    with pytest.raises(InputError, match="Expected the flow that the reverse model was fitted to"):
        load_model(tmp_path / "right")


def test_the_loss_of_trained_guidance_uses_the_recovered_state():
    config = tiny_config(reverse=ReverseConfig(layers=1, width=16, head_width=8, guidance="trained"))
    model, given = tiny_model(config), batch()
    z = model.flow(patchify(given.noisy, 2), given.labels).z
    recovered = model.reverse.forward_recovered(z, given.labels, given.guidance).image
    found = tiny_objective(model)(given).parts["mse"]
    torch.testing.assert_close(found, (recovered - patchify(given.clean, 2)).square().mean())
    plain = model.reverse(z, given.labels).image
    assert not torch.allclose(found, (plain - patchify(given.clean, 2)).square().mean())


def test_networks_with_an_input_size_see_the_window_of_the_batch():
    network = DistanceConfig(kind="module", network="torch.nn:Identity", input_size=2)
    objective = tiny_objective(tiny_model(), distances=[network])
    first, second = (objective(batch()._replace(window=each)).parts for each in ((0, 0, 0.5, 0.5), (0.5, 0, 0.5, 0.5)))
    assert first["module"] != second["module"]
    assert first["alignment"] == second["alignment"]


def test_training_says_that_it_imports_a_module_before_it_does(tmp_path, capsys):
    fit = fit_with(DistanceConfig(kind="module", network="nowhere.to.be.found:Network"))
    run = open_run(tiny_run(fit_reverse=fit), tiny_images(), tmp_path / "run", resume=False, console=Console())
    with pytest.raises(InputError, match="importable"), run:
        pass
    assert "Imports nowhere.to.be.found:Network, which run as code" in capsys.readouterr().out


def test_distances_are_computed_in_float32_under_autocast():
    """Small differences would be lost in bfloat16."""
    objective = tiny_objective(tiny_model(), distances=[DistanceConfig(kind="l1")], precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(batch())
    full = objective(batch())
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, full.total, rtol=0.05, atol=0)


def test_a_changed_flow_is_detected_on_resume(tmp_path):
    def flow(seed: int) -> None:
        save_model(train_in(tmp_path / f"flow{seed}", stage="flow", seed=seed), tmp_path / "model")

    def fit(*, resume: bool, stop_at: int) -> None:
        config = tiny_run(stage="reverse", flow_from=str(tmp_path / "model"))
        steps = iter(range(1, 100))
        with open_run(config, tiny_images(), tmp_path / "run", resume=resume, console=Console(quiet=True)) as run:
            train_model(replace(run, should_stop=lambda: next(steps) == stop_at))

    flow(0)
    with pytest.raises(Interrupted):
        fit(resume=False, stop_at=3)
    flow(1)
    with pytest.raises(InputError, match="the current flow has other weights"):
        fit(resume=True, stop_at=99)
    flow_again = tmp_path / "flow0"
    assert flow_again.exists()


@pytest.mark.parametrize("stage", ["classifier", "reverse"])
def test_a_run_resumes_exactly_with_distances_of_every_stage(stage, tmp_path):
    fit = fit_with(DistanceConfig(kind="mse"), DistanceConfig(kind="classifier"), adaptive_power=1.0)

    def run_in(folder, *, resume: bool = False, stop_at: int = 99):
        steps = iter(range(1, 100))
        config = tiny_run(fit_reverse=fit)
        with open_run(config, tiny_images(), folder, resume=resume, console=Console(quiet=True)) as run:
            return train_model(replace(run, should_stop=lambda: next(steps) == stop_at)).model

    unbroken, stop_at = run_in(tmp_path / "unbroken"), {"classifier": 3, "reverse": 15}[stage]
    with pytest.raises(Interrupted, match=stage):
        run_in(tmp_path / "broken", stop_at=stop_at)
    resumed = run_in(tmp_path / "broken", resume=True)
    for ours, theirs in zip(resumed.reverse.state_dict().values(), unbroken.reverse.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_classes_in_another_order_are_refused(tmp_path):
    model = tiny_model()
    save_model(with_names(model, ("c", "b", "a")), tmp_path / "named")
    with pytest.raises(InputError, match="classes of the flow"):
        train_in(tmp_path / "run", stage="reverse", flow_from=str(tmp_path / "named"))
    save_model(with_names(model, ("0", "1", "2")), tmp_path / "unnamed")
    train_in(tmp_path / "run", stage="reverse", flow_from=str(tmp_path / "unnamed"))
