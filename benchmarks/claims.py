"""The claims of both papers on real images, where they can be told apart.

    python examples/fashion_mnist.py data/fashion_mnist
    python benchmarks/claims.py --data fashion_mnist          # hours on two CPU cores
    python benchmarks/claims.py --data fashion_mnist --steps 20 --samples 100 --runs runs/try --out runs/try   # a test

Trains a flow with and without bounded outputs and with every alignment, and a reverse model in every variant, each from
the data set's recipe with one thing changed.  Measures one-pass and exact samples at their best guidance strengths, in
the features of a classifier that nothing was trained with and in those of EfficientNet-Lite0.  Whatever is finished is
kept in runs/claims, so an interrupted command resumes.  Writes docs/results/claims_DATA.{md,json}.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ablations
import torch
from ablations import Claim, Row, one_thread
from rich.console import Console
from runs import trained
from seeds import decide, summary
from studies import CHOOSING, METHODS, SCORING, STUDIES, Scorer, Work, images_of, settings, work_of
from torch import Tensor

from biflow.checkpoint import load_model
from biflow.config import ReverseConfig, load_recipe
from biflow.evaluation.metrics import Gaussian, frechet_distance
from biflow.files import write_text
from biflow.inference.classify import classify_images
from biflow.inference.probe import probe
from biflow.models.model import Model
from biflow.pipeline import Pipeline
from biflow.sampling.guidance import Guidance
from biflow.training.loop import Hook, Report, Trainer
from biflow.training.provenance import describe_machine

TABLE_HEAD = ["", "FD", "FD, EfficientNet", "accuracy", "w"]
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5)
FOLLOWED = 10  # measurements of a flow during its training
FOLLOWED_IMAGES = 1000  # classified, and half as many sampled, in each of them
PROBED = 10_000  # training images of the linear probes
BOOTSTRAPS = 200
INPUT_SIZE = 64  # of images, for EfficientNet

FLOWS = {
    "bounded": ["model.flow.clip=1.0"],
    "unbounded": ["model.flow.clip=null"],
    "three blocks": ["model.flow.clip=1.0", "model.flow.blocks=3"],
    "deep-shallow": ["model.flow.clip=1.0", "model.flow.layers=[5, 1, 1, 1]"],
}
ALIGNED = ("forward", "detach", "reverse")
UNGUIDED = "model.reverse.guidance=two_passes"
FEATURES = "fit_reverse.distances=[{{kind: mse}}, {{kind: efficientnet, weight: 0.4, input_size: {size}}}]"
FINISH = "fit_finish={{steps: {steps}, features: {{kind: efficientnet, input_size: {size}}}}}"
TRAININGS: Mapping[str, tuple[str, list[str]]] = {  # name: (flow, settings of the reverse model)
    "base": ("bounded", [UNGUIDED]),
    "naive": ("bounded", [UNGUIDED, "model.reverse.strategy=naive"]),
    "distillation": ("bounded", [UNGUIDED, "model.reverse.strategy=distillation"]),
    "noisy": ("bounded", [UNGUIDED, "model.reverse.denoising=score"]),
    "unbounded": ("unbounded", [UNGUIDED, "model.reverse.normalise=false"]),
    "unnormalised": ("bounded", [UNGUIDED, "model.reverse.normalise=false"]),
    "features": ("bounded", [UNGUIDED, FEATURES]),
    "finished": ("bounded", [UNGUIDED, FINISH]),
    "guided": ("bounded", ["model.reverse.guidance=trained"]),
    "of aligned": ("reverse", [UNGUIDED]),
}

SHARED = ("Strategy", "Denoising")  # tables of the digits
TABLES: Mapping[str, Sequence[Row]] = {
    "One pass against the exact inverse": (
        Row("exact inverse", "base", method="sequential", guided=True),
        Row("one pass", "base", guided=True),
        Row("one pass, finished", "finished", guided=True),
    ),
    **{name: ablations.TABLES[name] for name in SHARED},
    "Norm control": (
        Row("no control", "unbounded", 45.54),
        Row("bounded flow", "unnormalised"),
        Row("bounded flow, normalised trajectory", "base", 31.88),
    ),
    "Distance": (
        Row("MSE", "base", 31.88),
        Row("MSE + EfficientNet", "features", 14.15),
        Row("MSE, finished in EfficientNet", "finished"),
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
    Claim(FIRST, "one pass, finished", "exact inverse", "The same, finished in EfficientNet features"),
    *(claim for claim in ablations.CLAIMS if claim.table in SHARED),
    Claim("Norm control", "bounded flow", "no control", "Bounding the flow beats no control"),
    Claim("Norm control", "bounded flow, normalised trajectory", "bounded flow", "Normalising the trajectory helps"),
    Claim("Distance", "MSE + EfficientNet", "MSE", "A feature distance beats MSE"),
    Claim("Distance", "MSE, finished in EfficientNet", "MSE", "Finishing beats MSE"),
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
    config = settings(work, seed, ["stage=flow", "model.reverse=null", "fit_reverse=null", *flow_settings(work, name)])
    folder = work.runs / f"seed_{seed}" / f"flow_{name}"
    watch = partial(follow, work, folder / "curve.jsonl")
    return trained(config, images_of(work).train, folder, console=Console(quiet=True), watch=watch)


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


def train_reverse(work: Work, seed: int, name: str) -> Path:
    """The model folder of a reverse model, trained unless it exists."""
    flow, overrides = TRAININGS[name]
    finish = max(1, work.study.reverse_steps // 4)
    filled = [each.format(size=INPUT_SIZE, steps=finish) if "{{" in each else each for each in overrides]
    source = train_flow(work, (seed, flow))
    same = FLOWS.get(flow, FLOWS["bounded"])
    config = settings(work, seed, ["stage=reverse", f"flow_from={source}", *same, *filled])
    folder = work.runs / f"seed_{seed}" / f"reverse_{name.replace(' ', '_')}"
    return trained(config, images_of(work).train, folder, console=Console(quiet=True))


def score_row(work: Work, job: tuple[int, Row]) -> None:
    """Train what a row needs, and score its samples."""
    seed, row = job
    path = row_path(work, seed, row)
    if path.exists():
        return
    model, scorer = load_model(train_reverse(work, seed, row.training)), Scorer(work)
    if row.sampled_as and model.reverse:
        model.reverse.config = ReverseConfig(**{**model.reverse.config.model_dump(), **dict(row.sampled_as)})
    pipe, labels = Pipeline(model), torch.arange(work.samples) % model.config.num_classes

    def drawn(strength: float, seed: int) -> Tensor:
        guidance = Guidance(strength, denoise=row.denoise)
        return pipe.sample_pixels(labels, method=row.method, guidance=guidance, seed=seed)

    tried = {w: scorer.distance("judge", drawn(w, CHOOSING))[0] for w in STRENGTHS} if row.guided else {0.0: 0.0}
    strength = min(tried, key=lambda w: tried[w])
    pixels = drawn(strength, SCORING)
    distance, found = scorer.distance("judge", pixels)
    scores = {"guidance": strength, "tried": tried, "frechet_distance": distance}
    scores["efficientnet"] = scorer.distance("efficientnet", pixels)[0]
    scores["class_accuracy"] = (found.logits.argmax(dim=1) == labels).double().mean().item()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found.pooled, path.with_suffix(".pt"))
    write_text(path, json.dumps(scores) + "\n")


def row_path(work: Work, seed: int, row: Row) -> Path:
    """The file of a row's scores; rows that are measured alike share one."""
    how = f"{row.training}_{row.method}_{dict(row.sampled_as)}_{row.guided}_{row.denoise}"
    words = "_".join("".join(letter if letter.isalnum() else " " for letter in how).lower().split())
    return work.runs / f"seed_{seed}" / "scores" / f"{words}.json"


