"""The data sets on which the papers' claims are tested, and the networks that score samples of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from runs import trained_judge
from torch import Tensor

from biflow.config import FitConfig, RunConfig, load_recipe
from biflow.data.datasets import ImageSet, ImageSource, Split
from biflow.data.open import open_images
from biflow.data.randomness import permutation
from biflow.evaluation.metrics import Gaussian, frechet_distance
from biflow.evaluation.samples import features_of
from biflow.features.judge import Judge
from biflow.features.metric_networks import FeatureNet, JudgeFeatures, make_feature_net
from biflow.files import replace_file, write_text
from biflow.sampling.guidance import Guidance, parse_guidance
from biflow.tensors import hash_tensors

Draw = Callable[[Guidance, int], Tensor]
"""Samples uint8 (N, P, H, W), given guidance and a noise seed."""

CPU = torch.device("cpu")
CONSTANT = ("0", "0.25", "0.5", "1", "1.5", "2")
ANNEALED = ("0.5,annealed", "1,annealed", "2,annealed", "3,annealed")
TRIED = {"reverse": CONSTANT, "sequential": CONSTANT + ANNEALED}  # guidance, by method
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
    "digits": Study("Digits", "biflow_digits"),  # for tests
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
    """All images of a source in a random order, so that the first ones represent all classes."""
    order = permutation(len(source), "study")
    return ImageSet(source.read(order), source.labels[order], source.class_names)


def images_of(work: Work) -> Split[ImageSet]:
    """The images of the study, at its recipe's size."""
    return read(work.study.recipe, work.study.overrides)


def settings(work: Work, seed: int, overrides: Sequence[str]) -> RunConfig:
    """The recipe with the study's data and steps, and the overrides of a row; finishing only if a row has its steps."""
    study = work.study
    steps = [f"fit_flow.steps={study.flow_steps}", f"fit_reverse.steps={study.reverse_steps}"]
    finish = [] if any(each.startswith("fit_finish.steps=") for each in overrides) else ["fit_finish=null"]
    return load_recipe(study.recipe, [f"seed={seed}", *study.overrides, *steps, *finish, *overrides])


def judge_of(work: Work) -> Judge:
    """The reference classifier of all rows and seeds, trained before the jobs start."""
    config = settings(work, 0, ["stage=flow", "model.reverse=null", "fit_reverse=null"])
    fit = JUDGE_FIT.model_copy(update={"steps": work.study.judge_steps})
    return trained_judge(config, images_of(work).train, work.runs / "judge", fit)


class Scorer:
    """Fréchet distances and class accuracy of samples."""

    def __init__(self, work: Work, device: torch.device = CPU) -> None:
        judge = judge_of(work)
        self.judge_digest = hash_tensors(judge.state_dict())
        self.nets: dict[str, FeatureNet] = {
            "judge": JudgeFeatures(judge).to(device),
            "efficientnet": make_feature_net("efficientnet").to(device),
        }
        train, folder = images_of(work).train, work.runs / "references"
        of = f"{self.judge_digest}, {train.listing_digest()}, {REFERENCES}"
        self.references = {name: self._reference(name, train, folder / f"{name}.pt", of) for name in self.nets}

    def _reference(self, name: str, train: ImageSet, path: Path, of: str) -> Gaussian:
        """The Gaussian of the first training images, computed unless it is kept for the same classifier and images."""
        if path.exists():
            *moments, made_of = torch.load(path, weights_only=True)
            if made_of == of:
                return Gaussian(*moments)
        real = Gaussian.fit(self.features(name, train.images[:REFERENCES]).pooled)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            torch.save((real.mean, real.covariance, real.count, of), temporary)
        return real

    def features(self, name: str, pixels: Tensor) -> Any:
        """The features of images uint8 (N, P, H, W) in one of the networks."""
        return features_of(self.nets[name], pixels, batch_size=BATCH_SIZE)

    def distance(self, name: str, pixels: Tensor) -> tuple[float, Any]:
        """The Fréchet distance of images uint8 (N, P, H, W) in a network's features, and these features."""
        found = self.features(name, pixels)
        return frechet_distance(Gaussian.fit(found.pooled), self.references[name]), found

    def score(self, draw: Draw, labels: Tensor, guidances: Sequence[str]) -> tuple[dict[str, Any], Tensor]:
        """Scores of samples with the guidance of the lowest distance on other noise, and their features (N, F)."""
        tried, best = {}, guidances[0]
        if len(guidances) > 1:
            tried = {w: self.distance("judge", draw(parse_guidance(w), CHOOSING))[0] for w in guidances}
            best = min(tried, key=lambda w: tried[w])
        pixels = draw(parse_guidance(best), SCORING)
        distance, found = self.distance("judge", pixels)
        scores = {
            "guidance": best,
            "tried": tried,
            "frechet_distance": distance,
            "efficientnet": self.distance("efficientnet", pixels)[0],
            "class_accuracy": (found.logits.argmax(dim=1) == labels).double().mean().item(),
        }
        return scores, found.pooled

    def real(self, test: ImageSet, count: int) -> dict[str, float]:
        """The same scores of the first test images."""
        test = test.take(slice(count))
        distance, found = self.distance("judge", test.images)
        return {
            "images": len(test),
            "judge": distance,
            "efficientnet": self.distance("efficientnet", test.images)[0],
            "accuracy": (found.logits.argmax(dim=1) == test.labels).double().mean().item(),
        }


def kept(path: Path, of: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of a JSON file that were made of the same things, or else computed now and written to it."""
    of = json.loads(json.dumps(of))
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["of"] == of:
            return found["numbers"]
    numbers = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"of": of, "numbers": numbers}) + "\n")
    return json.loads(json.dumps(numbers))  # as it will be read
