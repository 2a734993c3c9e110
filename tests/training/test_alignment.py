from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from biflow.config import AlignConfig, FlowConfig, FlowFitConfig
from biflow.data.augment import add_noise
from biflow.errors import InputError
from biflow.features.classifier import Classifier
from biflow.features.encoders import make_encoder
from biflow.losses.representation import FEATURE_DISTANCES, cosine_distance, resample
from biflow.models.alignment_paths import ALIGNMENT_PATHS
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify
from biflow.training.alignment import Alignment
from biflow.training.batches import Batch
from biflow.training.hooks import read_history
from biflow.training.objectives import FitFlow
from biflow.training.run import open_run
from biflow.training.stages import train_model
from tests.builders import tiny_config, tiny_images, tiny_model, tiny_run


def align_config(**changes) -> AlignConfig:
    return AlignConfig(**{"layers": [[2, 1], [3, 2]], "hidden_width": 8, **changes})


def aligned(flow: ForwardFlow, **changes) -> FitFlow:
    torch.manual_seed(0)
    config = align_config(**changes)
    encoder = make_encoder(config, classifier=Classifier(1, 3))
    return FitFlow(flow, Alignment(config, flow.config, encoder, image_shape=(1, 4, 4)))


def batch() -> Batch:
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(images, add_noise(images, range(6), 0.2, "test"), torch.arange(6) % 4, torch.zeros(6))


def aligned_fit(align: AlignConfig) -> FlowFitConfig:
    return FlowFitConfig(**{**tiny_run().fit_flow.model_dump(), "align": align})


def train_in(folder, *, align: AlignConfig, **changes):
    config = tiny_run(fit_flow=aligned_fit(align), **changes)
    with open_run(config, tiny_images(), folder, resume=False, console=Console(quiet=True)) as run:
        return train_model(run).model


def test_the_cosine_distance_is_one_minus_the_mean_cosine_similarity_of_patches():
    a, b = (torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    cosines = (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    torch.testing.assert_close(cosine_distance(a, b), 1 - cosines.mean(1))
    torch.testing.assert_close(cosine_distance(a, 3 * a), torch.zeros(2))


@pytest.mark.parametrize("distance", FEATURE_DISTANCES.values())
def test_no_gradient_flows_into_the_encoders_features(distance):
    ours, theirs = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    distance(ours, theirs).sum().backward()
    assert ours.grad.any()
    assert theirs.grad is None


def test_feature_grids_are_resampled_to_the_flows():
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    assert resample(ramp, 4).flatten().tolist() == list(range(16))
    middle = resample(ramp, 2).flatten()
    assert (middle.diff() > 0).all()
    assert middle.mean().item() == pytest.approx(7.5)
    assert resample(ramp, 8).shape == (1, 64, 1)


@pytest.mark.parametrize("strategy", ALIGNMENT_PATHS)
def test_the_distance_is_added_with_its_weight_and_trains_the_projector(strategy):
    flow = tiny_model().flow
    objective, plain = aligned(flow, strategy=strategy, weight=0.5), FitFlow(flow)
    loss, alone = objective(batch()), plain(batch())
    torch.testing.assert_close(loss.parts["nats_per_dim"], alone.total.detach())
    torch.testing.assert_close(loss.total, alone.total + 0.5 * loss.parts["representation"])
    loss.total.backward()
    assert all(parameter.grad.any() for parameter in objective.model["projector"].parameters())
    assert all(parameter.grad is None for parameter in objective.alignment.encoder.parameters())


@pytest.mark.parametrize("distance", FEATURE_DISTANCES)
def test_the_distance_is_the_mean_over_layers_and_images_of_that_of_projected_features(distance):
    objective = aligned(tiny_model().flow, strategy="detach", distance=distance)
    alignment, flow = objective.alignment, objective.flow
    features = flow(patchify(batch().noisy, 2), batch().labels, [(2, 1), (3, 2)]).features
    target = resample(alignment.encoder(batch().clean), 2)
    compare = FEATURE_DISTANCES[distance]
    expected = sum(compare(alignment.projector(features[layer]), target).mean() for layer in [(2, 1), (3, 2)]) / 2
    torch.testing.assert_close(objective(batch()).parts["representation"], expected.detach())


def test_a_sweep_per_patch_has_the_gradient_of_the_exact_inverse():
    def gradients(**changes) -> list[torch.Tensor]:
        objective = aligned(tiny_model().flow, layers=[[1, 1]], **changes).double()
        doubled = batch().map(lambda part: part.double() if part.is_floating_point() else part)
        objective(doubled).total.backward()
        return [parameter.grad for parameter in objective.model["flow"].parameters() if parameter.grad is not None]

    exact, few, many = (
        gradients(strategy="reverse_sequential"),
        gradients(strategy="reverse", sweeps=1),
        gradients(strategy="reverse", sweeps=4),
    )
    for ours, theirs in zip(many, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert any(not torch.allclose(ours, theirs, rtol=1e-3) for ours, theirs in zip(few, exact, strict=True))


def test_every_strategy_has_the_same_loss():
    losses = [aligned(tiny_model().flow, strategy=strategy)(batch()).total for strategy in ALIGNMENT_PATHS]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["flow", "both", "joint"])
def test_an_aligned_flow_trains_in_every_stage_and_leaves_no_projector_behind(stage, tmp_path):
    reverse = {"model": tiny_config(reverse=None)} if stage == "flow" else {}
    model = train_in(tmp_path / "run", align=align_config(), stage=stage, **reverse)
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert history[0]["stage"] == "classifier"
    assert "representation" in next(line for line in history if line["stage"] in {"flow", "joint"})
    assert not any("projector" in name for name in model.flow.state_dict())


@pytest.mark.parametrize("stage", ["flow", "joint"])
def test_an_encoder_of_images_sees_images_where_the_flow_models_latents(stage, autoencoder, tmp_path):
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reverse = {"reverse": None} if stage == "flow" else {}
    config = tiny_run(
        stage=stage,
        model=tiny_config(codec=f"vae:{autoencoder}", channels=4, **reverse),
        fit_flow=aligned_fit(align_config(encoder="module", network=f"{__name__}:of_three_channels")),
    )
    data = replace(tiny_images(), images=images)
    with open_run(config, data, tmp_path / "run", resume=False, console=Console(quiet=True)) as run:
        train_model(run)
    assert "representation" in read_history(tmp_path / "run" / "metrics.jsonl")[-1]


def of_three_channels() -> nn.Module:
    return nn.Conv2d(3, 4, 2, stride=2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ([4, 1], "blocks from 1, at the data, to 3, and layers counted from 1; got block 4, layer 1"),
        ([2, 3], "and layers of block 2 from 1 to 2, counted from 1; got block 2, layer 3"),
    ],
)
def test_layers_that_do_not_exist_are_refused(layer, message):
    fit = FlowFitConfig(align=align_config(layers=[layer]))
    with pytest.raises(ValueError, match=message):
        tiny_run(fit_flow=fit)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": 8}, "no network or input_size for the encoder 'classifier'.*got 8. Set encoder to dinov2"),
        ({"strategy": "detach", "sweeps": 2}, "sweeps 1 with strategy 'detach'; got 2"),
    ],
)
def test_unused_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        align_config(**changes)


