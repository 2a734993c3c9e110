import math

import pytest
import torch

from biflow.data.augment import add_noise
from biflow.files import write_csv
from biflow.inference.likelihood import Ranked, Scores, score_images
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
    noisy = add_noise(PixelCodec().encode(images.images), range(12), 0.2, "score", 2, 0)
    expected = model.flow.log_prob(patchify(noisy, 2), NOBODY)
    torch.testing.assert_close(scores.nats.float(), expected, rtol=1e-5, atol=1e-4)


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
