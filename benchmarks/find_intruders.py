"""How well likelihood finds images that do not belong, on the test digits.

    python benchmarks/find_intruders.py runs/quickstart/model

For each kind of intruder, and for digits of another class scored as a given one: the area under the ROC curve of the
log-likelihood, 1 when every intruder is less likely than every digit, 0.5 for chance.  Writes
docs/results/out_of_place.{md,json}.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from machine import report
from sklearn.metrics import roc_auc_score
from torch import Tensor

from biflow.data.datasets import ImageSet, load_data
from biflow.pipeline import Pipeline
from biflow.training.provenance import describe_machine

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from out_of_place import INTRUDERS

WAYS: dict[str, dict[str, Any]] = {
    "uniform noise": {},
    "uniform noise, 8 draws": {"draws": 8},
    "uniform noise, 8 draws, importance-weighted": {"draws": 8, "average": "importance"},
    "training noise": {"noise": "training"},
    "training noise, 8 draws": {"noise": "training", "draws": 8},
}


def area(digits: Tensor, intruders: Tensor) -> float:
    """Area under the ROC curve of scores that should be low for intruders."""
    truth = [0] * len(digits) + [1] * len(intruders)
    return float(roc_auc_score(truth, -torch.cat([digits, intruders])))


def measure(pipe: Pipeline, test: ImageSet, way: dict[str, Any]) -> dict[str, float]:
    """Every area, and the mean bits per dimension of the digits."""
    own = pipe.log_prob(test.images, **way)
    found = {"bits_per_dim": own.bits_per_dim.mean().item()}
    for kind, change in INTRUDERS.items():
        found[kind] = area(own.nats, pipe.log_prob(change(test.images), **way).nats)
    given, contrast = [], []
    for label in range(len(test.class_names)):
        scored, same = pipe.log_prob(test.images, [label] * len(test), **way).nats, test.labels == label
        given.append(area(scored[same], scored[~same]))
        gain = scored - own.nats
        contrast.append(area(gain[same], gain[~same]))
    return found | {
        "other class, by likelihood": sum(given) / len(given),
        "other class, by contrast": sum(contrast) / len(contrast),
    }


def main() -> None:
    """Measure every way of scoring and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    pipe, test = Pipeline.from_pretrained(arguments.model), load_data("digits").test
    found = {name: measure(pipe, test, way) for name, way in WAYS.items()}
    head = ["scored with", "bits/dim", *list(next(iter(found.values())))[1:]]
    rows = [[name, *(f"{value:.3f}" for value in each.values())] for name, each in found.items()]
    report(arguments.out / "out_of_place", head, rows, {"machine": describe_machine(pipe.device), "areas": found})


if __name__ == "__main__":
    main()
