"""What alignment with an encoder gives and costs (FlowBack, arXiv 2511.22345), at a size that two CPU cores train.

    python benchmarks/repa.py --data digits --seeds 3        # under an hour and a half
    python benchmarks/repa.py --seeds 1 --steps 60 --every 20 --samples 100 --runs runs/try --out runs/try   # a trial

Flows without alignment and with each strategy, at equal steps and from the same weights; on the way and at the end the
accuracy by one gradient and the Frechet distance of the exact inverse's samples.  Then a reverse model for the plain
flow and for the one aligned by `reverse`.  Beside it linear probes of every layer, the gradient of `reverse` against
that of the exact inverse, and the speed of every strategy.  Stopped, the command goes on where it was.  Writes
repa.{md,json,png} to docs/results.
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
from seeds import judge, summary

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
PLACES = "[[3, 2], [4, 2]]"  # the last two blocks of four, the last layer of two
STEPS, SAMPLES, EVERY = 2000, 2000, 200
ON_THE_WAY = 500  # samples
PAPER_SPEED = {"none": 2.11, "forward": 2.11, "detach": 1.93, "reverse": 1.87}  # it/s (table 5; forward is plain there)
PAPER_SPEED["reverse_literal"] = PAPER_SPEED["reverse"]  # which of the two was timed is not known
TURNS = 8  # of timing
DRAWS = (4, 16)  # of noise on each image that is classified, beside one
SWEEPS = (1, 2, 4, 8, 16)
STRENGTHS = (0.0, 0.125, 0.25, 0.375, 0.5)  # of guidance, for the learned inverse
SEED = 0

Scores = Mapping[str, Sequence[Mapping[str, Any]]]  # strategy -> one a seed


class Work(NamedTuple):
    """What all jobs share."""

    data: str
    steps: int
    samples: int
    every: int
    runs: Path


def settings(work: Work, seed: int, overrides: Sequence[str]) -> RunConfig:
    """The recipe's own settings, but for the steps, the seed and what a row changes."""
    shared = [f"seed={seed}", f"fit_flow.steps={work.steps}", f"fit_reverse.steps={work.steps}"]
    return load_recipe(RECIPES[work.data], [*shared, *overrides])


def train_flow(work: Work, job: tuple[int, str]) -> Path:
    """A flow with one strategy of alignment, for one seed; measured on the way."""
    seed, strategy = job
    overrides = ["stage=flow", "model.reverse=null"]
    if strategy != "none":
        overrides.append(f"fit_flow.align={{strategy: {strategy}, places: {PLACES}}}")
    folder = work.runs / f"seed_{seed}" / strategy
    watch = partial(follow, work, folder / "curve.jsonl")
    config, data = settings(work, seed, overrides), load_data(work.data).train
    return trained(config, data, folder, console=Console(quiet=True), watch=watch)


def follow(work: Work, path: Path, stage: str, trainer: Trainer) -> Sequence[Hook]:
    """A hook that measures the averaged flow every few steps, and keeps what it finds in a file."""
    if stage != "flow":
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = [line for line in lines if line["step"] <= trainer.step]
    score = scorer(work, ON_THE_WAY)

    def hook(report: Report) -> None:
        if report.step % work.every:
            return
        flow, _ = trainer.plain.networks(trainer.averaged_model())
        assert flow
        lines.append({"step": report.step, **score(flow)})
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    return [hook]


def scorer(work: Work, samples: int) -> Callable[[ForwardFlow], dict[str, float]]:
    """A function that measures a flow: accuracy by one gradient, and the samples of its exact inverse."""
    data = load_data(work.data)
    measure = SampleScorer(judge_of(work), data.train)

    def score(flow: ForwardFlow) -> dict[str, float]:
        model = Model(flow.config, data.test.class_names, flow, None)
        pipe, labels = Pipeline(model), torch.arange(samples) % flow.config.num_classes
        found = classify_images(model, data.test.images, codec=pipe.model.codec)
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
    ways: dict[str, dict[str, Any]] = {
        **{f"accuracy_of_{draws}": {"draws": draws} for draws in DRAWS},
        "accuracy_by_steps": {"method": "steps"},
        "accuracy_by_bayes": {"method": "bayes"},
    }
    for name, way in ways.items():
        found = classify_images(model, data.test.images, codec=Pipeline(model).codec, **way)
        scores[name] = (found.labels == data.test.labels).double().mean().item()
    probes = probe(model, data.train, data.test, codec=Pipeline(model).codec)
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
    """The judge of all rows and seeds, trained before the jobs start."""
    return trained_judge(settings(work, 0, []), load_data(work.data).train, work.runs / "judge")


