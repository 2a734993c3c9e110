"""What makes a reverse model learn fast: variants of its training, each for the same time on the same flow.

    python benchmarks/convergence.py --data fashion_mnist --seeds 3       # hours on two CPU cores
    python benchmarks/convergence.py --steps 4 --flow-steps 4 --samples 50 --seeds 1 --runs runs/try --out runs/try

Every row makes one change to the data set's recipe.  Wider and deeper models train for fewer steps, so that all rows
cost about the same.  Flow and classifier are those of `claims.py`; whatever is finished is kept in runs/claims, so an
interrupted command resumes.  Writes docs/results/convergence_DATA.{md,json}.
"""

import argparse
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ablations import one_thread
from claims import FLOWS, UNGUIDED, minutes, train_flow
from machine import command_line, described
from rich.console import Console
from runs import trained
from seeds import decide, summary
from studies import STUDIES, Scorer, Work, images_of, kept, settings, work_of

from biflow.files import write_text
from biflow.pipeline import Pipeline
from biflow.quickstart.measures import measure_reverse
from biflow.training.provenance import describe_machine

STEPS, SAMPLES = 300, 2000
WARM_UP = 0.1  # share of the steps
SCORES = "scores.json"
WIDTH = "model.reverse.width"


class Variant(NamedTuple):
    """One row: what is set, and the share of the steps that cost as much as the base's."""

    overrides: tuple[str, ...] = ()
    share: float = 1.0
    flow: str = "bounded"


def rate(muon: float, adamw: float) -> tuple[str, ...]:
    """Learning rates."""
    return f"fit_reverse.muon_learning_rate={muon}", f"fit_reverse.learning_rate={adamw}"


MODERN = ("positions=rotary", "norm=rms", "mlp=swiglu", "mlp_ratio=2.6667", "qk_norm=true")
BASE = "recipe"
VARIANTS: Mapping[str, Variant] = {
    BASE: Variant(),
    "AdamW instead of Muon": Variant(("fit_reverse.optimizer=adamw", "fit_reverse.learning_rate=0.002")),
    "half the learning rates": Variant(rate(0.015, 0.003)),
    "twice the learning rates": Variant(rate(0.06, 0.012)),
    "batches of 16": Variant(("fit_reverse.batch_size=16", *rate(0.02, 0.005)), 1.8),
    "batches of 64": Variant(("fit_reverse.batch_size=64", *rate(0.04, 0.008)), 0.5),
    "batches of 128": Variant(("fit_reverse.batch_size=128", *rate(0.04, 0.008)), 0.25),
    "no moving average": Variant(("fit_reverse.ema_decay=0",)),
    "no adaptive weight": Variant(("fit_reverse.adaptive_power=0",)),
    "width 192": Variant((f"{WIDTH}=192",), 0.6),
    "width 96": Variant((f"{WIDTH}=96",), 1.4),
    "4 layers a block": Variant(("model.reverse.layers=4",), 0.55),
    "1 layer a block": Variant(("model.reverse.layers=1",), 1.7),
    "rotary positions": Variant(("model.reverse.positions=rotary",), 0.93),
    "rotary positions, RMS norm, SwiGLU, query-key norm": Variant(
        tuple(f"model.reverse.{each}" for each in MODERN), 0.9
    ),
    "4 class tokens": Variant(("model.reverse.class_tokens=4",)),
    "raw trajectory": Variant(("model.reverse.normalise=false",)),
    "image loss weighted 4 times": Variant(("fit_reverse.distances=[{kind: mse, weight: 4}]",)),
    "flow of 3 blocks, not 4": Variant(share=1.3, flow="three blocks"),
    "flow with 1, 1, 1 and 5 layers, the last at the noise": Variant(flow="deep-shallow"),
}


def folder_of(work: Work, steps: int, job: tuple[int, str]) -> Path:
    """The folder of a variant's run and scores."""
    words = "".join(letter if letter.isalnum() else " " for letter in job[1]).lower().split()
    return work.runs / f"convergence_{steps}" / f"seed_{job[0]}" / "_".join(words)


