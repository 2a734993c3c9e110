"""How well the likelihood detects outliers among the test digits.

    python benchmarks/outliers.py runs/quickstart/model

Area under the ROC curve of the log-likelihood for each kind of outlier, and for digits scored under the wrong class: 1
if every outlier is less likely than every digit, 0.5 is chance.  Writes docs/results/outliers.{md,json}.
"""

import argparse
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from machine import page, save
from sklearn.metrics import roc_auc_score
from torch import Tensor

from biflow.data.datasets import ImageSet, load_data
from biflow.pipeline import Pipeline
from biflow.training.provenance import describe_machine

OUTLIERS = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "outliers.py"))["OUTLIERS"]
SCORES: dict[str, dict[str, Any]] = {
    "uniform noise": {},
    "uniform noise, 8 draws": {"draws": 8},
    "uniform noise, 8 draws, importance-weighted": {"draws": 8, "average": "importance"},
    "training noise": {"noise": "training"},
    "training noise, 8 draws": {"noise": "training", "draws": 8},
}


def area(digits: Tensor, outliers: Tensor) -> float:
    """Area under the ROC curve of scores that should be low for outliers."""
    truth = [0] * len(digits) + [1] * len(outliers)
    return float(roc_auc_score(truth, -torch.cat([digits, outliers])))


def measure(pipe: Pipeline, test: ImageSet, options: dict[str, Any]) -> dict[str, float]:
    """Every area, and the mean bits per dimension of the digits."""
    own = pipe.log_prob(test.images, **options)
    found = {"bits_per_dim": own.bits_per_dim.mean().item()}
    for kind, change in OUTLIERS.items():
        found[kind] = area(own.nats, pipe.log_prob(change(test.images), **options).nats)
    given, contrast = [], []
    for label in range(len(test.class_names)):
        scored, same = pipe.log_prob(test.images, [label] * len(test), **options).nats, test.labels == label
        given.append(area(scored[same], scored[~same]))
        gain = scored - own.nats
        contrast.append(area(gain[same], gain[~same]))
    return found | {
        "other class, by likelihood": sum(given) / len(given),
        "other class, by contrast": sum(contrast) / len(contrast),
    }


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    areas = numbers["areas"]
    text = (
        "Written by `python benchmarks/outliers.py MODEL`: area under the ROC curve of the log-likelihood, for each "
        "kind of outlier among the 360 test digits (1 if every outlier is less likely than every digit, 0.5 is "
        "chance). *other class*: digits scored under a wrong label, by likelihood, and by contrast with the likelihood "
        "without a label. *bits/dim* is the mean of the digits."
    )
    head = ["scored with", "bits/dim", *list(next(iter(areas.values())))[1:]]
    rows = [[name, *(f"{value:.3f}" for value in each.values())] for name, each in areas.items()]
    return page("Outlier detection", text, head, rows, machine=numbers["machine"])


def main() -> None:
    """Measure every score and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder of the digits")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    pipe, test = Pipeline.from_pretrained(arguments.model), load_data("digits").test
    found = {name: measure(pipe, test, options) for name, options in SCORES.items()}
    numbers = {"machine": describe_machine(pipe.device), "areas": found}
    save(arguments.out / "outliers", render(numbers), numbers)


if __name__ == "__main__":
    main()
