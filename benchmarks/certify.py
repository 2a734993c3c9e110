"""Does the distance from the noise predict which samples a judge rejects?

    python benchmarks/certify.py runs/quickstart     # the folder of a finished quickstart

Rejected: read as another class than the sample's label by the quickstart's judge, which the model never saw.  For the
one-pass samples of several strengths of guidance: the area under the ROC curve, 0.5 for chance, of `certify`, of
`certify` given the noise of other samples, of the likelihood, and of the distance for the noisy image that the
reverse model reads on its way; and how many are rejected of all and of the half that `certify` ranks best.  Writes
docs/results/certify.{md,json}.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from machine import report
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
    """The judge that a quickstart trained."""
    config = parse_config(RunConfig, (run / CONFIG_FILE).read_text(encoding="utf-8"), origin=str(run))
    return trained_judge(config, load_data(config.data).train, run)


def area(score: Tensor, rejected: Tensor) -> tuple[float, float]:
    """Area under the ROC curve of a score that should be high for what is rejected, and its standard error.

    The error is that of Hanley and McNeil (1982).
    """
    a, bad, good = float(roc_auc_score(rejected, score)), int(rejected.sum()), int((~rejected).sum())
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    variance = (a * (1 - a) + (bad - 1) * (q1 - a**2) + (good - 1) * (q2 - a**2)) / (bad * good)
    return a, variance**0.5


@torch.no_grad()
def distance_of_noisy_reading(pipe: Pipeline, labels: Tensor, strength: float) -> Tensor:
    """The same distance for the noisy images that the reverse model's head reads on its way: (N,)."""
    assert pipe.model.reverse is not None
    z = pipe.noise(range(len(labels)), SEED)
    noisy = pipe.model.reverse.read_states(pipe.model.reverse(z, labels, strength))[0]
    return (pipe.model.flow(noisy, labels).z - z).square().mean(dim=(1, 2)).sqrt()


@torch.no_grad()
def measure(pipe: Pipeline, judge: Judge, strength: float) -> dict[str, Any]:
    """Areas and rejections for one strength of guidance."""
    labels = torch.arange(SAMPLES) % pipe.config.num_classes
    pixels = pipe.sample_pixels(labels, guidance=strength, seed=SEED)
    rejected = judge(pipe.model.codec.encode(pixels)).argmax(dim=1) != labels
    distance = pipe.certify(pixels, labels, seed=SEED)
    other = pipe.certify(pixels, labels, seed=SEED + 1)  # the noise of other samples
    nats = pipe.log_prob(pixels, labels, noise="training").nats
    noisy = distance_of_noisy_reading(pipe, labels, strength)
    kept = distance.argsort()[: SAMPLES // 2]
    scores = {"certify": distance, "with other noise": other, "-log p": -nats, "of the noisy reading": noisy}
    return {
        "guidance": strength,
        "areas": {name: area(score, rejected) for name, score in scores.items()},
        "rejected": int(rejected.sum()),
        "rejected_of_the_better_half": int(rejected[kept].sum()),
    }


def main() -> None:
    """Measure every strength and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    pipe = Pipeline.from_pretrained(arguments.run / "model")
    judge = load_judge(arguments.run)
    found = [measure(pipe, judge, strength) for strength in STRENGTHS]
    head = ["w", *found[0]["areas"], f"rejected of {SAMPLES:,}", f"of the better {SAMPLES // 2:,}"]
    rows = [
        [f"{each['guidance']:g}", *(f"{a:.2f} ± {error:.2f}" for a, error in each["areas"].values())]
        + [str(each[name]) for name in ("rejected", "rejected_of_the_better_half")]
        for each in found
    ]
    numbers = {"machine": describe_machine(pipe.device), "samples": SAMPLES, "strengths": found}
    report(arguments.out / "certify", head, rows, numbers)


if __name__ == "__main__":
    main()
