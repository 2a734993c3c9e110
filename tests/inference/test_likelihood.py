import math

import pytest
import torch

from biflow.data.augment import add_noise
from biflow.data.randomness import content_keys
from biflow.files import write_csv
from biflow.inference.likelihood import Ranked, Scores, cycle_error, score_images
from biflow.models.codec import PixelCodec
from biflow.models.model import new_model
from biflow.models.patches import patchify
from tests.builders import tiny_config, tiny_images, tiny_model

NOBODY = torch.full((12,), 3)


def test_bits_of_a_standard_normal_are_the_closed_form():
    model = new_model(tiny_config(), tuple("abc"))  # fresh: the identity
    images = tiny_images()
    scores = score_images(model, images.images, NOBODY, draws=400)
    x, width = PixelCodec().encode(images.images).double(), PixelCodec.bin_width
    expected = -0.5 * (x.square() + width**2 / 12 + math.log(2 * math.pi)).sum((1, 2, 3))  # E (x + u)^2 = x^2 + w^2/12
    torch.testing.assert_close(scores.nats, expected, rtol=0, atol=0.01)
    torch.testing.assert_close(scores.bits_per_dim, -(scores.nats / 16 + math.log(width)) / math.log(2))


def test_training_noise_is_the_models():
    model, images = tiny_model(), tiny_images()
    scores = score_images(model, images.images, NOBODY, noise="training", seed=2)
    noisy = add_noise(PixelCodec().encode(images.images), content_keys(images.images), 0.2, "score", 2, 0)
    expected = model.flow.log_prob(patchify(noisy, 2), NOBODY)
    torch.testing.assert_close(scores.nats.float(), expected, rtol=1e-5, atol=1e-4)


def test_uniform_noise_fills_the_bin_of_a_grey_level():
    model, pixels = tiny_model(), tiny_images(100).images
    clean, noisy = (
        model.noisy_patches(pixels, content_keys(pixels), "score", noise=kind) for kind in ("none", "uniform")
    )
    offsets = (noisy - clean) * 255 / 2  # in grey levels
    assert 0.49 < offsets.abs().max() < 0.501
    assert offsets.std().item() == pytest.approx(12**-0.5, rel=0.05)


def test_importance_weighting_is_a_tighter_bound():
    model, images = tiny_model(), tiny_images().images
    mean, weighted = (score_images(model, images, NOBODY, draws=8, average=each) for each in ("mean", "importance"))
    assert (weighted.nats > mean.nats).all()
    assert (weighted.bits_per_dim < mean.bits_per_dim).all()
    one, same = (score_images(model, images, NOBODY, average=each) for each in ("mean", "importance"))
    torch.testing.assert_close(one.nats, same.nats)


def test_an_image_scores_the_same_in_any_batch(monkeypatch):
    model, images = tiny_model(), tiny_images().images
    together = score_images(model, images, NOBODY, draws=2).nats
    monkeypatch.setattr("biflow.inference.likelihood.BATCH_SIZE", 5)
    torch.testing.assert_close(score_images(model, images, NOBODY, draws=2).nats, together, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("noise", ["uniform", "training"])
def test_a_score_depends_on_the_image_alone(noise):
    model, images = tiny_model(), tiny_images().images
    together = score_images(model, images, NOBODY, noise=noise, draws=2).nats
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = score_images(model, images[order], NOBODY, noise=noise, draws=2).nats
    torch.testing.assert_close(mixed, together[order], rtol=1e-5, atol=1e-5)
    alone = score_images(model, images[7:8], NOBODY[:1], noise=noise, draws=2).nats
    torch.testing.assert_close(alone, together[7:8], rtol=1e-5, atol=1e-5)
    assert (score_images(model, images, NOBODY, noise=noise, draws=2, seed=1).nats - together).abs().min() > 1e-4


def test_draws_have_noise_of_their_own():
    model, images = tiny_model(), tiny_images().images
    one, several = (score_images(model, images, NOBODY, noise="training", draws=n).nats for n in (1, 2))
    assert (one - several).abs().min() > 1e-4


@torch.no_grad()
def test_the_cycle_error_is_in_standard_deviations_of_the_prior():
    model, images, z = tiny_model(), tiny_images().images, torch.randn(12, 4, 4)
    model.flow.prior_variance.copy_(torch.rand(4, 4) + 0.5)
    error = model.flow(patchify(PixelCodec().encode(images), 2), NOBODY).z - z
    expected = (error.square() / model.flow.prior_variance).mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(cycle_error(model, images, NOBODY, z=z), expected)


def test_importance_weighting_is_the_log_of_the_mean_density():
    """Of an identity flow, whose density of each draw is known."""
    model, images = new_model(tiny_config(), tuple("abc")), tiny_images().images
    logs = [score_images(model, images, NOBODY, noise="training", draws=n, average="importance").nats for n in (1, 2)]
    second = torch.log(2 * logs[1].exp() - logs[0].exp())
    noisy = add_noise(PixelCodec().encode(images), content_keys(images), 0.2, "score", 0, 1)
    torch.testing.assert_close(second, model.flow.log_prob(patchify(noisy, 2), NOBODY).double(), rtol=1e-3, atol=1e-3)


def test_the_ranking_begins_with_the_least_likely(tmp_path):
    model, images = tiny_model(), tiny_images().images
    scores = score_images(model, images, NOBODY)
    ranking = scores.rank([f"{i}.png" for i in range(12)])
    assert [each.rank for each in ranking] == list(range(1, 13))
    assert ranking[0].nats == scores.nats.min()
    assert ranking[0].image == f"{scores.nats.argmin()}.png"
    write_csv(tmp_path / "scores.csv", Ranked._fields, ranking)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 13


def test_nan_is_ranked_first():
    nats = torch.tensor([1.0, float("nan"), 0.5])
    assert [each.image for each in Scores(nats, nats).rank(["a", "b", "c"])] == ["b", "c", "a"]


def test_a_contrast_is_what_the_label_adds():
    model, images = tiny_model(), tiny_images().images
    given, free = (score_images(model, images, labels) for labels in (torch.zeros(12, dtype=torch.long), NOBODY))
    assert given.minus(free).nats == pytest.approx(given.nats - free.nats)
