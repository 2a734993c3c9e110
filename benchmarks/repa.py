"""Gains and cost of alignment with an encoder (FlowBack, arXiv 2511.22345), scaled down to two CPU cores.

    python benchmarks/repa.py --data digits --seeds 3        # under an hour and a half
    python benchmarks/repa.py --seeds 1 --steps 60 --every 20 --samples 100 --runs runs/try --out runs/try   # a test

Trains flows without alignment and with each strategy, for the same steps from the same initial weights, and measures
single-gradient classification accuracy and the Fréchet distance of exact-inverse samples during and after training.
Then trains a reverse model for the plain flow and for the one aligned by `reverse`.  Also: linear probes of every
layer, the gradient of `reverse` against that of the exact inverse, and the training speed of every strategy.  An
interrupted command resumes.  Writes docs/results/repa.{md,json,png}.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console
from runs import trained, trained_judge
from seeds import decide, summary

from biflow.checkpoint import load_model
from biflow.config import AlignConfig, FlowConfig, ModelConfig, RunConfig, load_recipe
from biflow.data.augment import add_noise
from biflow.data.datasets import load_data
from biflow.data.randomness import seeded_weights
from biflow.distributed import World
from biflow.evaluation.html import COLOURS, style
from biflow.evaluation.metrics import calibration_error
from biflow.features.classifier import Classifier
from biflow.features.encoders import make_encoder
from biflow.features.judge import Judge
from biflow.files import write_text
from biflow.inference.classify import classify_images
from biflow.inference.probe import probe
from biflow.models.forward_flow import ForwardFlow
from biflow.models.model import Model, new_model
from biflow.models.patches import patchify
from biflow.pipeline import Pipeline
from biflow.quickstart.measures import SampleScorer, measure_flow
from biflow.training.alignment import Alignment
from biflow.training.batches import Batch
from biflow.training.loop import Hook, Report, Trainer
from biflow.training.objectives import FitFlow
from biflow.training.provenance import describe_machine

RECIPES = {"digits": "biflow_digits"}
STRATEGIES = ("none", "forward", "detach", "reverse")
TIMED = (*STRATEGIES, "reverse_literal", "reverse_sequential")
LAYERS = "[[3, 2], [4, 2]]"  # the last two blocks of four, the last layer of two
STEPS, SAMPLES, EVERY = 2000, 2000, 200
CURVE_SAMPLES = 500  # per measurement during training
PAPER_SPEED = {"none": 2.11, "forward": 2.11, "detach": 1.93, "reverse": 1.87}  # it/s (table 5; forward is plain there)
PAPER_SPEED["reverse_literal"] = PAPER_SPEED["reverse"]  # the paper does not say which of the two it timed
ROUNDS = 8  # of timing
DRAWS = (4, 16)  # noise draws per classified image, besides one
SWEEPS = (1, 2, 4, 8, 16)
STRENGTHS = (0.0, 0.125, 0.25, 0.375, 0.5)  # guidance of the learned inverse
SEED = 0

Scores = Mapping[str, Sequence[Mapping[str, Any]]]  # strategy -> one per seed


class Work(NamedTuple):
    """Shared by all jobs."""

    data: str
    steps: int
    samples: int
    every: int
    runs: Path


def settings(work: Work, seed: int, overrides: Sequence[str]) -> RunConfig:
    """The recipe with the benchmark's steps and seed, and the overrides of a row."""
    shared = [f"seed={seed}", f"fit_flow.steps={work.steps}", f"fit_reverse.steps={work.steps}"]
    return load_recipe(RECIPES[work.data], [*shared, *overrides])


def train_flow(work: Work, job: tuple[int, str]) -> Path:
    """Train a flow with one alignment strategy for one seed, with measurements during training."""
    seed, strategy = job
    overrides = ["stage=flow", "model.reverse=null"]
    if strategy != "none":
        overrides.append(f"fit_flow.align={{strategy: {strategy}, layers: {LAYERS}}}")
    folder = work.runs / f"seed_{seed}" / strategy
    watch = partial(follow, work, folder / "curve.jsonl")
    config, data = settings(work, seed, overrides), load_data(work.data).train
    return trained(config, data, folder, console=Console(quiet=True), watch=watch)


def follow(work: Work, path: Path, stage: str, trainer: Trainer) -> Sequence[Hook]:
    """A hook that measures the averaged flow every few steps and saves the curve to a file."""
    if stage != "flow":
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = [line for line in lines if line["step"] <= trainer.step]
    score = scorer(work, CURVE_SAMPLES)

    def hook(report: Report) -> None:
        if report.step % work.every:
            return
        flow, _ = trainer.plain.networks(trainer.averaged_model())
        assert flow
        lines.append({"step": report.step, **score(flow)})
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    return [hook]


