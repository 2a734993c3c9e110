"""A trained model on real images: one pass compared with the exact inverse, in numbers and in pictures.

    python benchmarks/showcase.py runs/fashion_mnist --data fashion_mnist

Samples with every method at its best guidance strength, measures Fréchet distances in the features of the reference
classifier of `studies.py` and of EfficientNet-Lite0, class accuracy and times, and draws uncurated grids.  Writes
docs/results/DATA.{md,json,png}.
"""

import argparse
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import command_line, described, seconds
from studies import CPU, METHODS, SCORING, STUDIES, TRIED, Scorer, Work, images_of, kept, work_of
from torch import Tensor

from biflow.config import load_recipe
from biflow.config.base import check_recorded
from biflow.config.records import finished_in
from biflow.data.datasets import ImageSet
from biflow.data.images import make_grid
from biflow.evaluation.html import INK
from biflow.files import replace_file, write_text
from biflow.inference.classify import classify_images
from biflow.pipeline import Pipeline
from biflow.sampling.guidance import Guidance, parse_guidance
from biflow.sampling.options import SamplingOptions
from biflow.tensors import hash_tensors
from biflow.training.provenance import describe_machine
from biflow.training.run import ABOUT_FILE, CONFIG_FILE, HISTORY_FILE

DRAWN = {"reverse": "one pass", "sequential": "exact inverse, patch by patch", "jacobi": "exact inverse, Jacobi"}
BATCHES = (1, 128)  # images, that are timed
COLUMNS, ROWS = 10, 8  # of each grid, at most
MOMENTS = (0.1, 0.25, 0.5, 1.0)  # of a training stage, at which its loss is reported
SMOOTHED = 0.1  # share of the stage that a reported loss is averaged over
LOSSES = {"flow": "nats_per_dim", "reverse": "mse", "finish": "frechet_distance"}  # adaptive losses say little


def seconds_per_batch(pipe: Pipeline, method: str, guidance: str) -> dict[int, float]:
    """Seconds to sample a batch, by its size."""
    options: SamplingOptions = {"method": method, "guidance": parse_guidance(guidance), "seed": SCORING}
    labels = torch.arange(max(BATCHES)) % pipe.config.num_classes
    return {size: seconds(partial(pipe.sample_pixels, labels[:size], **options), pipe.device) for size in BATCHES}


def measure(pipe: Pipeline, scorer: Scorer, method: str, samples: int) -> dict[str, Any]:
    """The scores of a method at its best strength."""
    labels = torch.arange(samples) % pipe.config.num_classes

    def drawn(guidance: Guidance, seed: int) -> Tensor:
        return pipe.sample_pixels(labels, method=method, guidance=guidance, seed=seed)

    return scorer.score(drawn, labels, TRIED[method])[0]


def score_methods(work: Work, pipe: Pipeline, scorer: Scorer) -> dict[str, dict[str, Any]]:
    """The scores of every method, kept for the network that samples, and its time."""
    shared = {"samples": work.samples, "judge": scorer.judge_digest, "device": str(pipe.device)}
    rows = {}
    for method, network in {"reverse": pipe.model.reverse, "sequential": pipe.model.flow}.items():
        assert network is not None
        of = {**shared, "network": hash_tensors(network.state_dict()), "tried": TRIED[method]}
        path = work.runs / "showcase" / f"{method}.json"
        rows[method] = kept(path, of, partial(measure, pipe, scorer, method, work.samples))
    rows["jacobi"] = dict(rows["sequential"])  # the same images
    for method, scores in rows.items():
        scores["seconds"] = seconds_per_batch(pipe, method, scores["guidance"])
    return rows


def losses(run: Path) -> dict[str, dict[str, float]]:
    """The loss of each stage at some moments of it, averaged over the lines before them, at least one."""
    lines = [json.loads(line) for line in (run / HISTORY_FILE).read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[str, float]] = {}
    for stage, key in LOSSES.items():
        own = [line for line in lines if line["stage"] == stage and line.get(key) is not None]
        if own:
            count, share = len(own), max(1, round(SMOOTHED * len(own)))
            ends = {moment: max(share, round(moment * count)) for moment in MOMENTS}
            found[stage] = {
                f"{moment:.0%}": statistics.mean(line[key] for line in own[end - share : end])
                for moment, end in ends.items()
            }
    return found


