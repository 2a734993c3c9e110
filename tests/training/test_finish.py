"""Finishing: the Fréchet distance of one-pass samples, lowered after the reverse model is fitted."""

import pytest
import torch
from torch import nn

from biflow.config import DistanceConfig, FinishFitConfig, ReverseConfig, RunConfig
from biflow.errors import InputError, Interrupted
from biflow.features.perceptual import make_distance
from biflow.losses.frechet import transport
from biflow.models.codec import make_codec
from biflow.models.patches import unpatchify
from biflow.training.batches import split_batch
from biflow.training.finish import REFRESH, STRETCH, FinishReverse, PooledFeatures, Population, moments, sample
from biflow.training.hooks import read_history
from tests.builders import tiny_model, tiny_objective, tiny_run
from tests.training.test_training import tiny_batch, train_in, weights

FEATURES = DistanceConfig(kind="module", network=f"{__name__}:tiny_network", weight=0.5)
FINISH = FinishFitConfig(
    steps=5, batch_size=4, warmup_steps=1, log_every=1, save_every=2, population=8, features=FEATURES
)


def tiny_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 2), nn.Tanh())


def random_features(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def objective(guidance: float = 0.0) -> FinishReverse:
    model = tiny_model()
    features = PooledFeatures(FEATURES, model.config, make_codec("pixels"), None)
    noise, labels = torch.randn(20, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    with torch.no_grad():
        samples = features(sample(model.reverse, model.flow, noise, labels, guidance=guidance))
    config = FINISH.model_copy(update={"guidance": guidance})
    return FinishReverse(tiny_objective(model), config, features, Population(samples, samples.flip(1) + 1, 8))


def batch():
    images = tiny_batch()
    prior = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(1))
    return images._replace(prior=prior, prior_labels=(images.labels + 1) % 3)


def test_a_population_averages_the_last_samples_and_keeps_its_transport_for_some_steps():
    population = Population(random_features(9, 0), random_features(9, 1), size=10)
    mean, second = population.mean.clone(), population.second.clone()
    first = population.matrix.clone()
    for step in range(1, REFRESH + 1):
        assert torch.equal(population.matrix, first)
        new = moments(random_features(4, 1 + step).double())
        population.update(*new, count=4, skipped=torch.tensor(0.0))
        mean, second = 0.6 * mean + 0.4 * new[0], 0.6 * second + 0.4 * new[1]
    torch.testing.assert_close(population.mean, mean)
    torch.testing.assert_close(population.second, second)
    real = random_features(9, 1).double()
    covariance = second - torch.outer(mean, mean)
    expected = transport(mean, covariance, real.mean(dim=0), real.T.cov(correction=0))
    torch.testing.assert_close(population.matrix, expected.limited(STRETCH).matrix)
    torch.testing.assert_close(population.distance, expected.distance)
    torch.testing.assert_close(population.spread, real.var(dim=0, correction=0).sum())


def test_a_skipped_step_leaves_the_population_as_it_was():
    population = Population(random_features(9, 0), random_features(9, 1), size=10)
    before = population.mean.clone()
    for _ in range(REFRESH):
        broken = moments(torch.full((4, 3), torch.nan, dtype=torch.float64))
        population.update(*broken, count=4, skipped=torch.tensor(1.0))
    assert torch.equal(population.mean, before)
    assert population.matrix.isfinite().all()


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_the_loss_is_that_of_fitting_plus_the_weighted_distance(guidance):
    finish, given = objective(guidance), batch()
    found = finish(given)
    images = unpatchify(finish.reverse(given.prior, given.prior_labels, guidance).image, 2, 1)
    features = finish.features(images)
    moved = finish.population.move(features.double())
    distance = (features - moved).square().sum(dim=1).mean() / finish.population.spread
    fitted = tiny_objective(tiny_model())(given).total
    torch.testing.assert_close(found.total, fitted + 0.5 * distance.float(), rtol=1e-4, atol=1e-5)
    relative = finish.population.distance / finish.population.spread
    torch.testing.assert_close(found.parts["frechet_distance"], relative.float())


def test_the_moments_of_the_parts_of_a_batch_are_those_of_the_whole():
    whole, parts = objective(), objective()
    whole(batch())
    for part in split_batch(batch(), 2):
        parts(part)
    for finish in (whole, parts):
        finish.after_step(torch.tensor(0.0))
        assert finish.seen == []
    torch.testing.assert_close(whole.population.mean, parts.population.mean)
    torch.testing.assert_close(whole.population.second, parts.population.second)


def test_evaluating_leaves_the_population_alone():
    finish = objective().eval()
    finish(batch())
    assert finish.seen == []


def test_finishing_lowers_the_distance(tmp_path):
    ends = {}
    for weight in (1e-9, 0.5):  # fitting alone, and with the distance
        features = FEATURES.model_copy(update={"weight": weight})
        changes = {"steps": 60, "batch_size": 12, "learning_rate": 1e-3, "population": 200, "features": features}
        fit = tiny_run().fit_reverse.model_copy(update={"steps": 60})
        folder = tmp_path / f"weight {weight}"
        train_in(folder, fit_reverse=fit, fit_finish=FINISH.model_copy(update=changes))
        lines = [line for line in read_history(folder / "metrics.jsonl") if line["stage"] == "finish"]
        assert max(line["frechet_distance"] for line in lines) == lines[0]["frechet_distance"]
        ends[weight] = lines[-1]["frechet_distance"]
    assert ends[0.5] < 0.6 * ends[1e-9]


@pytest.mark.parametrize("stop_at", [13, 15, 16])
def test_a_resumed_finish_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, stop_at):
    whole = train_in(tmp_path / "whole", fit_finish=FINISH)
    with pytest.raises(Interrupted, match=r"^the finish is saved after step"):
        train_in(tmp_path / "parts", fit_finish=FINISH, stop_at=stop_at)
    resumed = train_in(tmp_path / "parts", fit_finish=FINISH, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_finishing_follows_joint_training_too(tmp_path):
    train_in(tmp_path / "run", fit_finish=FINISH, stage="joint")
    stages = {line["stage"] for line in read_history(tmp_path / "run" / "metrics.jsonl")}
    assert stages == {"joint", "finish"}


def test_other_networks_outputs_are_averaged_over_positions():
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = make_distance(DistanceConfig(kind="module", network=f"{__name__}:Outputs")).features(images)
    expected = [images.mean(dim=(2, 3)), images[:, 0].mean(dim=1), images[:, 0, 0]]
    torch.testing.assert_close(found, torch.cat(expected, dim=1))


class Outputs(nn.Module):
    def forward(self, images):
        return [images, images[:, 0], images[:, 0, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "flow"}, "Expected no fit_finish for stage 'flow'"),
        ({"fit_finish": {"features": {"kind": "mse"}}}, "Expected a network for the features; got 'mse'"),
    ],
)
def test_what_cannot_be_finished_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**{**tiny_run().model_dump(), "fit_finish": FINISH.model_dump(), **changes})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"num_classes": 0}, r"Expected fit_finish\.guidance 0 for a model without classes; got 3"),
        ({"reverse": {"guidance": "trained", "max_guidance": 2}}, r"fit_finish\.guidance of at most 2; got 3"),
    ],
)
def test_guidance_that_the_model_cannot_have_is_refused(model, message):
    settings = tiny_run().model_dump()
    finish = FINISH.model_copy(update={"guidance": 3.0}).model_dump()
    with pytest.raises(ValueError, match=message):
        RunConfig(**{**settings, "model": {**settings["model"], **model}, "fit_finish": finish})