def test_layers_count_from_one():
    with pytest.raises(ValueError, match="greater than 0"):
        align_config(layers=[[0, 1]])


def numbers() -> nn.Module:
    return nn.Flatten(0)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (f"{__name__}:numbers", r"features \(B, F, h, w\), or tokens"),
        (f"{__name__}:wants_three_channels", r"to accept 1x4x4 images; it fails: .*input_size"),
        (f"{__name__}:oblong", "a square feature grid, like the flow's patches; got 2x4"),
        (f"{__name__}:Broken", "finite floating-point features; got NaN or Inf"),
    ],
)
def test_encoders_that_reject_the_images_are_refused_before_training(network, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train_in(tmp_path / "run", align=align_config(encoder="module", network=network))
    assert not (tmp_path / "run").exists()


def oblong() -> nn.Module:
    return nn.AvgPool2d((2, 1))


class Broken(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images / 0


def wants_three_channels() -> nn.Module:
    return nn.Conv2d(3, 4, 3)


def test_aligning_an_unconditional_flow_with_the_classifier_is_refused(tmp_path):
    config = tiny_config(num_classes=0, reverse=None)
    with pytest.raises(InputError, match="Expected classes for the encoder or distance 'classifier'"):
        train_in(tmp_path / "run", align=align_config(), model=config, stage="flow")


@pytest.mark.parametrize(
    ("strategy", "ratio"), [("forward", 1.0), ("detach", 1.19), ("reverse_literal", 1.21), ("reverse", 1.44)]
)
def test_a_step_computes_no_more_than_its_losses_need(strategy, ratio):
    """Operations of a step with layer 6 of 8 aligned in blocks 7 and 8 of 8, relative to a step without alignment."""

    def operations(align: bool) -> int:
        sizes = FlowConfig(blocks=8, layers=8, width=64, head_width=32)
        flow = ForwardFlow(tiny_config(flow=sizes, reverse=None))
        objective = aligned(flow, strategy=strategy, layers=[[7, 6], [8, 6]]) if align else FitFlow(flow)
        with FlopCounterMode(display=False) as counter:
            objective(batch()).total.backward()
        return counter.get_total_flops()

    assert operations(align=True) / operations(align=False) == pytest.approx(ratio, abs=0.03)
