"""Tests the claims of both papers on real images.

    python examples/fashion_mnist.py data/fashion_mnist
    python benchmarks/claims.py --data fashion_mnist          # hours on two CPU cores
    python benchmarks/claims.py --data fashion_mnist --steps 20 --samples 100 --runs runs/try --out runs/try   # a test

Trains a flow with and without bounded outputs and with every alignment, and a reverse model in every variant, each from
the data set's recipe with one thing changed.  Measures one-pass and exact samples at their best guidance strengths, in
the features of a classifier that is part of no loss and in those of EfficientNet-Lite0.  Whatever is finished is
kept in runs/claims, so an interrupted command resumes.  Writes docs/results/claims_DATA.{md,json}.
"""

import argparse
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ablations
import torch
from ablations import Claim, Row, one_thread
from claims_page import PLAIN, render
from machine import command_line
from rich.console import Console
from runs import trained
from seeds import decide, resample
from studies import METHODS, SCORING, STUDIES, TRIED, Scorer, Work, images_of, kept, settings, work_of
from torch import Tensor

from biflow.config import ReverseConfig, RunConfig, load_recipe
from biflow.evaluation.metrics import Gaussian, frechet_distance
from biflow.files import replace_file, write_text
from biflow.inference.classify import classify_images
from biflow.inference.probe import probe
from biflow.models.model import Model
from biflow.pipeline import Pipeline
from biflow.sampling.guidance import Guidance
from biflow.training.loop import Hook, Report, Trainer
from biflow.training.provenance import describe_machine

FOLLOWED = 10  # measurements of a flow during its training
FOLLOWED_IMAGES = 1000  # classified, and half as many sampled, in each of them
PROBED = 10_000  # training images of the linear probes
CURVE, SCORES = "curve.jsonl", "scores.json"
INPUT_SIZE = 64  # of images, for EfficientNet

FLOWS = {
    "bounded": ["model.flow.clip=1.0"],
    "unbounded": ["model.flow.clip=null"],
    "three blocks": ["model.flow.clip=1.0", "model.flow.blocks=3"],
    "deep-shallow": ["model.flow.clip=1.0", "model.flow.layers=[1, 1, 1, 5]"],
}
ALIGNED = ("forward", "detach", "reverse")
UNGUIDED = "model.reverse.guidance=two_passes"
EFFICIENTNET = f"kind: efficientnet, input_size: {INPUT_SIZE}"
FEATURES = f"fit_reverse.distances=[{{kind: mse}}, {{{EFFICIENTNET}, weight: 0.4}}]"


class Training(NamedTuple):
    """How a reverse model is trained: its flow, overrides of the recipe, and the shares of its steps."""

    flow: str
    overrides: tuple[str, ...]
    share: float = 1.0
    finish: float = 0.0  # steps of finishing, as a share of the same

    @property
    def trained_on(self) -> bool:
        """Whether EfficientNet's features were part of the loss."""
        return self.finish > 0 or FEATURES in self.overrides


GUIDED = ("model.reverse.guidance=trained",)
TRAININGS = {
    "base": Training("bounded", (UNGUIDED,)),
    "naive": Training("bounded", (UNGUIDED, "model.reverse.strategy=naive")),
    "distillation": Training("bounded", (UNGUIDED, "model.reverse.strategy=distillation")),
    "noisy": Training("bounded", (UNGUIDED, "model.reverse.denoising=score")),
    "unbounded": Training("unbounded", (UNGUIDED, "model.reverse.normalise=false")),
    "unnormalised": Training("bounded", (UNGUIDED, "model.reverse.normalise=false")),
    "features": Training("bounded", (UNGUIDED, FEATURES)),
    "guided": Training("bounded", GUIDED),
    "finished": Training("bounded", GUIDED, share=0.7, finish=0.12),
    "of aligned": Training("reverse", (UNGUIDED,)),
}

SHARED = ("Strategy", "Denoising")  # tables of the digits
TABLES: Mapping[str, Sequence[Row]] = {
    "One pass against the exact inverse": (
        Row("exact inverse", "guided", method="sequential", guided=True),
        Row("one pass", "guided", guided=True),
        Row("one pass, finished", "finished", guided=True),
    ),
    **{name: ablations.TABLES[name] for name in SHARED},
    "Norm control": (
        Row("no control", "unbounded", 45.54),
        Row("bounded flow", "unnormalised", 31.88),
        Row("bounded flow, normalised trajectory", "base"),
    ),
    "Distance": (
        Row("MSE", "base", 31.88),
        Row("MSE + EfficientNet", "features", 14.15),
    ),
    "Guidance": (
        Row("no guidance", "base"),
        Row("two passes, every block", "base", 6.90, guided=True),
        Row("trained, one pass", "guided", 6.79, guided=True),
        Row("trained, one pass, denoising block unguided", "guided", guided=True, denoise=0.0),
    ),
    "Inverse of an aligned flow": (
        Row("of the plain flow", "base"),
        Row("of the flow aligned by reverse", "of aligned"),
    ),
}

