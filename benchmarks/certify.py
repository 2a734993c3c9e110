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

import torch
from machine import describe, report
from sklearn.metrics import roc_auc_score
from torch import Tensor

from biflow.features.judge import Judge
from biflow.pipeline import Pipeline

SAMPLES, SEED = 8000, 0
STRENGTHS = (0.0, 0.25, 0.5, 1.0)


def load_judge(run: Path, pipe: Pipeline) -> Judge:
    """The judge that a quickstart trained, with its averaged weights."""
    judge = Judge(pipe.config.channels, pipe.config.num_classes)
    state = torch.load(run / "states" / "judge.pt", weights_only=True)
    judge.load_state_dict(state["ema"])
    return judge.eval()


@torch.no_grad()
def distance_of_noisy_reading(pipe: Pipeline, labels: Tensor, strength: float) -> Tensor:
    """The same distance for the noisy images that the reverse model's head reads on its way: (N,)."""
    assert pipe.model.reverse is not None
    z = pipe.noise(range(len(labels)), SEED)
    noisy = pipe.model.reverse.read_states(pipe.model.reverse(z, labels, strength))[0]
    return (pipe.model.flow(noisy, labels).z - z).square().mean(dim=(1, 2)).sqrt()


@torch.no_grad()
def measure(pipe: Pipeline, judge: Judge, strength: float) -> dict[str, float]:
    """Areas and rejections for one strength of guidance."""
    labels = torch.arange(SAMPLES) % pipe.config.num_classes
    pixels = pipe.sample_pixels(labels, guidance=strength, seed=SEED)
    rejected = judge(pipe.codec.encode(pixels)).argmax(dim=1) != labels
    distance = pipe.certify(pixels, labels, seed=SEED)
    other = pipe.certify(pixels, labels, seed=SEED + 1)  # the noise of other samples
    nats = pipe.log_prob(pixels, labels, noise="training").nats
    noisy = distance_of_noisy_reading(pipe, labels, strength)
    kept = distance.argsort()[: SAMPLES // 2]

    def area(score: Tensor) -> float:
        return float(roc_auc_score(rejected, score))

    return {
        "guidance": strength,
        "area_certify": area(distance),
        "area_certify_with_other_noise": area(other),
        "area_negative_likelihood": area(-nats),
        "area_noisy_reading": area(noisy),
        "rejected": rejected.double().mean().item(),
        "rejected_of_the_better_half": rejected[kept].double().mean().item(),
    }


def main() -> None:
    """Measure every strength and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    pipe = Pipeline.from_pretrained(arguments.run / "model")
    judge = load_judge(arguments.run, pipe)
    found = [measure(pipe, judge, strength) for strength in STRENGTHS]
    head = [
        "w",
        "area of certify",
        "with other noise",
        "of -log p",
        "of the noisy reading",
        "rejected",
        "of the better half",
    ]
    rows = [
        [f"{each['guidance']:g}", *(f"{value:.3f}" for name, value in each.items() if name.startswith("area"))]
        + [f"{100 * each[name]:.2f}%" for name in ("rejected", "rejected_of_the_better_half")]
        for each in found
    ]
    numbers = {"machine": describe(pipe.device), "samples": SAMPLES, "strengths": found}
    report(arguments.out / "certify", head, rows, numbers)


if __name__ == "__main__":
    main()
