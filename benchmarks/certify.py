"""Does the cycle error (`Pipeline.certify`) predict which samples the reference classifier rejects?

    python benchmarks/certify.py runs/quickstart     # the folder of a finished quickstart

A sample is rejected if the quickstart's reference classifier, which the model never saw, predicts another class than
its label.  For one-pass samples at several guidance strengths, the area under the ROC curve (0.5 is chance) of four
scores: the cycle error, the cycle error against the noise of other samples, the negative log-likelihood, and the cycle
error of the noisy image that the reverse model predicts before the clean one.  Also the number of rejected samples,
overall and among the half with the lowest cycle error.  Writes docs/results/certify.{md,json}.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from machine import page, save
from runs import trained_judge
from sklearn.metrics import roc_auc_score
from torch import Tensor

from biflow.config import RunConfig
from biflow.config.base import parse_config
from biflow.data.datasets import load_data
from biflow.features.judge import Judge
from biflow.pipeline import Pipeline
from biflow.training.provenance import describe_machine
from biflow.training.run import CONFIG_FILE

SAMPLES, SEED = 8000, 0
STRENGTHS = (0.0, 0.25, 0.5, 1.0)


def load_judge(run: Path) -> Judge:
    """The reference classifier that a quickstart trained."""
    config = parse_config(RunConfig, (run / CONFIG_FILE).read_text(encoding="utf-8"), origin=str(run))
    return trained_judge(config, load_data(config.data).train, run)


def area(score: Tensor, rejected: Tensor) -> tuple[float, float]:
    """Area under the ROC curve of a score that should be high for rejected samples, and its standard error.

    The standard error follows Hanley and McNeil (1982).
    """
    a, bad, good = float(roc_auc_score(rejected, score)), int(rejected.sum()), int((~rejected).sum())
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    variance = (a * (1 - a) + (bad - 1) * (q1 - a**2) + (good - 1) * (q2 - a**2)) / (bad * good)
    return a, variance**0.5


@torch.no_grad()
def cycle_error_of_noisy_image(pipe: Pipeline, labels: Tensor, strength: float) -> Tensor:
    """The cycle error of the noisy images that the reverse model predicts before the clean ones: (N,)."""
    assert pipe.model.reverse is not None
    z = pipe.noise(range(len(labels)), SEED)
    noisy = pipe.model.reverse.read_states(pipe.model.reverse(z, labels, strength))[0]
    return (pipe.model.flow(noisy, labels).z - z).square().mean(dim=(1, 2)).sqrt()


@torch.no_grad()
def measure(pipe: Pipeline, judge: Judge, strength: float) -> dict[str, Any]:
    """Areas and rejection counts at one guidance strength."""
    labels = torch.arange(SAMPLES) % pipe.config.num_classes
    pixels = pipe.sample_pixels(labels, guidance=strength, seed=SEED)
    rejected = judge(pipe.model.codec.encode(pixels)).argmax(dim=1) != labels
    error = pipe.certify(pixels, labels, seed=SEED)
    other = pipe.certify(pixels, labels, seed=SEED + 1)  # the noise of other samples
    nats = pipe.log_prob(pixels, labels, noise="training").nats
    noisy = cycle_error_of_noisy_image(pipe, labels, strength)
    best = error.argsort()[: SAMPLES // 2]
    scores = {
        "cycle error": error,
        "cycle error, other noise": other,
        "-log p": -nats,
        "cycle error, noisy image": noisy,
    }
    return {
        "guidance": strength,
        "areas": {name: area(score, rejected) for name, score in scores.items()},
        "rejected": int(rejected.sum()),
        "rejected_of_best_half": int(rejected[best].sum()),
    }


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    samples, lines = numbers["samples"], numbers["strengths"]
    text = (
        "Written by `python benchmarks/certify.py RUN`: area under the ROC curve, ± one standard error, for detecting "
        "samples whose label differs from the prediction of the reference classifier (0.5 is chance). *cycle error* is "
        "what `Pipeline.certify` returns; *other noise* compares with the noise of other samples; *noisy image* is the "
        "cycle error of the noisy image that the reverse model predicts before the clean one. The last two columns "
        "count rejected samples, overall and among the half with the lowest cycle error; w is the guidance strength."
    )
    head = ["w", *lines[0]["areas"], f"rejected of {samples:,}", f"rejected of best {samples // 2:,}"]
    rows = [
        [f"{each['guidance']:g}", *(f"{a:.2f} ± {error:.2f}" for a, error in each["areas"].values())]
        + [str(each[name]) for name in ("rejected", "rejected_of_best_half")]
        for each in lines
    ]
    return page("Cycle error of rejected samples", text, head, rows, machine=numbers["machine"])


def main() -> None:
    """Measure every guidance strength and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished quickstart")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    pipe = Pipeline.from_pretrained(arguments.run / "model")
    judge = load_judge(arguments.run)
    found = [measure(pipe, judge, strength) for strength in STRENGTHS]
    numbers = {"machine": describe_machine(pipe.device), "samples": SAMPLES, "strengths": found}
    save(arguments.out / "certify", render(numbers), numbers)


if __name__ == "__main__":
    main()