FIRST = "One pass against the exact inverse"
CLAIMS = (
    Claim(FIRST, "one pass", "exact inverse", "One pass beats the exact inverse, each at its best strength"),
    Claim(FIRST, "one pass, finished", "exact inverse", "One pass, finished, beats the exact inverse likewise"),
    Claim(FIRST, "one pass, finished", "one pass", "Finishing beats plain training for about as long"),
    *(claim for claim in ablations.CLAIMS if claim.table in SHARED),
    Claim("Norm control", "bounded flow", "no control", "Bounding the flow beats no control"),
    Claim("Norm control", "bounded flow, normalised trajectory", "bounded flow", "Normalising the trajectory helps"),
    Claim("Distance", "MSE + EfficientNet", "MSE", "A feature distance beats MSE"),
    Claim("Guidance", "two passes, every block", "no guidance", "Guidance beats none"),
    Claim("Guidance", "trained, one pass", "two passes, every block", "Trained guidance beats two passes"),
    Claim(
        "Guidance",
        "trained, one pass, denoising block unguided",
        "trained, one pass",
        "An unguided denoising block beats a guided one",
    ),
    Claim(
        "Inverse of an aligned flow",
        "of the flow aligned by reverse",
        "of the plain flow",
        "The learned inverse of an aligned flow is better",
    ),
)


def flow_settings(work: Work, name: str) -> list[str]:
    """Overrides of a flow, by name; the aligned ones are bounded."""
    if name not in ALIGNED:
        return FLOWS[name]
    blocks = load_recipe(work.study.recipe).model.flow.block_layers
    layers = [[block, max(1, round(0.75 * blocks[block - 1]))] for block in (len(blocks) - 1, len(blocks))]
    align = f"{{encoder: efficientnet, input_size: {INPUT_SIZE}, strategy: {name}, layers: {layers}}}"
    return [*FLOWS["bounded"], f"fit_flow.align={align}"]


def train_flow(work: Work, job: tuple[int, str]) -> Path:
    """The model folder of a flow, trained unless it exists, and measured as it trains."""
    seed, name = job
    folder = flow_folder(work, seed, name)
    watch, data = partial(follow, work, folder / CURVE), images_of(work).train
    return trained(flow_config(work, seed, name), data, folder, console=Console(quiet=True), watch=watch)


def flow_config(work: Work, seed: int, name: str) -> RunConfig:
    """The run of a flow, by name."""
    return settings(work, seed, ["stage=flow", "model.reverse=null", "fit_reverse=null", *flow_settings(work, name)])


def flow_folder(work: Work, seed: int, name: str) -> Path:
    """Where the run of a flow is kept."""
    return work.runs / f"seed_{seed}" / f"flow_{name.replace(' ', '_')}"


