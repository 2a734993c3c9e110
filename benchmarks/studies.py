"""The data sets on which the papers' claims are tested, and the networks that score samples of them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from runs import trained_judge
from torch import Tensor

from biflow.config import FitConfig, RunConfig, load_recipe
from biflow.data.datasets import ImageSet, ImageSource, Split
from biflow.data.open import open_images
from biflow.evaluation.metrics import Gaussian, frechet_distance
from biflow.evaluation.samples import features_of
from biflow.features.judge import Judge
from biflow.features.metric_networks import FeatureNet, JudgeFeatures, make_feature_net

CHOOSING, SCORING = 1, 0  # noise seeds: for choosing the guidance strength, and for the scored samples
BATCH_SIZE = 250
METHODS = ("gradient", "bayes")  # of classification by the likelihood
REFERENCES = 10_000  # training images whose features samples are compared with
JUDGE_FIT = FitConfig(batch_size=128, learning_rate=2e-3, ema_decay=0.99, label_drop=0.0)


class Study(NamedTuple):
    """A data set, its recipe, and for how long networks are trained in comparisons."""

    title: str
    recipe: str
    overrides: tuple[str, ...] = ()  # of the recipe, for this data set
    flow_steps: int = 1500
    reverse_steps: int = 1000
    judge_steps: int = 4000


EMOJI = ("data=folder:data/emoji", "model.num_classes=9", "reading.test_share=0.1")
STUDIES = {
    "fashion_mnist": Study("Fashion-MNIST", "fashion_mnist"),
    "fashion_mnist_196": Study("Fashion-MNIST in 196 patches", "fashion_mnist", ("model.patch_size=2",)),
    "cifar10": Study("CIFAR-10", "cifar10", flow_steps=2000, reverse_steps=2000),
    "small_32": Study("CIFAR-10 in 64 patches", "small_32", ("data=npz:data/cifar10",)),
    "small_64": Study("Emoji in 64 patches", "small_64", EMOJI, judge_steps=1000),
}


class Work(NamedTuple):
    """Shared by all jobs."""

    name: str
    study: Study
    samples: int
    runs: Path


def work_of(name: str, samples: int, runs: Path, steps: int | None = None) -> Work:
    """A study with its number of samples and its folder; steps: of every network, for a test."""
    study = STUDIES[name]
    if steps:
        study = study._replace(flow_steps=steps, reverse_steps=steps, judge_steps=steps)
    return Work(name, study, samples, (runs / name).resolve())


@cache
def read(recipe: str, overrides: tuple[str, ...]) -> Split[ImageSet]:
    """The images of a recipe, in memory."""
    config = load_recipe(recipe, overrides)
    model = config.model
    split = open_images(config.data, (model.channels, model.image_size, model.image_size), config.reading)
    return Split(in_memory(split.train), in_memory(split.test))


def in_memory(source: ImageSource) -> ImageSet:
    """All images of a source."""
    return ImageSet(source.read(torch.arange(len(source))), source.labels, source.class_names)


def images_of(work: Work) -> Split[ImageSet]:
    """The images of the study, at its recipe's size."""
    return read(work.study.recipe, work.study.overrides)


def settings(work: Work, seed: int, overrides: Sequence[str]) -> RunConfig:
    """The recipe with the study's data and steps, and the overrides of a row."""
    study = work.study
    steps = [f"fit_flow.steps={study.flow_steps}", f"fit_reverse.steps={study.reverse_steps}", "fit_finish=null"]
    return load_recipe(study.recipe, [f"seed={seed}", *study.overrides, *steps, *overrides])


def judge_of(work: Work) -> Judge:
    """The reference classifier of all rows and seeds, trained before the jobs start."""
    config = settings(work, 0, ["stage=flow", "model.reverse=null", "fit_reverse=null"])
    fit = JUDGE_FIT.model_copy(update={"steps": work.study.judge_steps})
    return trained_judge(config, images_of(work).train, work.runs / "judge", fit)


class Scorer:
    """Fréchet distances and class accuracy of samples, with their features by the judge for bootstraps."""

    def __init__(self, work: Work) -> None:
        self.nets: dict[str, FeatureNet] = {
            "judge": JudgeFeatures(judge_of(work)),
            "efficientnet": make_feature_net("efficientnet"),
        }
        train, folder = images_of(work).train, work.runs / "references"
        self.references = {name: self._reference(name, train, folder / f"{name}.pt") for name in self.nets}

    def _reference(self, name: str, train: ImageSet, path: Path) -> Gaussian:
        """The Gaussian of the first training images."""
        if not path.exists():
            real = Gaussian.fit(features_of(self.nets[name], train.images[:REFERENCES], batch_size=BATCH_SIZE).pooled)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save((real.mean, real.covariance, real.count), path)
        return Gaussian(*torch.load(path, weights_only=True))

    def distance(self, name: str, pixels: Tensor) -> tuple[float, Any]:
        """The Fréchet distance of images uint8 (N, P, H, W) in a network's features, and these features."""
        found = features_of(self.nets[name], pixels, batch_size=BATCH_SIZE)
        return frechet_distance(Gaussian.fit(found.pooled), self.references[name]), found