def score_flow(work: Work, job: tuple[int, str]) -> None:
    """Train a flow, and measure classification by its likelihood, its exact samples and its features."""
    folder = train_flow(work, job)
    path = folder.parent / "scores.json"
    if path.exists():
        return
    model, data, scorer = load_model(folder), images_of(work), Scorer(work)
    right = {
        method: classify_images(model, data.test.images, method=method).labels == data.test.labels for method in METHODS
    }
    scores: dict[str, Any] = {method: found.double().mean().item() for method, found in right.items()}
    labels = torch.arange(work.samples) % model.config.num_classes
    drawn = Pipeline(model).sample_pixels(labels, method="sequential", seed=SCORING)
    scores["frechet_distance"], found = scorer.distance("judge", drawn)
    probes = probe(model, data.train.take(slice(PROBED)), data.test)
    scores["probes"] = {f"{block}, {layer}": accuracy for (block, layer), accuracy in probes.items()}
    torch.save({"right": right["gradient"], "pooled": found.pooled}, folder.parent / "scores.pt")
    write_text(path, json.dumps(scores) + "\n")


def interval(better: Tensor, worse: Tensor, measure: Callable[[Tensor], float]) -> str:
    """The difference of a measure of paired items (N, ...), lower in the first, and whether it is beyond chance.

    Both are resampled by the same indices; the interval holds 95% of the differences.
    """
    generator = torch.Generator().manual_seed(0)
    gains = []
    for _ in range(BOOTSTRAPS):
        indices = torch.randint(len(better), (len(better),), generator=generator)
        gains.append(measure(worse[indices]) - measure(better[indices]))
    low, high = torch.tensor(gains).quantile(torch.tensor([0.025, 0.975])).tolist()
    outcome = "holds" if low > 0 else "does not hold" if high < 0 else "too close to tell"
    return f"**{outcome}** (by {low:.3g} to {high:.3g})"


