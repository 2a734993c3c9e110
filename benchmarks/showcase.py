"""A trained model on real images: one pass beside the exact inverse, in numbers and in pictures.

    python benchmarks/showcase.py runs/fashion_mnist --data fashion_mnist

Samples with every method at its best guidance strength, measures Fréchet distances in the features of the reference
classifier of `claims.py` and of EfficientNet-Lite0, class accuracy and times, and draws uncurated grids.  Writes
docs/results/DATA.{md,json,png}.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from claims import CHOOSING, METHODS, SCORING, STUDIES, Scorer, Work, images_of
from machine import described
from torch import Tensor

from biflow.config.records import finished_in
from biflow.data.images import make_grid
from biflow.evaluation.html import INK
from biflow.files import replace_file, write_text
from biflow.inference.classify import classify_images
from biflow.pipeline import Pipeline
from biflow.training.provenance import describe_machine

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
DRAWN = {"reverse": "one pass", "sequential": "exact inverse, patch by patch", "jacobi": "exact inverse, Jacobi"}
TIMED = 128  # images
COLUMNS, ROWS = 10, 8  # of each grid


def seconds_per_batch(pipe: Pipeline, method: str, guidance: float, repeats: int = 3) -> float:
    """Seconds to sample one batch, the fastest of several after one to warm up."""
    labels = torch.arange(TIMED) % pipe.config.num_classes
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        pipe.sample_pixels(labels, method=method, guidance=guidance, seed=SCORING)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(pipe: Pipeline, scorer: Scorer, method: str, samples: int) -> dict[str, Any]:
    """The scores of a method at its best strength, chosen on other noise."""
    labels = torch.arange(samples) % pipe.config.num_classes

    def drawn(strength: float, seed: int) -> Tensor:
        return pipe.sample_pixels(labels, method=method, guidance=strength, seed=seed)

    tried = {w: scorer.distance("judge", drawn(w, CHOOSING))[0] for w in STRENGTHS}
    strength = min(tried, key=lambda w: tried[w])
    pixels = drawn(strength, SCORING)
    distance, found = scorer.distance("judge", pixels)
    return {
        "guidance": strength,
        "tried": tried,
        "frechet_distance": distance,
        "efficientnet": scorer.distance("efficientnet", pixels)[0],
        "class_accuracy": (found.logits.argmax(dim=1) == labels).double().mean().item(),
        "seconds": seconds_per_batch(pipe, method, strength),
    }


def draw(path: Path, grids: Mapping[str, Tensor]) -> None:
    """Grids of images side by side, each with its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(grids), 3.6), layout="constrained")
    for axes, (title, pixels) in zip(figure.subplots(1, len(grids)), grids.items(), strict=True):
        grid = make_grid(pixels, columns=COLUMNS).permute(1, 2, 0).squeeze(-1).numpy()
        axes.imshow(grid, cmap="gray" if grid.ndim == 2 else None, interpolation="nearest")
        axes.set_title(title, fontsize=11, color=INK)
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def render(found: Mapping[str, Any]) -> str:
    """The page."""
    name, real, rows, stages = found["data"], found["real"], found["rows"], found["stages"]
    mark = ", trained on" if found["finished_in"] == "efficientnet" else ""
    minutes = {stage: facts["seconds"] / 60 for stage, facts in stages.items()}
    spent = ", ".join(
        f"{stage} {stages[stage]['steps']:,} steps in {value:.0f} minutes" for stage, value in minutes.items()
    )
    lines = [
        f"# {name.replace('_', ' ').capitalize()}",
        "",
        f"![Uncurated: training images, exact samples and one-pass samples, a row per class]({name}.png)",
        "",
        "The first samples by index, a column per class, each method at its best guidance strength; times are for",
        f"{TIMED} images in one batch.",
        "",
        f"| | FD | FD, EfficientNet{mark} | accuracy | w | {TIMED} images | speed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    slowest = max(row["seconds"] for row in rows.values())
    for method, row in rows.items():
        cells = [DRAWN[method], f"{row['frechet_distance']:.2f}", f"{row['efficientnet']:.0f}"]
        cells += [f"{row['class_accuracy']:.1%}", f"{row['guidance']:g}", f"{1000 * row['seconds']:,.0f} ms"]
        cells.append(f"{slowest / row['seconds']:,.0f} times")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        f"| as many test images | {real['judge']:.2f} | {real['efficientnet']:.0f} | {real['accuracy']:.1%} | | | |",
        "",
        "- **FD**: Fréchet distance to 10,000 training images in the features of a classifier that only measures.",
        "- **accuracy**: share of samples that it assigns to their label, and of test images to theirs.",
        "- **w**: the guidance strength with the lowest FD on other noise.",
    ]
    if mark:
        lines.append("- **trained on**: finishing lowered the Fréchet distance in features of this network.")
    lines += [
        "",
        f"Trained with `{found['train_command']}`: {spent}, {sum(minutes.values()):.0f} minutes in all, on",
        f"{found['trained_on']}. Classification of the test images by the likelihood: "
        + ", ".join(f"{method} {found['classification'][method]:.1%}" for method in METHODS)
        + f". Test images have {found['bits_per_dim']:.2f} bits/dim with uniform noise.",
        "",
        f"Written by `{found['command']}`: {found['samples']:,} samples a row, on {described(found['machine'])}.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, draw and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a training run")
    parser.add_argument("--data", choices=STUDIES, default="fashion_mnist")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"), help="where claims.py keeps its classifier")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args(arguments)
    work = Work(options.data, STUDIES[options.data], options.samples, (options.runs / options.data).resolve())
    pipe, data, scorer = Pipeline.from_pretrained(options.run / "model"), images_of(work), Scorer(work)
    training: Any = pipe.training or {}
    rows = {method: measure(pipe, scorer, method, options.samples) for method in DRAWN}
    test = data.test.take(slice(options.samples))
    distance, found = scorer.distance("judge", test.images)
    right = {name: classify_images(pipe.model, test.images, method=name).labels == test.labels for name in METHODS}
    numbers = {
        "data": options.data,
        "samples": options.samples,
        "rows": rows,
        "real": {
            "judge": distance,
            "efficientnet": scorer.distance("efficientnet", test.images)[0],
            "accuracy": (found.logits.argmax(dim=1) == test.labels).double().mean().item(),
        },
        "classification": {name: each.double().mean().item() for name, each in right.items()},
        "bits_per_dim": pipe.log_prob(test.images, test.labels).bits_per_dim.mean().item(),
        "stages": training["stages"],
        "finished_in": finished_in(training),
        "trained_on": training["device"],
        "train_command": f"biflow train {work.study.recipe} --out {options.run}",
        "command": f"python benchmarks/showcase.py {options.run} --data {options.data}",
        "machine": describe_machine(pipe.device),
    }
    labels = torch.arange(COLUMNS * ROWS) % pipe.config.num_classes
    columns = [(data.train.labels == label).nonzero()[:ROWS] for label in range(COLUMNS)]
    grids = {"training images": data.train.images[torch.cat(columns, dim=1).flatten()]}
    for method in ("sequential", "reverse"):
        title = f"{DRAWN[method]}: {1000 * rows[method]['seconds'] / TIMED:,.1f} ms an image"
        drawn = pipe.sample_pixels(labels, method=method, guidance=rows[method]["guidance"], seed=SCORING)
        grids[title] = drawn
    draw(options.out / f"{options.data}.png", grids)
    write_text(options.out / f"{options.data}.json", json.dumps(numbers, indent=1) + "\n")
    write_text(options.out / f"{options.data}.md", render(numbers))
    print(render(numbers))


if __name__ == "__main__":
    main()