def scorer(work: Work, samples: int) -> Callable[[ForwardFlow], dict[str, float]]:
    """A function that measures a flow: single-gradient accuracy, and samples of its exact inverse."""
    data = load_data(work.data)
    measure = SampleScorer(judge_of(work), data.train)

    def score(flow: ForwardFlow) -> dict[str, float]:
        model = Model(flow.config, data.test.class_names, flow, None)
        pipe, labels = Pipeline(model), torch.arange(samples) % flow.config.num_classes
        found = classify_images(model, data.test.images)
        drawn = pipe.sample_pixels(labels, method="sequential", seed=SEED)
        return {
            "accuracy": (found.labels == data.test.labels).double().mean().item(),
            "calibration_error": calibration_error(found.probabilities, data.test.labels),
            "frechet_distance": measure(drawn, labels)["frechet_distance"],
        }

    return score


def score_flow(work: Work, job: tuple[int, str]) -> None:
    """Train a flow and measure it in full."""
    folder = train_flow(work, job)
    path = folder.parent / "scores.json"
    of = repr((work.samples, SEED, DRAWS, "content"))
    if path.exists() and json.loads(path.read_text())["of"] == of:
        return
    data, model = load_data(work.data), load_model(folder)
    scores: dict[str, Any] = {**scorer(work, work.samples)(model.flow), **measure_flow(model, data.test)}
    methods: dict[str, dict[str, Any]] = {
        **{f"accuracy_of_{draws}": {"draws": draws} for draws in DRAWS},
        "accuracy_by_steps": {"method": "steps"},
        "accuracy_by_bayes": {"method": "bayes"},
    }
    for name, options in methods.items():
        found = classify_images(model, data.test.images, **options)
        scores[name] = (found.labels == data.test.labels).double().mean().item()
    probes = probe(model, data.train, data.test)
    scores["probes"] = {f"{block}, {layer}": accuracy for (block, layer), accuracy in probes.items()}
    write_text(path, json.dumps({"of": of, "scores": scores}) + "\n")


def score_reverse(work: Work, job: tuple[int, str]) -> None:
    """Train a reverse model for a flow, and measure its samples."""
    seed, strategy = job
    flow = train_flow(work, job)
    overrides = ["stage=reverse", f"flow_from={flow}", "model.reverse.guidance=two_passes"]
    config, data = settings(work, seed, overrides), load_data(work.data).train
    folder = trained(config, data, work.runs / f"seed_{seed}" / f"{strategy}_inverse", console=Console(quiet=True))
    path, of = folder.parent / "scores.json", repr((work.samples, SEED))
    if path.exists() and json.loads(path.read_text())["of"] == of:
        return
    pipe = Pipeline.from_pretrained(folder)
    labels, measure = torch.arange(work.samples) % pipe.config.num_classes, SampleScorer(judge_of(work), data)
    found = [measure(pipe.sample_pixels(labels, guidance=w, seed=SEED), labels) for w in STRENGTHS]
    best = min(found, key=lambda each: each["frechet_distance"])
    scores = {**found[0], **{f"best_{key}": value for key, value in best.items()}}
    write_text(path, json.dumps({"of": of, "scores": scores}) + "\n")


def judge_of(work: Work) -> Judge:
    """The reference classifier of all rows and seeds, trained before the jobs start."""
    return trained_judge(settings(work, 0, []), load_data(work.data).train, work.runs / "judge")


def share_to_reach(curve: Sequence[Mapping[str, float]], key: str, target: float, *, low: bool) -> float | None:
    """Fraction of the training steps at which a curve first reaches a target, or None if it never does."""
    good = [line["step"] for line in curve if (line[key] <= target if low else line[key] >= target)]
    return good[0] / curve[-1]["step"] if good else None