def verdict(work: Work, claim: Claim, seeds: Sequence[int], reference: Gaussian) -> str:
    """Whether a claim holds: by the spread over seeds, or of resampled samples if there is one seed."""
    rows = {row.name: row for row in TABLES[claim.table]}
    paths = {name: [row_path(work, seed, rows[name]) for seed in seeds] for name in (claim.better, claim.worse)}
    if len(seeds) > 1:
        better, worse = ([json.loads(path.read_text())["frechet_distance"] for path in paths[name]] for name in paths)
        found = decide([b - a for a, b in zip(better, worse, strict=True)])
        return f"- {claim.text}: **{found.outcome}** (FD lower by {found})"
    better, worse = (torch.load(paths[name][0].with_suffix(".pt"), weights_only=True) for name in paths)
    found = interval(better, worse, lambda pooled: frechet_distance(Gaussian.fit(pooled), reference))
    return f"- {claim.text}: {found}"


def render(found: Mapping[str, Any]) -> str:
    """The page: the tables, then the claims."""
    study, real, seeds = found["study"], found["real"], found["seeds"]
    spread = f"{seeds} seeds, mean and standard deviation" if seeds > 1 else "one seed"
    lines = [
        f"# Claims on {study['title']}",
        "",
        f"Written by `{found['command']}`: {study['flow_steps']:,} steps for every",
        f"flow and {study['reverse_steps']:,} for every reverse model, {found['samples']:,} samples per row, {spread}.",
        "",
        "- **FD**: Fréchet distance to 10,000 training images in the features of a classifier that no row was trained",
        f"  with ({real['judge']:.2f} for as many test images, of which it classifies",
        f"  {real['accuracy']:.1%}); lower is better.",
        "- **FD, EfficientNet**: the same in those of EfficientNet-Lite0",
        f"  ({real['efficientnet']:.1f} for test images).",
        "- **accuracy**: share of samples that the classifier assigns to their label.",
        "- **w**: guidance strength. Rows without it are not guided; the others use the strength with the lowest FD on",
        "  separate noise.",
        "- **paper's FID**: BiFlow-B/2 on ImageNet 256x256 (arXiv 2512.10953); compare only the order of the rows.",
    ]
    for name, rows in TABLES.items():
        head = [name, *TABLE_HEAD[1:], "paper's FID"]
        lines += ["", f"## {name}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for row in rows:
            scores = found["rows"][name][row.name]
            cells = [summary([each[key] for each in scores], 1) for key in ("frechet_distance", "efficientnet")]
            cells.append(summary([100 * each["class_accuracy"] for each in scores], 1) + "%")
            cells.append(", ".join(f"{each['guidance']:g}" for each in scores) if row.guided else "")
            lines.append(f"| {' | '.join([row.name, *cells, '' if row.paper is None else f'{row.paper:.2f}'])} |")
    lines += ["", "## Alignment with EfficientNet", "", *flow_table(found["flows"])]
    lines += [
        "",
        "## Claims",
        "",
        "A claim **holds** (or **does not hold**) if zero lies outside the 95% interval of the",
    ]
    lines += [
        "difference, by Student's t over seeds, or for one seed by resampling the samples, which leaves out the spread"
    ]
    lines += ["between trainings. Intervals are not corrected for multiple claims.", "", *found["claims"]]
    return "\n".join(lines) + "\n"


def flow_table(flows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Every flow: classification by likelihood, exact samples, best probe, and steps to the plain flow's figures."""
    head = ["alignment", "accuracy: gradient", "bayes", "FD, exact inverse", "best probe", "steps to plain accuracy"]
    head.append("steps to plain FD")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, seeds in flows.items():
        cells = [summary([100 * each[method] for each in seeds], 1) + "%" for method in METHODS]
        cells.append(summary([each["frechet_distance"] for each in seeds], 1))
        best = [max(each["probes"].items(), key=lambda item: item[1]) for each in seeds]
        cells.append(", ".join(f"{100 * accuracy:.1f}% at [{layer}]" for layer, accuracy in best))
        for key in ("accuracy", "frechet_distance"):
            shares = [each["reach"][key] for each in seeds]
            cells.append(", ".join("never" if share is None else f"{share:.1f}" for share in shares))
        lines.append(f"| {' | '.join(['none' if name == 'bounded' else name, *cells])} |")
    return lines


def share_to_reach(curve: Sequence[Mapping[str, float]], key: str, target: float) -> float | None:
    """Fraction of the training steps at which a curve first reaches a target, or None if it never does."""
    good = [
        line["step"] for line in curve if (line[key] <= target if key == "frechet_distance" else line[key] >= target)
    ]
    return good[0] / curve[-1]["step"] if good else None


def gather(work: Work, seeds: Sequence[int], command: str) -> dict[str, Any]:
    """All measurements, read from their files, and the verdicts."""
    scorer, test = Scorer(work), images_of(work).test
    distance, found = scorer.distance("judge", test.images[: work.samples])
    right = found.logits.argmax(dim=1) == test.labels[: work.samples]
    real = {"judge": distance, "accuracy": right.double().mean().item()}
    real["efficientnet"] = scorer.distance("efficientnet", test.images[: work.samples])[0]
    rows = {
        name: {row.name: [json.loads(row_path(work, seed, row).read_text()) for seed in seeds] for row in table}
        for name, table in TABLES.items()
    }
    flows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("bounded", *ALIGNED)}
    for seed in seeds:
        folders = {name: work.runs / f"seed_{seed}" / f"flow_{name}" for name in flows}
        curves = {
            name: [json.loads(line) for line in (each / "curve.jsonl").read_text().splitlines()]
            for name, each in folders.items()
        }
        for name, folder in folders.items():
            reach = {
                key: share_to_reach(curves[name], key, curves["bounded"][-1][key])
                for key in ("accuracy", "frechet_distance")
            }
            flows[name].append(
                {**json.loads((folder / "scores.json").read_text()), "curve": curves[name], "reach": reach}
            )
    claims = [verdict(work, claim, seeds, scorer.references["judge"]) for claim in CLAIMS]
    for name in ALIGNED:
        kept = [
            [torch.load(work.runs / f"seed_{seed}" / f"flow_{each}" / "scores.pt", weights_only=True) for seed in seeds]
            for each in (name, "bounded")
        ]
        if len(seeds) > 1:
            gains = [100 * (flows[name][i]["gradient"] - flows["bounded"][i]["gradient"]) for i in range(len(seeds))]
            text = f"**{(found_ := decide(gains)).outcome}** (by {found_} points)"
        else:
            ours, plain = (each[0]["right"].double() for each in kept)
            text = interval(ours, plain, lambda right: -100 * right.mean().item()) + " points"
        claims.append(f"- A flow aligned by {name} has higher single-gradient accuracy: {text}")
    return {"command": command, "real": real, "rows": rows, "flows": flows, "claims": claims}


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
    Scorer(work)  # trains the classifier and measures the training images, before the jobs share them
    jobs = {row_path(work, seed, row): (seed, row) for seed in seeds for rows in TABLES.values() for row in rows}
    flows = sorted({flow for flow, _ in TRAININGS.values()} | {*ALIGNED})
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn, initializer=one_thread) as pool:
        list(pool.map(partial(score_flow, work), [(seed, name) for seed in seeds for name in flows]))
        first = {(seed, row.training): (seed, row) for seed, row in jobs.values()}  # each trains what others share
        list(pool.map(partial(score_row, work), first.values()))
        list(pool.map(partial(score_row, work), jobs.values()))
    found = gather(work, seeds, f"python benchmarks/claims.py --data {options.data} --seeds {options.seeds}")
    numbers = {
        "machine": describe_machine(torch.device("cpu")),
        "study": work.study._asdict(),
        "seeds": options.seeds,
        "samples": work.samples,
        **found,
    }
    page = render(numbers)
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / f"claims_{options.data}.json", json.dumps(numbers, indent=1) + "\n")
    write_text(options.out / f"claims_{options.data}.md", page)
    print(page)


if __name__ == "__main__":
    main()
