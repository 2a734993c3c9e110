"""The quickstart: train a flow and its reverse model on the digits, sample with both, evaluate, and write a report."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from biflow._version import __version__
from biflow.config import FitConfig, RunConfig, load_recipe, smoke, smoke_fit
from biflow.data.datasets import ImageSet, load_data
from biflow.data.npz import write_npz
from biflow.errors import InputError
from biflow.evaluation.cost import count_parameters, milliseconds_per_image
from biflow.evaluation.report import map_numbers
from biflow.extras import require
from biflow.features.judge import Judge, save_judge
from biflow.files import replace_file, write_text
from biflow.pipeline import Pipeline
from biflow.quickstart import measures
from biflow.quickstart.report import ReportImages, render_report, side_by_side
from biflow.sampling.guidance import Guidance
from biflow.training.hooks import read_history
from biflow.training.provenance import describe_machine
from biflow.training.run import HISTORY_FILE, MODEL_FOLDER, keep_model, open_run
from biflow.training.stages import CLASSIFIER_FIT, fit_judge, train_model

RECIPE = "biflow_digits"
JUDGE = "a small convolutional network, trained on the training images and their one-pixel shifts, never on samples"
JUDGE_FOLDER = "judge"
SEED = 0
METHODS = {"exact": "sequential", "reverse": "reverse"}  # name in the report -> method of the pipeline
Numbers = dict[str, Any]


class Plan(NamedTuple):
    """What a quickstart trains, and the sizes of its measurements."""

    run: RunConfig
    judge: FitConfig
    samples: int = 1000
    strengths: Sequence[float] = (0.0, 0.0625, 0.125, 0.25, 0.375, 0.5, 1.0)  # of guidance, tried with each method
    timings: Sequence[tuple[int, int]] = ((1, 20), (256, 4))  # batch size, repeats
    classified: int | None = None  # test images that the flow classifies; None for all
    smoke: bool = False

    def guidances(self, sampler: str) -> list[Guidance]:
        """The guidance settings of a sampler's sweep; for the exact inverse also annealed over the patches.

        Annealed guidance is half as strong on average, so the weakest strengths are left out.
        """
        constant = [Guidance(strength) for strength in self.strengths]
        annealed = [Guidance(strength, annealed=True) for strength in self.strengths if strength >= 0.25]
        return constant + annealed if sampler == "exact" else constant


class SweepResult(NamedTuple):
    """Samples of one method at one guidance setting, and their metrics."""

    guidance: Guidance
    pixels: Tensor  # uint8 (N, P, H, W)
    labels: Tensor  # (N,)
    scores: Mapping[str, float]

    def describe(self) -> Numbers:
        """Guidance and metrics, for the report."""
        return {"guidance": self.guidance.strength, "annealed": self.guidance.annealed, **self.scores}


def make_plan(overrides: Iterable[str] = (), *, small: bool = False) -> Plan:
    """The full plan, or a small one that checks within a minute that everything works."""
    plan = Plan(load_recipe(RECIPE, overrides), CLASSIFIER_FIT)
    if not small:
        return plan
    sizes: Any = {"samples": 100, "strengths": (0.0, 1.0), "timings": ((1, 1), (256, 1)), "classified": 60}
    return plan._replace(run=smoke(plan.run), judge=smoke_fit(plan.judge), **sizes, smoke=True)


def run_quickstart(out: Path, plan: Plan, *, resume: bool, console: Console) -> Numbers:
    """Train, sample and evaluate in the folder `out`; returns the contents of report.json."""
    start = time.perf_counter()
    require("matplotlib")
    split = load_data(plan.run.data)
    classified = split.test.take(slice(plan.classified))
    with open_run(plan.run, split.train, out, resume=resume, console=console) as run:
        if run.world.size > 1:
            raise InputError("Expected one process for the quickstart; got several. Use biflow train with torchrun.")
        trained = train_model(run)
        seconds = dict(trained.seconds)
        judge, seconds["judge"] = fit_judge(run, plan.judge)
    keep_model(run, trained, out / MODEL_FOLDER)
    save_judge(judge, out / JUDGE_FOLDER)
    pipe = Pipeline.from_pretrained(out / MODEL_FOLDER).to(run.world.device)

    console.print(f"sampling {plan.samples:,} images per method and guidance, at {len(plan.strengths)} strengths")
    scorer = measures.SampleScorer(judge, split.train)
    sweep = {sampler: sweep_guidance(pipe, scorer, sampler, plan) for sampler in METHODS}
    best = {sampler: min(tried, key=lambda each: each.scores["frechet_distance"]) for sampler, tried in sweep.items()}
    console.print("timing each method")
    report = {
        "biflow": __version__,
        "smoke": plan.smoke,
        "resumed": resume,
        "machine": describe_machine(run.world.device),
        "data": {
            "name": plan.run.data,
            "train_images": len(split.train),
            "test_images": len(split.test),
            "classified_images": len(classified),
        },
        **describe_networks(pipe, judge, plan, seconds, test=split.test),
        "real": scorer(split.test.images, split.test.labels),
        "samples": describe_samples(best),
        "classification": measures.measure_classification(pipe.model, classified),
        "sweep": {sampler: [each.describe() for each in tried] for sampler, tried in sweep.items()},
        "speed": measure_speed(pipe, plan, best),
        "recipe": plan.run.model_dump(mode="json"),
        "total_seconds": time.perf_counter() - start,
    }
    write_results(out, report, pipe, best, test=split.test)
    return report


def sweep_guidance(pipe: Pipeline, scorer: measures.SampleScorer, sampler: str, plan: Plan) -> list[SweepResult]:
    """Sample at every guidance setting of the plan, with balanced classes and the same noise each time."""
    labels = torch.arange(plan.samples) % pipe.config.num_classes
    results = []
    for guidance in plan.guidances(sampler):
        pixels = pipe.sample_pixels(labels, method=METHODS[sampler], guidance=guidance, seed=SEED)
        results.append(SweepResult(guidance, pixels, labels, scorer(pixels, labels)))
    return results


def measure_speed(pipe: Pipeline, plan: Plan, best: Mapping[str, SweepResult]) -> Numbers:
    """Milliseconds per image of every sampler at every batch size, from sampling the noise to pixels.

    The exact inverse includes its score step.  `ratio_guided` compares both samplers with guidance.
    """

    def sample(size: int, method: str, guidance: Guidance) -> Tensor:
        return pipe.sample_pixels([0] * size, method=method, guidance=guidance, seed=SEED)

    samplers: dict[str, Callable[[int], Tensor]] = {}
    for sampler, method in METHODS.items():
        guidance = best[sampler].guidance if best[sampler].guidance.strength else Guidance(1.0)
        samplers[f"{sampler}_guided"] = partial(sample, method=method, guidance=guidance)
        samplers[sampler] = partial(sample, method=method, guidance=Guidance(0.0))
    batches: Numbers = {}
    for size, repeats in plan.timings:
        times = milliseconds_per_image(samplers, size, repeats)
        batches[str(size)] = times | {"ratio_guided": times["exact_guided"] / times["reverse_guided"]}
    return {"milliseconds_per_image_by_batch_size": batches}


def describe_networks(
    pipe: Pipeline, judge: Judge, plan: Plan, seconds: Mapping[str, float], *, test: ImageSet
) -> dict[str, Numbers]:
    """Size, training time and quality of every trained network."""
    model = pipe.model
    assert model.reverse is not None

    def trained(module: nn.Module, config: FitConfig, stage: str) -> Numbers:
        parameters = count_parameters(module)
        return {"parameters": parameters, "steps": config.steps, "train_seconds": seconds[stage]}

    return {
        "flow": trained(model.flow, plan.run.fit_flow, "flow") | measures.measure_flow(model, test),
        "reverse": trained(model.reverse, plan.run.fit_reverse or plan.run.fit_flow, "reverse")
        | measures.measure_reverse(model, test),
        "judge": {"what": JUDGE} | trained(judge, plan.judge, "judge"),
    }


def describe_samples(best: Mapping[str, SweepResult]) -> Numbers:
    """The samples of each method at its best guidance."""
    distances = {sampler: result.scores["frechet_distance"] for sampler, result in best.items()}
    return {
        "count": len(best["exact"].labels),
        "seed": SEED,
        "labels": "balanced",
        "guidance": "for each method, the one of the sweep with the lowest frechet_distance",
        **{sampler: result.describe() for sampler, result in best.items()},
        "frechet_ratio_reverse_to_exact": distances["reverse"] / distances["exact"],
    }


def write_results(
    out: Path, report: Numbers, pipe: Pipeline, best: Mapping[str, SweepResult], *, test: ImageSet
) -> None:
    """Write the samples, the numbers, and the page that shows both."""
    for sampler, result in best.items():
        write_npz(out / f"samples_{sampler}.npz", result.pixels, result.labels)
    rounded = map_numbers(report, lambda number: float(f"{number:.4g}"))
    write_text(out / "report.json", json.dumps(rounded, indent=2) + "\n")
    forward, reverse = measures.trace_first_image(pipe.model, test)
    samples = {sampler: result.pixels for sampler, result in best.items()}
    images = ReportImages(test, samples, best["exact"].labels, forward, reverse)
    write_text(out / "report.html", render_report(report, read_history(out / HISTORY_FILE), images))
    with replace_file(out / "samples.png") as temporary:
        side_by_side(images).save(temporary, format="PNG")