def follow(work: Work, path: Path, stage: str, trainer: Trainer) -> Sequence[Hook]:
    """A hook that measures the averaged flow ten times and saves the curve to a file."""
    if stage != "flow":
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = [line for line in lines if line["step"] <= trainer.step]
    every, test, scorer = max(1, trainer.config.steps // FOLLOWED), images_of(work).test, Scorer(work)

    def hook(report: Report) -> None:
        if report.step % every:
            return
        flow, _ = trainer.plain.networks(trainer.averaged_model())
        assert flow
        model = Model(flow.config, test.class_names, flow, None)
        few = test.take(slice(FOLLOWED_IMAGES))
        labels = torch.arange(min(work.samples, FOLLOWED_IMAGES // 2)) % flow.config.num_classes
        drawn = Pipeline(model).sample_pixels(labels, method="sequential", seed=SCORING)
        right = classify_images(model, few.images).labels == few.labels
        distance = scorer.distance("judge", drawn)[0]
        lines.append({"step": report.step, "accuracy": right.double().mean().item(), "frechet_distance": distance})
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    return [hook]


def reverse_settings(work: Work, seed: int, name: str, source: Path) -> RunConfig:
    """The run of a reverse model of the flow in the folder `source`."""
    training, steps = TRAININGS[name], work.study.reverse_steps
    shares = [f"fit_reverse.steps={max(1, round(training.share * steps))}"]
    if training.finish:
        shares.append(f"fit_finish.steps={max(1, round(training.finish * steps))}")
    flow = FLOWS.get(training.flow, FLOWS["bounded"])
    return settings(work, seed, ["stage=reverse", f"flow_from={source}", *flow, *training.overrides, *shares])


def train_reverse(work: Work, seed: int, name: str) -> tuple[Path, RunConfig]:
    """The model folder of a reverse model, trained unless it exists, and its settings."""
    config = reverse_settings(work, seed, name, train_flow(work, (seed, TRAININGS[name].flow)))
    folder = work.runs / f"seed_{seed}" / f"reverse_{name.replace(' ', '_')}"
    return trained(config, images_of(work).train, folder, console=Console(quiet=True)), config


def score_row(work: Work, job: tuple[int, Row]) -> dict[str, Any]:
    """Train what a row needs, and score its samples."""
    seed, row = job
    folder, config = train_reverse(work, seed, row.training)
    scorer, path = Scorer(work), row_path(work, seed, row)
    guidances = TRIED[row.method] if row.guided else ("0",)

    def compute() -> dict[str, Any]:
        pipe = Pipeline.from_pretrained(folder)
        reverse = pipe.model.reverse
        if row.sampled_as and reverse:
            reverse.config = ReverseConfig(**{**reverse.config.model_dump(), **dict(row.sampled_as)})
        labels = torch.arange(work.samples) % pipe.config.num_classes

        def draw(guidance: Guidance, seed: int) -> Tensor:
            guidance = replace(guidance, denoise=row.denoise)
            return pipe.sample_pixels(labels, method=row.method, guidance=guidance, seed=seed)

        scores, pooled = scorer.score(draw, labels, guidances)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path.with_suffix(".pt")) as temporary:
            torch.save(pooled, temporary)
        return {**scores, "minutes": minutes(pipe)}

    how = {**asdict(row), "name": "", "paper": None, "samples": work.samples, "guidances": guidances}
    return kept(path, {**how, "judge": scorer.judge_digest, "run": config.model_dump(mode="json")}, compute)


def minutes(pipe: Pipeline) -> float:
    """Minutes of training after the flow's."""
    training: Any = pipe.training
    return sum(facts["seconds"] for stage, facts in training["stages"].items() if stage != "flow") / 60


def row_facts(row: Row) -> dict[str, Any]:
    """What the page says of a row besides its scores."""
    one_pass = row.method == "reverse"
    trained_on = one_pass and TRAININGS[row.training].trained_on
    return {"guided": row.guided, "one_pass": one_pass, "trained_on": trained_on, "paper": row.paper}


def row_path(work: Work, seed: int, row: Row) -> Path:
    """The file of a row's scores; rows that are measured alike share one."""
    how = {key: value for key, value in asdict(row).items() if key not in {"name", "paper"}}
    words = "_".join("".join(letter if letter.isalnum() else " " for letter in str(list(how.values()))).lower().split())
    return work.runs / f"seed_{seed}" / "scores" / f"{words}.json"


def score_flow(work: Work, job: tuple[int, str]) -> dict[str, Any]:
    """Train a flow, and measure classification by its likelihood, its exact samples and its features."""
    folder = train_flow(work, job)
    data, scorer, path = images_of(work), Scorer(work), folder.parent / SCORES

    def compute() -> dict[str, Any]:
        pipe = Pipeline.from_pretrained(folder)
        right = {
            method: classify_images(pipe.model, data.test.images, method=method).labels == data.test.labels
            for method in METHODS
        }
        labels = torch.arange(work.samples) % pipe.config.num_classes
        drawn = pipe.sample_pixels(labels, method="sequential", seed=SCORING)
        probes = probe(pipe.model, data.train.take(slice(PROBED)), data.test)
        training: Any = pipe.training
        with replace_file(path.with_suffix(".pt")) as temporary:
            torch.save(right["gradient"], temporary)
        return {
            **{method: found.double().mean().item() for method, found in right.items()},
            "frechet_distance": scorer.distance("judge", drawn)[0],
            "probes": {f"{block}, {layer}": accuracy for (block, layer), accuracy in probes.items()},
            "minutes": training["stages"]["flow"]["seconds"] / 60,
        }

    of = {"samples": work.samples, "judge": scorer.judge_digest, "run": flow_config(work, *job).model_dump(mode="json")}
    return kept(path, of, compute)


def reach(curves: Mapping[str, Sequence[Mapping[str, float]]], name: str) -> dict[str, float | None]:
    """The share of the steps at which a flow first has the plain flow's final figures, or None if it never has."""
    found: dict[str, float | None] = {}
    for key, sign in (("accuracy", 1), ("frechet_distance", -1)):
        target = sign * curves[PLAIN][-1][key]
        steps = [line["step"] for line in curves[name] if sign * line[key] >= target]
        found[key] = steps[0] / curves[name][-1]["step"] if steps else None
    return found


def gather_flows(work: Work, seeds: Sequence[int], scores: Mapping[tuple[int, str], Any]) -> dict[str, list[Any]]:
    """The scores and curves of the plain and the aligned flows, a list over seeds for each."""
    found: dict[str, list[Any]] = {name: [] for name in (PLAIN, *ALIGNED)}
    for seed in seeds:
        paths = {name: flow_folder(work, seed, name) / CURVE for name in found}
        curves = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
        for name, rows in found.items():
            rows.append({**scores[seed, name], "curve": curves[name], "reach": reach(curves, name)})
    return found


def verdict(work: Work, claim: Claim, rows: Mapping[str, Sequence[Any]], real: Gaussian) -> str:
    """Whether a claim holds: by the spread over seeds, or of resampled samples if there is one seed."""
    if len(rows[claim.better]) > 1:
        better, worse = ([each["frechet_distance"] for each in rows[name]] for name in (claim.better, claim.worse))
        gains = decide([b - a for a, b in zip(better, worse, strict=True)])
        return f"- {claim.text}: **{gains.outcome}** (FD lower by {gains})"
    table = {row.name: row for row in TABLES[claim.table]}
    better, worse = (
        torch.load(row_path(work, 0, table[name]).with_suffix(".pt"), weights_only=True)
        for name in (claim.better, claim.worse)
    )
    found = resample(better, worse, lambda pooled: frechet_distance(Gaussian.fit(pooled), real))
    return f"- {claim.text}: **{found.outcome}** (FD lower by {found})"


def alignment_verdict(work: Work, name: str, flows: Mapping[str, Sequence[Any]]) -> str:
    """Whether an aligned flow classifies better than the plain one by one gradient."""
    if len(flows[name]) > 1:
        pairs = zip(flows[name], flows[PLAIN], strict=True)
        gains: Any = decide([100 * (ours["gradient"] - plain["gradient"]) for ours, plain in pairs])
    else:
        paths = [flow_folder(work, 0, each) / SCORES for each in (name, PLAIN)]
        ours, plain = (torch.load(path.with_suffix(".pt"), weights_only=True).double() for path in paths)
        gains = resample(ours, plain, lambda right: -100 * right.mean().item())
    return f"- A flow aligned by {name} has higher single-gradient accuracy: **{gains.outcome}** (by {gains} points)"


def main() -> None:
    """Train and score what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=STUDIES, default="fashion_mnist")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="training steps of every network, for a test")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2, help="parallel training runs, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    work = work_of(options.data, options.samples, options.runs, options.steps)
    seeds = range(options.seeds)
    scorer = Scorer(work)  # trains the classifier and measures the training images, before the jobs share them
    jobs = {row_path(work, seed, row): (seed, row) for seed in seeds for rows in TABLES.values() for row in rows}
    flows = sorted({training.flow for training in TRAININGS.values()} | {*ALIGNED})
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn, initializer=one_thread) as pool:
        flow_jobs = [(seed, name) for seed in seeds for name in flows]
        flow_scores = dict(zip(flow_jobs, pool.map(partial(score_flow, work), flow_jobs), strict=True))
        first = {(seed, row.training): (seed, row) for seed, row in jobs.values()}  # each trains what others share
        list(pool.map(partial(score_row, work), first.values()))
        scores = dict(zip(jobs, pool.map(partial(score_row, work), jobs.values()), strict=True))
    rows = {
        name: {row.name: [scores[row_path(work, seed, row)] for seed in seeds] for row in table}
        for name, table in TABLES.items()
    }
    facts = {name: {row.name: row_facts(row) for row in table} for name, table in TABLES.items()}
    found_flows, real = gather_flows(work, seeds, flow_scores), scorer.references["judge"]
    numbers = {
        "machine": {**describe_machine(torch.device("cpu")), "threads": 1},  # of every job
        "command": command_line(),
        "study": work.study._asdict(),
        "seeds": options.seeds,
        "samples": work.samples,
        "references": real.count,
        "real": scorer.real(images_of(work).test, work.samples),
        "rows": rows,
        "facts": facts,
        "flows": found_flows,
        "claims": [verdict(work, claim, rows[claim.table], real) for claim in CLAIMS]
        + [alignment_verdict(work, name, found_flows) for name in ALIGNED],
    }
    page = render(numbers)
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / f"claims_{options.data}.json", json.dumps(numbers, indent=1) + "\n")
    write_text(options.out / f"claims_{options.data}.md", page)
    print(page)


if __name__ == "__main__":
    main()