def revision(git: str | None) -> str:
    """A short git revision, with a plus sign if there were changes."""
    return git[:7] + "+" * git.endswith("+") if git else "unknown"


def draw(path: Path, grids: Mapping[str, Tensor], columns: int) -> None:
    """Grids of images side by side, each with its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(grids), 3.6), layout="constrained")
    for axes, (title, pixels) in zip(figure.subplots(1, len(grids)), grids.items(), strict=True):
        grid = make_grid(pixels, columns=columns).permute(1, 2, 0).squeeze(-1).numpy()
        axes.imshow(grid, cmap="gray" if grid.ndim == 2 else None, interpolation="nearest")
        axes.set_title(title, fontsize=10, color=INK)
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def draw_samples(path: Path, pipe: Pipeline, train: ImageSet, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw training images, exact samples and one-pass samples, a column per class."""
    columns = min(COLUMNS, pipe.config.num_classes)
    labels = torch.arange(columns * ROWS) % columns
    first = [(train.labels == label).nonzero()[:ROWS] for label in range(columns)]
    grids = {"training images": train.images[torch.cat(first, dim=1).flatten()]}
    for method in ("sequential", "reverse"):
        title = f"{DRAWN[method]}: {1000 * rows[method]['seconds'][1]:,.0f} ms for one image"
        guidance = parse_guidance(rows[method]["guidance"])
        grids[title] = pipe.sample_pixels(labels, method=method, guidance=guidance, seed=SCORING)
    draw(path, grids, columns)


def render(found: Mapping[str, Any]) -> str:
    """The page."""
    name, real, rows = found["data"], found["real"], found["rows"]
    mark = ", trained on" if found["finished_in"] == "efficientnet" else ""
    lines = [
        f"# {STUDIES[name].title}",
        "",
        f"![Uncurated: training images, exact samples and one-pass samples, a column per class]({name}.png)",
        "",
        "The first samples by index, a column per class, each method at its best guidance strength. The two exact",
        "inverses give the same images up to Jacobi's tolerance, which are measured once. Times are for one batch,",
        "guided, the fastest of three; in parentheses, relative to one pass.",
        "",
        f"| | FD | FD, EfficientNet{mark} | accuracy | w | {' | '.join(map(count_images, BATCHES))} |",
        f"|{' --- |' * (5 + len(BATCHES))}",
    ]
    enough = real["images"] == found["samples"]  # a Fréchet distance depends on the number of images
    compared = (f"{real['judge']:.2f}", f"{real['efficientnet']:.0f}") if enough else ("", "")
    for method, row in rows.items():
        cells = [DRAWN[method], f"{row['frechet_distance']:.2f}", f"{row['efficientnet']:.0f}"]
        cells += [f"{row['class_accuracy']:.1%}", row["guidance"]]
        for size, taken in row["seconds"].items():
            times = "" if method == "reverse" else f" ({taken / rows['reverse']['seconds'][size]:,.1f} times)"
            cells.append(f"{1000 * taken:,.0f} ms{times}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        f"| {real['images']:,} test images | {' | '.join(compared)} | {real['accuracy']:.1%}"
        + " |" * (2 + len(BATCHES)),
        "",
        f"- **FD**: Fréchet distance to {found['references']:,} training images in the features of a classifier that",
        "  is part of no loss.",
        "- **accuracy**: share of samples that it assigns to their label, and of test images to theirs.",
        "- **w**: the guidance with the lowest FD on other noise.",
    ]
    if mark:
        lines.append("- **trained on**: finishing lowered the Fréchet distance in features of this network.")
    lines += [
        "",
        *by_guidance(rows),
        "",
        "By likelihood alone, the flow classifies "
        + ", ".join(f"{share:.1%} ({method})" for method, share in found["classification"].items())
        + " of these",
        f"test images. They have {found['bits_per_dim']:.2f} bits/dim with uniform noise; the flow was trained with",
        "Gaussian noise instead, as the recipe says.",
        *training_lines(found),
        "",
        f"Written by `{found['command']}`: {found['samples']:,} samples a row, on {described(found['machine'])}.",
    ]
    return "\n".join(lines) + "\n"


def count_images(size: int) -> str:
    """A number of images, in words."""
    return f"{size} image{'s' * (size != 1)}"


