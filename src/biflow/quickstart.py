"""The whole story on real images: train a flow on the digits, learn its inverse, sample both ways, measure, report."""

import json
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from biflow import __version__
from biflow.checkpoint import save_model
from biflow.config import FitConfig, RunConfig, load_recipe, smoke, smoke_fit
from biflow.data.datasets import Split, load_data, with_shifts
from biflow.data.images import write_npz
from biflow.evaluation import evaluate
from biflow.evaluation.report import Pictures, check_report, render_report
from biflow.features.judge import Judge
from biflow.files import write_text
from biflow.pipeline import Pipeline
from biflow.training.hooks import read_history
from biflow.training.objectives import FitClassifier
from biflow.training.run import HISTORY_FILE, MODEL_FOLDER, open_run
from biflow.training.stages import fit, train_model

RECIPE = "biflow_digits"
JUDGE = "a small convolutional network, trained on the training images and their one-pixel shifts, never on samples"
SEED = 0
SAMPLERS = {"exact": "sequential", "reverse": "reverse"}  # name in the report -> method of the pipeline
Numbers = dict[str, Any]


class Plan(NamedTuple):
    """What a quickstart trains, and how much it draws and times."""

    run: RunConfig
    judge: FitConfig
    samples: int = 1000
    strengths: Sequence[float] = (0.0, 0.125, 0.25, 0.375, 0.5, 1.0, 2.0)  # of guidance, tried both ways
    batch_sizes: Sequence[int] = (1, 256)
    timings: int = 15
    smoke: bool = False


class Draw(NamedTuple):
    """Images drawn one way at one strength of guidance, and what the judge says of them."""

    method: str
    guidance: float
    pixels: Tensor  # uint8 (N, P, H, W)
    labels: Tensor  # (N,)
    scores: Mapping[str, float]


def make_plan(overrides: Iterable[str] = (), *, small: bool = False) -> Plan:
    """The full size, or one that shows within a minute that everything works."""
    plan = Plan(
        load_recipe(RECIPE, overrides), FitConfig(steps=1000, learning_rate=1e-3, ema_decay=0.9, label_drop=0.0)
    )
    if not small:
        return plan
    run, judge = smoke(plan.run), smoke_fit(plan.judge)
    return Plan(run, judge, samples=100, strengths=(0.0, 1.0), timings=3, smoke=True)


def run_quickstart(out: Path, plan: Plan, *, resume: bool, console: Console) -> Numbers:
    """Train, sample and measure in the folder `out`; returns what report.json holds."""
    start = time.perf_counter()
    check_report()
    split = load_data(plan.run.data)
    with open_run(plan.run, split.train, out, resume=resume, console=console) as run:
        model, seconds = train_model(run)
        judge = Judge(plan.run.model.channels, plan.run.model.num_classes)
        on_shifts = replace(run, data=with_shifts(run.data))
        seconds["judge"] = fit(on_shifts, "judge", FitClassifier(judge), plan.judge)
    save_model(model, out / MODEL_FOLDER)
    pipe = Pipeline.from_pretrained(out / MODEL_FOLDER)

    console.print(f"sampling {plan.samples:,} images each way, at {len(plan.strengths)} strengths of guidance")
    draws = {
        sampler: [draw(pipe, judge, split, count=plan.samples, method=method, guidance=w) for w in plan.strengths]
        for sampler, method in SAMPLERS.items()
    }
    best = {sampler: min(drawn, key=lambda d: d.scores["frechet_distance"]) for sampler, drawn in draws.items()}
    console.print("timing every sampler")
    report = {
        "biflow": __version__,
        "smoke": plan.smoke,
        "machine": describe_machine(pipe),
        "data": {"name": plan.run.data, "train_images": len(split.train), "test_images": len(split.test)},
        **describe_networks(pipe, judge, plan, split, seconds=seconds),
        "samples": describe_samples(best, split),
        "sweep": [{"method": d.method, "guidance": d.guidance, **d.scores} for drawn in draws.values() for d in drawn],
        "speed": measure_speed(pipe, plan, best["exact"].guidance or 1.0),
        "recipe": plan.run.model_dump(mode="json"),
        "total_seconds": time.perf_counter() - start,
    }
    write_results(out, report, pipe, split, best=best)
    return report