def share_to_reach(curve: Sequence[Mapping[str, float]], key: str, target: float, *, low: bool) -> float | None:
    """The share of its steps after which a curve is as good as a target, as far as it is measured; none for never."""
    good = [line["step"] for line in curve if (line[key] <= target if low else line[key] >= target)]
    return good[0] / curve[-1]["step"] if good else None


def agreement(work: Work, model_folder: Path) -> dict[str, float]:
    """Cosine of the gradient that `reverse` gives a trained flow with that of its exact inverse, by sweeps; float64."""
    model, data = load_model(model_folder), load_data(work.data)
    flow = model.flow.double().requires_grad_()
    images = Pipeline(model).codec.encode(data.test.images[:64]).double()
    noisy = add_noise(images, range(64), model.config.noise_std, "agreement")
    patches, labels = patchify(noisy, model.config.patch_size), data.test.labels[:64]
    shape = tuple(data.test.images.shape[1:])

    def gradient(strategy: str, sweeps: int = 1) -> torch.Tensor:
        fields = {"strategy": strategy, "places": yaml.safe_load(PLACES), "sweeps": sweeps}
        align = AlignConfig.model_validate(fields)
        with seeded_weights(SEED):
            encoder = make_encoder(align, classifier=Classifier(shape[0], model.config.num_classes))
            alignment = Alignment(align, model.config, encoder, image_shape=shape).double()
        flow.zero_grad()
        alignment(flow, flow(patches, labels), labels, images).backward()
        return torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])

    exact = gradient("reverse_sequential")
    ways = {f"reverse, {sweeps} sweep{'s' * (sweeps > 1)}": ("reverse", sweeps) for sweeps in SWEEPS}
    found = {name: gradient(*way) for name, way in ways.items()}
    return {name: torch.cosine_similarity(each, exact, dim=0).item() for name, each in found.items()}


