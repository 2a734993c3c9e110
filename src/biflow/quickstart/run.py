"""The whole story on real images: train a flow on the digits, learn its inverse, sample both ways, measure, report."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from biflow._version import __version__
from biflow.config import FitConfig, RunConfig, load_recipe, smoke, smoke_fit
from biflow.data.datasets import ImageSet, load_data
from biflow.data.images import write_npz
from biflow.errors import InputError
from biflow.evaluation.cost import count_parameters, milliseconds_per_image
from biflow.extras import require
from biflow.features.judge import Judge, save_judge
from biflow.files import replace_file, write_text
from biflow.pipeline import Pipeline
from biflow.quickstart import measures
from biflow.quickstart.report import Pictures, render_report, side_by_side
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
    """What a quickstart trains, and how much it draws and times."""

    run: RunConfig
    judge: FitConfig
    samples: int = 1000
    strengths: Sequence[float] = (0.0, 0.0625, 0.125, 0.25, 0.375, 0.5, 1.0)  # of guidance, tried both ways
    timings: Sequence[tuple[int, int]] = ((1, 20), (256, 4))  # batch size, repeats
    classified: int | None = None  # test images that the flow classifies, None for all
    smoke: bool = False

    def guidances(self, sampler: str) -> list[Guidance]:
        """What a sampler is tried with; the exact inverse also with guidance that grows over the patches.

        That is half as strong on average, so it is not tried at the weakest.
        """
        constant = [Guidance(strength) for strength in self.strengths]
        annealed = [Guidance(strength, annealed=True) for strength in self.strengths if strength >= 0.25]
        return constant + annealed if sampler == "exact" else constant


class Draw(NamedTuple):
    """Images drawn one way with one guidance, and what the judge says of them."""

    guidance: Guidance
    pixels: Tensor  # uint8 (N, P, H, W)
    labels: Tensor  # (N,)
    scores: Mapping[str, float]

    def describe(self) -> Numbers:
        """Guidance and scores, for the report."""
        return {"guidance": self.guidance.strength, "annealed": self.guidance.annealed, **self.scores}


def make_plan(overrides: Iterable[str] = (), *, small: bool = False) -> Plan:
    """The full size, or one that shows within a minute that everything works."""
    plan = Plan(load_recipe(RECIPE, overrides), CLASSIFIER_FIT)
    if not small:
        return plan
    return Plan(
        smoke(plan.run),
        smoke_fit(CLASSIFIER_FIT),
        samples=100,
        strengths=(0.0, 1.0),
        timings=((1, 1), (256, 1)),
        classified=60,
        smoke=True,
    )


def run_quickstart(out: Path, plan: Plan, *, resume: bool, console: Console) -> Numbers:
    """Train, sample and measure in the folder `out`; returns what report.json holds."""
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

    console.print(f"sampling {plan.samples:,} images each way, at {len(plan.strengths)} strengths of guidance")
    measure = measures.SampleJudge(judge, split.train)
    draws = {sampler: draw_all(pipe, measure, sampler, plan) for sampler in METHODS}
    best = {sampler: min(drawn, key=lambda d: d.scores["frechet_distance"]) for sampler, drawn in draws.items()}
    console.print("timing every sampler")
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
        "real": measure(split.test.images, split.test.labels),
        "samples": describe_samples(best),
        "classification": measures.measure_classification(pipe.model, classified),
        "sweep": {sampler: [each.describe() for each in drawn] for sampler, drawn in draws.items()},
        "speed": measure_speed(pipe, plan, best),
        "recipe": plan.run.model_dump(mode="json"),
        "total_seconds": time.perf_counter() - start,
    }
    write_results(out, report, pipe, best, test=split.test)
    return report


def draw_all(pipe: Pipeline, measure: measures.SampleJudge, sampler: str, plan: Plan) -> list[Draw]:
    """Sample with every guidance of the plan, every class equally often, always from the same noise."""
    labels = torch.arange(plan.samples) % pipe.config.num_classes
    draws = []
    for guidance in plan.guidances(sampler):
        pixels = pipe.sample_pixels(labels, method=METHODS[sampler], guidance=guidance, seed=SEED)
        draws.append(Draw(guidance, pixels, labels, measure(pixels, labels)))
    return draws


def measure_speed(pipe: Pipeline, plan: Plan, best: Mapping[str, Draw]) -> Numbers:
    """Milliseconds per image of every sampler at every batch size, from drawing the noise to the pixels.

    The exact inverse includes its score step.  The ratio is that of both samplers with guidance.
    """

    def timed(sampler: str, *, guided: bool) -> Callable[[int], Tensor]:
        guidance = (best[sampler].guidance if best[sampler].guidance.strength else Guidance(1.0)) if guided else 0.0
        method = METHODS[sampler]
        return lambda size: pipe.sample_pixels([0] * size, method=method, guidance=guidance, seed=SEED)

    samplers = {
        f"{sampler}{'_guided' if guided else ''}": timed(sampler, guided=guided)
        for sampler in METHODS
        for guided in (True, False)
    }
    batches: Numbers = {}
    for size, repeats in plan.timings:
        times = milliseconds_per_image(samplers, size, repeats)
        batches[str(size)] = times | {"ratio_guided": times["exact_guided"] / times["reverse_guided"]}
    return {"milliseconds_per_image_by_batch_size": batches}


def describe_networks(
    pipe: Pipeline, judge: Judge, plan: Plan, seconds: Mapping[str, float], *, test: ImageSet
) -> dict[str, Numbers]:
    """Size, cost and quality of everything that was trained."""
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


def describe_samples(best: Mapping[str, Draw]) -> Numbers:
    """The samples of each way with the guidance that suits it best."""
    distances = {sampler: drawn.scores["frechet_distance"] for sampler, drawn in best.items()}
    return {
        "count": len(best["exact"].labels),
        "seed": SEED,
        "labels": "every class equally often",
        "guidance": "of those tried, what gives each way of sampling its lowest Frechet distance",
        **{sampler: drawn.describe() for sampler, drawn in best.items()},
        "frechet_ratio_reverse_to_exact": distances["reverse"] / distances["exact"],
    }


def write_results(out: Path, report: Numbers, pipe: Pipeline, best: Mapping[str, Draw], *, test: ImageSet) -> None:
    """The samples, the numbers, and the page that shows both."""
    for sampler, drawn in best.items():
        write_npz(out / f"samples_{sampler}.npz", drawn.pixels, drawn.labels)
    write_text(out / "report.json", json.dumps(_rounded(report), indent=2) + "\n")
    there, back = measures.follow_one_image(pipe.model, test)
    samples = {sampler: drawn.pixels for sampler, drawn in best.items()}
    pictures = Pictures(test, **samples, labels=best["exact"].labels, way_to_noise=there, way_back=back)
    write_text(out / "report.html", render_report(report, read_history(out / HISTORY_FILE), pictures))
    with replace_file(out / "samples.png") as temporary:
        side_by_side(pictures).save(temporary, format="PNG")


def _rounded(value: Any) -> Any:
    """Numbers to four significant digits, as deep as they lie."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