def by_guidance(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The distances with all guidance that was tried, on the noise that only chooses among it."""
    tried = TRIED["sequential"]
    lines = [f"| w, while choosing it | {' | '.join(tried)} |", f"|{' --- |' * (1 + len(tried))}"]
    for method, name in {"reverse": DRAWN["reverse"], "sequential": "exact inverse"}.items():
        found = rows[method]["tried"]
        lines.append(f"| FD, {name} | {' | '.join(f'{found[w]:.2f}' if w in found else '' for w in tried)} |")
    return lines


def training_lines(found: Mapping[str, Any]) -> list[str]:
    """The command that trained the model, its time, and the loss to expect."""
    stages, curves = found["stages"], found["losses"]
    minutes = {stage: facts["seconds"] / 60 for stage, facts in stages.items()}
    lines = [
        "",
        "## Training",
        "",
        f"    {found['train_command']}",
        "",
        f"{sum(minutes.values()):.0f} minutes on {found['trained_on']}, in {len(found['revisions'])} sessions, at",
        f"revisions {', '.join(found['revisions'])} (+: with changes).",
        "",
        f"| stage | steps | minutes | {' | '.join(f'loss at {moment}' for moment in curves['flow'])} |",
        f"|{' --- |' * (3 + len(MOMENTS))}",
    ]
    for stage, curve in curves.items():
        cells = [stage, f"{stages[stage]['steps']:,}", f"{minutes[stage]:.0f}"]
        cells += [f"{loss:.3f}" for loss in curve.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Losses: of the flow in nats per dimension; of the reverse model the mean squared error of its images; of",
        "finishing the Fréchet distance relative to the total variance of real features. Each averages the logged",
        "batches of the tenth of the stage before that moment.",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, draw and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a training run")
    parser.add_argument("--data", choices=STUDIES, default="fashion_mnist")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--source", help="the data set, if it is elsewhere, as data= takes it")
    parser.add_argument("--device", type=torch.device, default=CPU)
    parser.add_argument("--judge-steps", type=int, help="training steps of the classifier, for a test")
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"), help="where the classifier is kept")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args(arguments)
    work, device = work_of(options.data, options.samples, options.runs, options.judge_steps), options.device
    changes = [f"data={options.source}"] if options.source else []
    recipe = load_recipe(work.study.recipe, [*work.study.overrides, *changes])
    check_recorded(options.run / CONFIG_FILE, recipe, "Train it with the study's recipe, or choose another --data.")
    work = work._replace(study=work.study._replace(overrides=(*work.study.overrides, *changes)))
    curves, sessions = losses(options.run), json.loads((options.run / ABOUT_FILE).read_text(encoding="utf-8"))
    pipe = Pipeline.from_pretrained(options.run / "model").to(device)
    data, scorer = images_of(work), Scorer(work, device)
    training: Any = pipe.training or {}
    rows = score_methods(work, pipe, scorer)
    test = data.test.take(slice(options.samples))
    right = {name: classify_images(pipe.model, test.images, method=name).labels == test.labels for name in METHODS}
    train_command = ["biflow", "train", work.study.recipe, "--out", str(options.run)]
    train_command += [word for override in work.study.overrides for word in ("--set", override)]
    numbers = {
        "data": options.data,
        "samples": options.samples,
        "rows": rows,
        "references": scorer.references["judge"].count,
        "real": scorer.real(data.test, options.samples),
        "classification": {name: each.double().mean().item() for name, each in right.items()},
        "bits_per_dim": pipe.log_prob(test.images, test.labels).bits_per_dim.mean().item(),
        "stages": training["stages"],
        "losses": curves,
        "finished_in": finished_in(training),
        "trained_on": f"{sessions[-1]['device'].replace('cpu', 'a CPU')} with {sessions[-1]['threads']} threads",
        "revisions": [revision(session["git"]) for session in sessions],
        "train_command": shlex.join(train_command),
        "command": command_line(),
        "machine": describe_machine(pipe.device),
    }
    draw_samples(options.out / f"{options.data}.png", pipe, data.train, rows)
    write_text(options.out / f"{options.data}.json", json.dumps(numbers, indent=1) + "\n")
    write_text(options.out / f"{options.data}.md", render(numbers))
    print(render(numbers))


if __name__ == "__main__":
    main()