def score(work: Work, steps: int, job: tuple[int, str]) -> dict[str, Any]:
    """Train a variant, and measure how well it inverts and what it samples."""
    seed, name = job
    folder, variant, data, scorer = folder_of(work, steps, job), VARIANTS[name], images_of(work), Scorer(work)
    flow, taken = train_flow(work, (seed, variant.flow)), max(1, round(steps * variant.share))
    lengths = [f"fit_reverse.steps={taken}", f"fit_reverse.warmup_steps={round(WARM_UP * taken)}"]
    shared = ["stage=reverse", f"flow_from={flow}", *FLOWS[variant.flow], UNGUIDED, *lengths]
    config = settings(work, seed, [*shared, *variant.overrides])
    model = trained(config, data.train, folder / "run", console=Console(quiet=True))

    def compute() -> dict[str, Any]:
        pipe = Pipeline.from_pretrained(model)
        labels = torch.arange(work.samples) % pipe.config.num_classes
        scores, _ = scorer.score(lambda w, seed: pipe.sample_pixels(labels, guidance=w, seed=seed), labels, ["0"])
        mse = measure_reverse(pipe.model, data.test)["test_reconstruction_mse"]
        return {"steps": taken, "minutes": minutes(pipe), "mse": mse, **scores}

    of = {"samples": work.samples, "judge": scorer.judge_digest, "run": config.model_dump(mode="json")}
    return kept(folder / SCORES, of, compute)


def render(found: Mapping[str, Any]) -> str:
    """The page."""
    rows: Mapping[str, Sequence[Mapping[str, float]]] = found["rows"]
    seeds, base = len(rows[BASE]), rows[BASE]
    over = "One seed." if seeds == 1 else f"Mean and standard deviation over {seeds} seeds."
    lines = [
        f"# How fast a reverse model learns: {STUDIES[found['data']].title}",
        "",
        f"Written by `{found['command']}`, on {described(found['machine'])}. Every row makes one change to the recipe",
        f"[{found['recipe']}](../recipes.md), without guidance and finishing, and trains a reverse model for about the",
        f"same time: {found['steps']:,} steps of the recipe's. Other batch sizes have learning rates to match. {over}",
        "",
        "- **MSE**: of clean test images predicted from the noise of their noisy images, for values in [-1, 1].",
        f"- **FD**: Fréchet distance of {found['samples']:,} unguided samples, in the features of a classifier that is",
        "  part of no loss.",
        "- **better than the recipe**: by FD, if zero lies outside the 95% interval of the difference paired by seed,",
        "  which one seed cannot tell. Intervals are not corrected for the number of rows.",
        "",
        "| | steps | minutes | MSE | FD | accuracy | better than the recipe |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, scores in rows.items():
        gains = [a["frechet_distance"] - b["frechet_distance"] for a, b in zip(base, scores, strict=True)]
        outcome = decide(gains).outcome
        cells = [
            name,
            f"{scores[0]['steps']:,.0f}",
            summary([each["minutes"] for each in scores], 1),
            summary([each["mse"] for each in scores], 4),
            summary([each["frechet_distance"] for each in scores], 1),
            summary([100 * each["class_accuracy"] for each in scores], 1) + "%",
            "" if name == BASE else {"holds": "yes", "does not hold": "worse"}.get(outcome, outcome),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=STUDIES, default="fashion_mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="ROW", help="these rows")
    parser.add_argument("--flow-steps", type=int, help="training steps of flow and classifier, for a test")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--jobs", type=int, default=2, help="parallel training runs, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    work = work_of(options.data, options.samples, options.runs, options.flow_steps)
    Scorer(work)  # trains the classifier and measures the training images, before the jobs share them
    names = list(dict.fromkeys([BASE, *options.only]))
    jobs = [(seed, name) for seed in range(options.seeds) for name in names]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn, initializer=one_thread) as pool:
        flows = sorted({VARIANTS[name].flow for name in names})
        list(pool.map(partial(train_flow, work), [(seed, flow) for seed in range(options.seeds) for flow in flows]))
        scores = dict(zip(jobs, pool.map(partial(score, work, options.steps), jobs), strict=True))
    rows = {name: [scores[seed, name] for seed in range(options.seeds)] for name in names}
    numbers = {
        "data": options.data,
        "recipe": work.study.recipe,
        "steps": options.steps,
        "samples": options.samples,
        "rows": rows,
        "command": command_line(),
        "machine": {**describe_machine(torch.device("cpu")), "threads": 1},  # of every job
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / f"convergence_{options.data}.json", json.dumps(numbers, indent=1) + "\n")
    write_text(options.out / f"convergence_{options.data}.md", render(numbers))
    print(render(numbers))


if __name__ == "__main__":
    main()