def agreement(work: Work, model_folder: Path) -> dict[str, float]:
    """Cosine between the gradients of `reverse` and of the exact inverse on a trained flow, by sweeps; in float64."""
    model, data = load_model(model_folder), load_data(work.data)
    flow = model.flow.double().requires_grad_()
    images = model.codec.encode(data.test.images[:64]).double()
    noisy = add_noise(images, range(64), model.config.noise_std, "agreement")
    patches, labels = patchify(noisy, model.config.patch_size), data.test.labels[:64]
    shape = tuple(data.test.images.shape[1:])

    def gradient(strategy: str, sweeps: int = 1) -> torch.Tensor:
        fields = {"strategy": strategy, "layers": yaml.safe_load(LAYERS), "sweeps": sweeps}
        align = AlignConfig.model_validate(fields)
        with seeded_weights(SEED):
            encoder = make_encoder(align, classifier=Classifier(shape[0], model.config.num_classes))
            alignment = Alignment(align, model.config, encoder, image_shape=shape).double()
        flow.zero_grad()
        alignment(flow, flow(patches, labels), labels, images).backward()
        return torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])

    exact = gradient("reverse_sequential")
    found = {f"reverse, {sweeps} sweep{'s' * (sweeps > 1)}": gradient("reverse", sweeps) for sweeps in SWEEPS}
    return {name: torch.cosine_similarity(each, exact, dim=0).item() for name, each in found.items()}