def test_noisy_samples_cannot_be_finished():
    model = tiny_run().model.model_copy(update={"reverse": ReverseConfig(denoising="score")})
    with pytest.raises(ValueError, match=r"Expected model\.reverse\.denoising 'learned' with fit_finish; got 'score'"):
        RunConfig(**{**tiny_run().model_dump(), "model": model.model_dump(), "fit_finish": FINISH.model_dump()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": f"{__name__}:Words"}, "the distance 'module' to accept 1x4x4 images; it fails"),
        ({"network": f"{__name__}:Frozen"}, "the distance 'module' to have a gradient"),
        ({"kind": "efficientnet", "network": None, "input_size": 1}, "Set input_size"),
    ],
)
def test_features_are_tried_before_training(tmp_path, changes, message):
    finish = FINISH.model_copy(update={"features": FEATURES.model_copy(update=changes)})
    with pytest.raises(InputError, match=message):
        train_in(tmp_path / "run", fit_finish=finish)
    assert not (tmp_path / "run").exists()


class Words(nn.Module):
    def forward(self, images):
        return f"{images.shape}"


class Frozen(nn.Module):
    def forward(self, images):
        return images.detach()


def test_a_batch_that_does_not_split_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="divisible by accumulate=3"):
        train_in(tmp_path / "run", fit_finish=FINISH.model_copy(update={"accumulate": 3}))
    assert not (tmp_path / "run").exists()


def test_a_missing_network_is_said_before_training(tmp_path):
    finish = FINISH.model_copy(update={"features": DistanceConfig(kind="module", network="nowhere:Net")})
    with pytest.raises(InputError, match="nowhere:Net"):
        train_in(tmp_path / "run", fit_finish=finish)
    assert not (tmp_path / "run").exists()