def draw(pipe: Pipeline, judge: Judge, split: Split, *, count: int, method: str, guidance: float) -> Draw:
    """Sample `count` images and have them judged against the training images."""
    labels = torch.arange(count) % pipe.config.num_classes
    pixels = pipe.sample_pixels(labels, method=method, guidance=guidance, seed=SEED)
    return Draw(method, guidance, pixels, labels, evaluate.measure_samples(judge, pixels, labels, split.train))


def measure_speed(pipe: Pipeline, plan: Plan, guidance: float) -> Numbers:
    """Milliseconds per image of every sampler at every batch size, from noise to pixels, score step included.

    The ratio is that of the exact inverse with guidance to the reverse model with the same guidance.
    """

    def timed(method: str, strength: float) -> Any:
        return lambda size: pipe.sample_pixels([0] * size, method=method, guidance=strength, seed=SEED)

    samplers = {
        "exact_guided": timed("sequential", guidance),
        "exact": timed("sequential", 0),
        "reverse_guided": timed("reverse", guidance),
        "reverse": timed("reverse", 0),
    }
    batches = {}
    for size in plan.batch_sizes:
        times = evaluate.milliseconds_per_image(samplers, size, plan.timings)
        batches[str(size)] = times | {"ratio": times["exact_guided"] / times["reverse_guided"]}
    return {"guidance": guidance, "milliseconds_per_image_by_batch_size": batches}


def describe_machine(pipe: Pipeline) -> Numbers:
    """What the run was measured on."""
    return {
        "device": str(pipe.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_networks(
    pipe: Pipeline, judge: Judge, plan: Plan, split: Split, *, seconds: Mapping[str, float]
) -> dict[str, Numbers]:
    """Size, cost and quality of everything that was trained."""
    model = pipe.model
    assert model.reverse is not None

    def trained(module: nn.Module, config: FitConfig, stage: str) -> Numbers:
        parameters = evaluate.count_parameters(module)
        return {"parameters": parameters, "steps": config.steps, "train_seconds": seconds[stage]}

    return {
        "flow": trained(model.flow, plan.run.fit_flow, "flow") | evaluate.measure_flow(model, split.test),
        "reverse": trained(model.reverse, plan.run.fit_reverse, "reverse")
        | evaluate.measure_reverse(model, split.test),
        "judge": {"what": JUDGE} | trained(judge, plan.judge, "judge") | evaluate.measure_judge(judge, split),
    }


def describe_samples(best: Mapping[str, Draw], split: Split) -> Numbers:
    """Everything measured of the samples of each way."""
    distances = {sampler: drawn.scores["frechet_distance"] for sampler, drawn in best.items()}
    return {
        "count": len(best["exact"].labels),
        "seed": SEED,
        "labels": "every class equally often",
        "guidance": "of those tried, the strength that gives each way of sampling its lowest Frechet distance",
        **{
            sampler: {
                "method": drawn.method,
                "guidance": drawn.guidance,
                **drawn.scores,
                **evaluate.measure_copying(drawn.pixels, split.train),
            }
            for sampler, drawn in best.items()
        },
        "frechet_ratio_reverse_to_exact": distances["reverse"] / distances["exact"],
    }


def write_results(out: Path, report: Numbers, pipe: Pipeline, split: Split, *, best: Mapping[str, Draw]) -> None:
    """The samples, the numbers, and the page that shows both."""
    for sampler, drawn in best.items():
        write_npz(out / f"samples_{sampler}.npz", drawn.pixels, drawn.labels)
    write_text(out / "report.json", json.dumps(_rounded(report), indent=2) + "\n")
    way, back = evaluate.follow_one_image(pipe.model, split.test)
    samples = {sampler: drawn.pixels for sampler, drawn in best.items()}
    pictures = Pictures(split.test, **samples, labels=best["exact"].labels, way_to_noise=way, way_back=back)
    write_text(out / "report.html", render_report(report, read_history(out / HISTORY_FILE), pictures))


def _rounded(value: Any) -> Any:
    """Numbers to four significant digits, as deep as they lie."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