def throughput(blocks: int, layers: int, width: int, aligned: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Speed of a training step with every strategy relative to no alignment; 64 patches, batch 16, fastest of 8."""
    flow_config = FlowConfig(blocks=blocks, layers=layers, width=width, head_width=32)
    config = ModelConfig(image_size=16, channels=1, patch_size=2, num_classes=10, noise_std=0.1, flow=flow_config)
    images = torch.randn(16, 1, 16, 16)
    batch = Batch(images, images + 0.1, torch.arange(16) % 10, torch.zeros(16))
    fit, world = load_recipe("biflow_digits").fit_flow, World(0, 1, torch.device("cpu"))
    trainers = {}
    for strategy in TIMED:
        flow = new_model(config, ()).flow
        alignment = None
        if strategy != "none":
            align = AlignConfig(strategy=strategy, layers=aligned)
            encoder = make_encoder(align, classifier=Classifier(1, 10))
            alignment = Alignment(align, config, encoder, image_shape=(1, 16, 16))
        trainers[strategy] = Trainer(FitFlow(flow, alignment), fit, world)
        trainers[strategy]._take_step(batch)
    best = dict.fromkeys(TIMED, float("inf"))
    for turn in range(ROUNDS):
        for strategy, trainer in trainers.items():
            if turn and strategy == "reverse_sequential":  # slow; once is enough
                continue
            start = time.perf_counter()
            trainer._take_step(batch)
            best[strategy] = min(best[strategy], time.perf_counter() - start)
    return {strategy: best["none"] / best[strategy] for strategy in TIMED}


def claims(scores: Scores, reach: Scores, inverses: Scores) -> dict[str, str]:
    """The paper's claims and ours by a short name, each with its verdict."""

    def gains(better: str, worse: str, key: str, *, sign: int = 1, of: Scores = scores) -> list[float]:
        return [sign * (a[key] - b[key]) for a, b in zip(of[better], of[worse], strict=True)]

    points = {"reverse": "aligned by reverse", "forward": "aligned by forward", "detach": "aligned by detach"}
    lines = {}
    for strategy, text in points.items():
        found = decide([100 * gain for gain in gains(strategy, "none", "accuracy")])
        line = f"- A flow {text} has higher single-gradient accuracy: **{found.outcome}** (by {found} points)"
        lines[f"accuracy {strategy}"] = line
    drawn = f"accuracy_of_{DRAWS[-1]}"
    for strategy, text in points.items():
        found = decide([100 * gain for gain in gains(strategy, "none", drawn)])
        line = f"- The same with {DRAWS[-1]} noise draws, {text}: **{found.outcome}** (by {found} points)"
        lines[f"{drawn} {strategy}"] = line
    for strategy, text in points.items():
        found = decide(gains(strategy, "none", "frechet_distance", sign=-1))
        lines[f"FD {strategy}"] = f"- Samples of a flow {text} are better: **{found.outcome}** (FD lower by {found})"
    for other in ("forward", "detach"):
        found = decide(gains("reverse", other, "frechet_distance", sign=-1))
        line = f"- Reverse gives better samples than {other}: **{found.outcome}** (FD lower by {found})"
        lines[f"FD reverse over {other}"] = line
    faster = decide([1 - (each["frechet_distance"] or 1) for each in reach["reverse"]])  # None counts as no saving
    lines["reach"] = (
        f"- Reverse reaches the plain flow's final FD in fewer steps (3.3 times fewer in the paper): "
        f"**{faster.outcome}** (fraction of the steps saved: {faster})"
    )
    found = decide(gains("reverse", "none", "frechet_distance", sign=-1, of=inverses))
    text = f"- The learned inverse of an aligned flow is better: **{found.outcome}** (FD lower by {found})"
    return {**lines, "inverse": text}


def render(work: Work, seeds: int, found: Mapping[str, Any]) -> str:
    """The page."""
    scores, reach, inverses = found["scores"], found["reach"], found["inverses"]
    columns = {
        "accuracy": ("accuracy: gradient", 100),
        **{f"accuracy_of_{draws}": (f"gradient, {draws} draws", 100) for draws in DRAWS},
        "accuracy_by_steps": ("steps", 100),
        "accuracy_by_bayes": ("bayes", 100),
        "calibration_error": ("calibration error", 100),
        "frechet_distance": ("FD, exact inverse", 1),
        "test_bits_per_dim_of_noisy_data": ("bits/dim", 1),
    }
    head = ["alignment", *(name for name, _ in columns.values()), "steps to plain accuracy", "steps to plain FD"]
    rows = []
    for strategy in STRATEGIES:
        cells = [strategy]
        for key, (_, factor) in columns.items():
            cells.append(summary([factor * each[key] for each in scores[strategy]]) + ("%" if factor == 100 else ""))
        for key in ("accuracy", "frechet_distance"):
            shares = [each[key] for each in reach[strategy]]
            cells.append(", ".join("never" if share is None else f"{share:.2f}" for share in shares))
        rows.append(cells)
    inverse_rows = []
    for strategy in ("none", "reverse"):
        distances = [each["frechet_distance"] for each in inverses[strategy]]
        accuracies = [100 * each["class_accuracy"] for each in inverses[strategy]]
        best = [each["best_frechet_distance"] for each in inverses[strategy]]
        inverse_rows.append([strategy, summary(distances), f"{summary(accuracies, 1)}%", summary(best)])
    speed_rows = []
    for strategy in TIMED:
        speeds = [f"{found['throughput'][shape][strategy]:.2f}" for shape in found["throughput"]]
        paper = PAPER_SPEED.get(strategy)
        speed_rows.append([strategy, *speeds, f"{paper / PAPER_SPEED['none']:.2f}" if paper else ""])
    return "\n".join(
        [
            "# Alignment with an encoder",
            "",
            f"Written by `python benchmarks/repa.py --data {work.data} --seeds {seeds}`: flows trained for",
            f"{work.steps:,} steps, aligned at [block, layer] `{LAYERS}` with a small image classifier as the encoder,",
            f"weight 0.1. Mean and standard deviation over {seeds} seeds.",
            "",
            "- **accuracy**: classification of the test images by one gradient of the likelihood, by its mean over",
            "  several noise draws, by ten gradient steps (`steps`), and by evaluating every class (`bayes`).",
            f"- **FD**: Fréchet distance of {work.samples:,} samples without guidance, in the features of a reference",
            "  classifier, which is not the encoder; lower is better.",
            "- **steps to plain accuracy, steps to plain FD**: fraction of the training steps after which a flow is as",
            f"  good as the plain flow at the end of training, one value per seed; {CURVE_SAMPLES} samples every",
            f"  {work.every} steps.",
            "",
            *table(head, rows),
            "",
            "![Accuracy and Fréchet distance over the training steps](repa.png)",
            "",
            "## The learned inverse of an aligned flow",
            "",
            "A reverse model trained for the plain flow and for the flow aligned by `reverse`; class accuracy is the",
            "share of samples that the reference classifier assigns to their label.",
            "",
            *table(["flow", "FD, one pass", "class accuracy", "FD, best guidance"], inverse_rows),
            "",
            "## Training speed",
            "",
            "Steps per second relative to training without alignment.",
            "",
            *table(["alignment", *found["throughput"], "paper (table 5)"], speed_rows),
            "",
            "## Linear probes",
            "",
            "Test accuracy of a logistic regression on the hidden states of every [block, layer], averaged over",
            "patches; block 1 is the one at the data. The flow reads the images with training noise and without a",
            "label; the probe is fitted on the training images. The last row is the flow's own single-gradient",
            "classification, for which nothing is fitted.",
            "",
            *probe_table(scores),
            "",
            "## The gradient of `reverse` and that of the exact inverse",
            "",
            "Cosine between the gradients of the alignment term, at the same layers with a newly initialised",
            "projector, on a trained plain flow in float64.",
            "",
            *table(["", "cosine"], [[name, f"{value:.4f}"] for name, value in found["agreement"].items()]),
            "",
            "## Claims",
            "",
            "A claim **holds** (or **does not hold**) if zero lies outside the 95% interval (Student's t) of the",
            "difference paired by seed; intervals are not corrected for multiple claims.",
            "",
            *claims(scores, reach, inverses).values(),
            "",
        ]
    )


def probe_table(scores: Scores) -> list[str]:
    """Accuracy of the probes of every [block, layer], by strategy."""
    rows = []
    for layer in scores["none"][0]["probes"]:
        found = [[100 * each["probes"][layer] for each in scores[strategy]] for strategy in STRATEGIES]
        rows.append([f"[{layer}]", *(f"{summary(values, 1)}%" for values in found)])
    gradient = [[100 * each["accuracy"] for each in scores[strategy]] for strategy in STRATEGIES]
    rows.append(["one gradient", *(f"{summary(values, 1)}%" for values in gradient)])
    return table(["[block, layer]", *STRATEGIES], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


PANELS = {"accuracy": "single-gradient accuracy", "frechet_distance": "Fréchet distance, exact inverse"}


def draw(path: Path, curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> None:
    """Accuracy and Fréchet distance over the training steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        draw_curves(axes, curves, key)
        style(axes, title, "step")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_curves(axes: Any, curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], key: str) -> None:
    """One metric over the training steps: for every strategy, the mean and the range over seeds."""
    for colour, (strategy, seeds) in zip(COLOURS, curves.items(), strict=False):
        steps = [line["step"] for line in seeds[0]]
        values = torch.tensor([[line[key] for line in seed] for seed in seeds])
        axes.plot(steps, values.mean(0), color=colour, label=strategy, linewidth=1.6)
        axes.fill_between(steps, values.amin(0), values.amax(0), color=colour, alpha=0.15, linewidth=0)


def gather(work: Work, seeds: Sequence[int]) -> dict[str, Any]:
    """All measurements, read from their files."""

    def read(folder: str) -> list[Any]:
        texts = [(work.runs / f"seed_{seed}" / folder / "scores.json").read_text() for seed in seeds]
        return [json.loads(text)["scores"] for text in texts]

    def curve(seed: int, strategy: str) -> list[Any]:
        text = (work.runs / f"seed_{seed}" / strategy / "curve.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    curves = {strategy: [curve(seed, strategy) for seed in seeds] for strategy in STRATEGIES}
    reach: dict[str, list[dict[str, float | None]]] = {strategy: [] for strategy in STRATEGIES}
    for strategy in STRATEGIES:
        for ours, plain in zip(curves[strategy], curves["none"], strict=True):
            reach[strategy].append(
                {
                    key: share_to_reach(ours, key, plain[-1][key], low=key == "frechet_distance")
                    for key in ("accuracy", "frechet_distance")
                }
            )
    return {
        "scores": {strategy: read(strategy) for strategy in STRATEGIES},
        "inverses": {strategy: read(f"{strategy}_inverse") for strategy in ("none", "reverse")},
        "curves": curves,
        "reach": reach,
        "agreement": agreement(work, work.runs / f"seed_{seeds[0]}" / "none" / "model"),
        "throughput": {
            "4 blocks x 2 layers x 64": throughput(4, 2, 64, [(3, 1), (4, 1)]),
            "8 blocks x 8 layers x 128": throughput(8, 8, 128, [(7, 6), (8, 6)]),
        },
    }


def one_thread() -> None:
    """Jobs run in parallel, one core each."""
    torch.set_num_threads(1)


def main() -> None:
    """Train and score what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=RECIPES, default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--every", type=int, default=EVERY, help="steps between measurements")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--jobs", type=int, default=2, help="parallel training runs, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/repa"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    work = Work(arguments.data, arguments.steps, arguments.samples, arguments.every, arguments.runs.resolve())
    seeds = range(arguments.seeds)
    judge_of(work)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=spawn, initializer=one_thread) as pool:
        list(pool.map(partial(score_flow, work), [(seed, name) for seed in seeds for name in STRATEGIES]))
        list(pool.map(partial(score_reverse, work), [(seed, name) for seed in seeds for name in ("none", "reverse")]))
    found = gather(work, seeds)
    draw(arguments.out / "repa.png", found["curves"])
    page = render(work, len(seeds), found)
    numbers = {"machine": describe_machine(torch.device("cpu")), **work._asdict(), "runs": None, **found}
    write_text(arguments.out / "repa.json", json.dumps(numbers, indent=1) + "\n")
    write_text(arguments.out / "repa.md", page)
    print(page)


if __name__ == "__main__":
    main()