def throughput(blocks: int, layers: int, width: int, places: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Steps a second of every strategy over those of a plain step, the fastest of some turns; 64 patches, batch 16."""
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
            align = AlignConfig(strategy=strategy, places=places)
            encoder = make_encoder(align, classifier=Classifier(1, 10))
            alignment = Alignment(align, config, encoder, image_shape=(1, 16, 16))
        trainers[strategy] = Trainer(FitFlow(flow, alignment), fit, world)
        trainers[strategy]._take_step(batch)
    best = dict.fromkeys(TIMED, float("inf"))
    for turn in range(TURNS):
        for strategy, trainer in trainers.items():
            if turn and strategy == "reverse_sequential":  # once is enough to see how slow it is
                continue
            start = time.perf_counter()
            trainer._take_step(batch)
            best[strategy] = min(best[strategy], time.perf_counter() - start)
    return {strategy: best["none"] / best[strategy] for strategy in TIMED}


def claims(scores: Scores, reach: Scores, inverses: Scores) -> dict[str, str]:
    """The paper's claims, and ours, by a short name, each with what the seeds say."""

    def gains(better: str, worse: str, key: str, *, sign: int = 1, of: Scores = scores) -> list[float]:
        return [sign * (a[key] - b[key]) for a, b in zip(of[better], of[worse], strict=True)]

    points = {"reverse": "aligned by reverse", "forward": "aligned by forward", "detach": "aligned by detach"}
    lines = {}
    for strategy, text in points.items():
        found = judge([100 * gain for gain in gains(strategy, "none", "accuracy")])
        line = f"- A flow {text} classifies better by one gradient: **{found.outcome}** (by {found} points)"
        lines[f"accuracy {strategy}"] = line
    drawn = f"accuracy_of_{DRAWS[-1]}"
    for strategy, text in points.items():
        found = judge([100 * gain for gain in gains(strategy, "none", drawn)])
        line = f"- The same with {DRAWS[-1]} draws, {text}: **{found.outcome}** (by {found} points)"
        lines[f"{drawn} {strategy}"] = line
    for strategy, text in points.items():
        found = judge(gains(strategy, "none", "frechet_distance", sign=-1))
        lines[f"FD {strategy}"] = f"- Samples of a flow {text} are better: **{found.outcome}** (FD lower by {found})"
    for other in ("forward", "detach"):
        found = judge(gains("reverse", other, "frechet_distance", sign=-1))
        line = f"- Reverse gives better samples than {other}: **{found.outcome}** (FD lower by {found})"
        lines[f"FD reverse over {other}"] = line
    faster = judge([1 - (each["frechet_distance"] or 1) for each in reach["reverse"]])  # never saves nothing
    lines["reach"] = (
        f"- Reverse reaches the plain flow's last FD in fewer steps (the paper's 3.3 times): **{faster.outcome}** "
        f"(a share of {faster} of the steps saved)"
    )
    found = judge(gains("reverse", "none", "frechet_distance", sign=-1, of=inverses))
    text = f"- The learned inverse of an aligned flow is better: **{found.outcome}** (FD lower by {found})"
    return {**lines, "inverse": text}


def render(work: Work, seeds: int, found: Mapping[str, Any]) -> str:
    """The page."""
    scores, reach, inverses = found["scores"], found["reach"], found["inverses"]
    columns = {
        "accuracy": ("accuracy, one gradient", 100),
        **{f"accuracy_of_{draws}": (f"{draws} draws of noise", 100) for draws in DRAWS},
        "accuracy_by_steps": ("ten gradients", 100),
        "accuracy_by_bayes": ("every class", 100),
        "calibration_error": ("calibration error", 100),
        "frechet_distance": ("FD, exact inverse", 1),
        "test_bits_per_dim_of_noisy_data": ("bits/dim", 1),
    }
    head = ["alignment", *(name for name, _ in columns.values()), "steps to plain's accuracy", "to plain's FD"]
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
            f"Written by `python benchmarks/repa.py --data {work.data} --seeds {seeds}`: {work.steps:,} steps for",
            f"every flow, aligned at [block, layer] `{PLACES}` with a small classifier of the images, weight 0.1.",
            f"Mean and standard deviation over {seeds} seeds. FD of {work.samples:,} samples without guidance, in the",
            "features of a judge that is another network. The last two columns: the share of the steps after which a",
            "flow is as good as the plain flow is at the end of its training, of each seed, by",
            f"{ON_THE_WAY} samples every {work.every} steps.",
            "",
            *table(head, rows),
            "",
            "![Curves](repa.png)",
            "",
            "## The learned inverse of an aligned flow",
            "",
            *table(["flow", "FD, one pass", "read as their class", "FD, best guidance"], inverse_rows),
            "",
            "## Steps a second, of a plain flow's",
            "",
            *table(["alignment", *found["throughput"], "paper (table 5)"], speed_rows),
            "",
            "## Linear probes",
            "",
            "A logistic regression on the mean over patches of every [block, layer]'s features, block 1 at the data,",
            "of images with the training noise and no label, fitted on the training images; right on this share of",
            "the test images. The last row is what the flow itself says by one gradient, nothing fitted.",
            "",
            *probe_table(scores),
            "",
            "## The gradient of `reverse` and that of the exact inverse",
            "",
            "Of the alignment at the same places with a fresh projector, on a trained plain flow, in float64.",
            "",
            *table(["", "cosine"], [[name, f"{value:.4f}"] for name, value in found["agreement"].items()]),
            "",
            "## Claims",
            "",
            "Holds, or does not: zero lies outside the 95% interval (Student's t over seeds) of the difference within",
            "each seed, for each claim by itself.",
            "",
            *claims(scores, reach, inverses).values(),
            "",
        ]
    )


def probe_table(scores: Scores) -> list[str]:
    """Accuracy of the probes of every place, by strategy."""
    rows = []
    for place in scores["none"][0]["probes"]:
        found = [[100 * each["probes"][place] for each in scores[strategy]] for strategy in STRATEGIES]
        rows.append([f"[{place}]", *(f"{summary(values, 1)}%" for values in found)])
    gradient = [[100 * each["accuracy"] for each in scores[strategy]] for strategy in STRATEGIES]
    rows.append(["one gradient", *(f"{summary(values, 1)}%" for values in gradient)])
    return table(["place", *STRATEGIES], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


PANELS = {"accuracy": "accuracy by one gradient", "frechet_distance": "Frechet distance, exact inverse"}


def draw(path: Path, curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> None:
    """Accuracy and Frechet distance over the steps, the mean of the seeds and each of them."""
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
    """One measure over the steps: for every strategy the mean of the seeds, and the band that they fill."""
    for colour, (strategy, seeds) in zip(COLOURS, curves.items(), strict=False):
        steps = [line["step"] for line in seeds[0]]
        values = torch.tensor([[line[key] for line in seed] for seed in seeds])
        axes.plot(steps, values.mean(0), color=colour, label=strategy, linewidth=1.6)
        axes.fill_between(steps, values.amin(0), values.amax(0), color=colour, alpha=0.15, linewidth=0)


def gather(work: Work, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that was measured, from its files."""

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
    """Jobs run beside each other, one core each."""
    torch.set_num_threads(1)


def main() -> None:
    """Train and score what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=RECIPES, default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--every", type=int, default=EVERY, help="steps between two measurements")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--jobs", type=int, default=2, help="trainings beside each other, one thread each")
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
