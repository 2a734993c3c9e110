"""Quality of editing in noise space on the test digits, by a reference classifier that the model never saw.

    python benchmarks/editing.py runs/quickstart/model

The classifier is trained once on the training images and kept in --judge.  All numbers are mean and standard deviation
over three seeds of the noise.  Writes docs/results/editing.{md,json,png}.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import seconds
from rich.console import Console
from seeds import summary
from torch import Tensor

from biflow.data.datasets import ImageSet, load_data
from biflow.data.images import to_pixels
from biflow.data.randomness import permutation, stream
from biflow.data.sheet import Tile, painted, save_sheet
from biflow.distributed import World
from biflow.evaluation.real_images import train_judge
from biflow.features.judge import Judge, load_judge
from biflow.files import write_text
from biflow.pipeline import Pipeline
from biflow.training.provenance import describe_machine

SEEDS = (0, 1, 2)
STRENGTHS = tuple(tenth / 10 for tenth in range(11))
STEPS = 9
HALVES = {"left": (0, 0, 4, 8), "right": (4, 0, 8, 8), "top": (0, 0, 8, 4), "bottom": (0, 4, 8, 8)}
EXACT = {"method": "sequential"}
INPAINTINGS: dict[str, dict[str, Any]] = {
    "one pass, 2 rounds, start=draw (default)": {},
    "1 round": {"rounds": 1},
    "4 rounds": {"rounds": 4},
    "1 round, start=grey": {"rounds": 1, "start": "grey"},
    "2 rounds, start=grey": {"start": "grey"},
    "4 rounds, start=grey": {"start": "grey", "rounds": 4},
    "no label": {"labels": None},
    "guidance 0.5": {"guidance": 0.5},
    "exact inverse": EXACT,
    "exact inverse, 1 round, start=grey": {**EXACT, "rounds": 1, "start": "grey"},
    "exact inverse, guidance 0.5": {**EXACT, "guidance": 0.5},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "one pass, guidance 0.5": {"guidance": 0.5},
    "one pass, guidance 1": {"guidance": 1.0},
    "exact inverse": EXACT,
    "exact inverse, guidance 0.5": {**EXACT, "guidance": 0.5},
}
Row = dict[str, list[float]]


class Setup(NamedTuple):
    """Shared by all measurements."""

    pipe: Pipeline
    judge: Judge
    test: ImageSet

    def classify(self, pixels: Tensor) -> Tensor:
        """The classes that the reference classifier predicts for images (..., P, H, W): (...)."""
        logits = self.judge(pixels.flatten(0, -4).float() / 127.5 - 1)
        return logits.argmax(dim=1).view(pixels.shape[:-3])

    def accuracy(self, pixels: Tensor, labels: Tensor) -> float:
        """Percentage of images (N, ..., P, H, W) that are classified as their labels (N,)."""
        found = self.classify(pixels)
        return 100 * (found == labels.view(-1, *[1] * (found.ndim - 1))).float().mean().item()


def distance(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Mean absolute difference in grey levels (0 to 255), within a mask (N, 1, H, W) if given."""
    apart = (a.float() - b.float()).abs()
    return (apart if where is None else apart[where.expand_as(apart)]).mean().item()


def box_mask(box: Sequence[int]) -> Tensor:
    """(H, W), true inside."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def random_boxes(count: int) -> Tensor:
    """A randomly placed box of 3 to 5 pixels a side for each image: (N, H, W)."""
    masks = []
    for index in range(count):
        draw = stream("boxes", index)
        width, height = draw.integers(3, 6, 2)
        left, top = draw.integers(0, 9 - width), draw.integers(0, 9 - height)
        masks.append(box_mask((left, top, left + width, top + height)))
    return torch.stack(masks)


def masks_for(count: int) -> dict[str, Tensor]:
    """The masks by name, each (N, H, W)."""
    halves = {name: box_mask(box).expand(count, 8, 8) for name, box in HALVES.items()}
    return {**halves, "boxes": random_boxes(count)}


def over_seeds(measure: Callable[[int], dict[str, float]]) -> Row:
    """The measured values by name, one for each seed."""
    found = [measure(seed) for seed in SEEDS]
    return {name: [each[name] for each in found] for name in found[0]}


def measure_proposals(setup: Setup, masks: Tensor, seed: int) -> dict[str, float]:
    """Inpainting with four proposals, for one kind of mask."""
    images, labels, known = setup.test.images, setup.test.labels, ~masks[:, None]
    bare = setup.pipe.inpaint(images, masks, labels, paste=False, seed=seed).pixels
    made = setup.pipe.inpaint(images, masks, labels, seed=seed).pixels
    return {
        "error on known pixels, not pasted": distance(bare, images[:, None].expand_as(bare), known[:, None]),
        "error on known pixels, pasted": distance(made, images[:, None].expand_as(made), known[:, None]),
        "accuracy, not pasted": setup.accuracy(bare, labels),
        "accuracy, pasted": setup.accuracy(made, labels),
        "accuracy, most likely proposal": setup.accuracy(made[:, 0], labels),
        "accuracy, least likely proposal": setup.accuracy(made[:, -1], labels),
        "change of resampled pixels": distance(made, images[:, None].expand_as(made), ~known[:, None]),
        "change of resampled pixels, most likely proposal": distance(made[:, 0], images, ~known),
    }


def measure_inpainting(setup: Setup, options: dict[str, Any], seed: int) -> dict[str, float]:
    """Inpainting with one proposal, averaged over all masks."""
    images, labels, rows = setup.test.images, setup.test.labels, []
    settings = {"labels": labels, "proposals": 1, "seed": seed, **options}
    for masks in masks_for(len(images)).values():
        bare = setup.pipe.inpaint(images, masks, paste=False, **settings).pixels[:, 0]
        made = torch.where(masks[:, None], bare, images)
        nats = setup.pipe.log_prob(made, labels, noise="training", seed=seed).nats.mean().item()
        rows.append([distance(bare, images, ~masks[:, None]), setup.accuracy(made, labels), nats])
    names = ("error on known pixels, not pasted", "accuracy, pasted", "log-likelihood (nats), pasted")
    return dict(zip(names, torch.tensor(rows).mean(dim=0).tolist(), strict=True))


def measure_reclass(setup: Setup, options: dict[str, Any], seed: int) -> dict[str, float]:
    """Every image changed to each of the nine other classes, and new samples of these classes for comparison."""
    images, labels, rows = setup.test.images, setup.test.labels, []
    for step in range(1, 10):
        targets = (labels + step) % 10
        made = to_pixels(setup.pipe.reclass(images, labels, targets, seed=seed, **options))
        other = setup.pipe.sample_pixels(targets, seed=10 * seed + step, **options)
        shares = [setup.accuracy(made, targets), setup.accuracy(made, labels)]
        rows.append([*shares, distance(made, images), distance(other, images)])
    names = (
        "classified as target",
        "classified as source",
        "distance from source",
        "distance of a new sample from source",
    )
    return dict(zip(names, torch.tensor(rows).mean(dim=0).tolist(), strict=True))


def measure_interpolation(setup: Setup, options: dict[str, Any] | None, seed: int) -> dict[str, float]:
    """Seven images between each test image and another; blends of their pixels if there are no options."""
    images, labels = setup.test.images, setup.test.labels
    order = permutation(len(images), "pairs", seed)
    last, last_labels = images[order], labels[order]
    if options is None:
        weights = torch.linspace(0, 1, STEPS).view(1, -1, 1, 1, 1)
        made = ((1 - weights) * images[:, None] + weights * last[:, None]).round().to(torch.uint8)
    else:
        pair = (labels, last_labels)
        made = setup.pipe.interpolate(images, last, labels=pair, steps=STEPS, seed=seed, **options).pixels
    found = setup.classify(made[:, 1:-1])
    either = (found == labels[:, None]) | (found == last_labels[:, None])
    moves = (made[:, 1:].float() - made[:, :-1].float()).abs().mean(dim=(0, 2, 3, 4))
    return {
        "intermediate images classified as either end": 100 * either.float().mean().item(),
        "middle image classified as either end": 100 * either[:, STEPS // 2 - 1].float().mean().item(),
        "mean step": moves.mean().item(),
        "largest step": moves.max().item(),
        "end to end": distance(made[:, 0], made[:, -1]),
    }


def measure_variations(setup: Setup, options: dict[str, Any], strength: float, seed: int) -> dict[str, float]:
    """One variation of every image."""
    images, labels = setup.test.images, setup.test.labels
    made = setup.pipe.vary(images, labels, strength=strength, num=1, seed=seed, **options).pixels[:, 0]
    return {"accuracy": setup.accuracy(made, labels), "distance from the image": distance(made, images)}


def milliseconds(pipe: Pipeline, test: ImageSet) -> dict[str, dict[str, float]]:
    """Milliseconds of each edit of one image, by sampler."""
    images, labels, mask = test.images[:1], test.labels[:1], box_mask(HALVES["bottom"])
    found = {}
    for name, method in (("one pass", "reverse"), ("exact inverse", "sequential"), ("GS-Jacobi", "gs-jacobi")):
        calls: dict[str, Callable[[], object]] = {
            "inpaint, 4 proposals": lambda m=method: pipe.inpaint(images, mask, labels, method=m),
            "reclass": lambda m=method: pipe.reclass(images, labels, labels, method=m),
            "interpolate, 7 steps": lambda m=method: pipe.interpolate(
                images, images, labels=(labels, labels), method=m
            ),
            "vary, 6 variations": lambda m=method: pipe.vary(images, labels, method=m),
        }
        found[name] = {edit: 1e3 * seconds(call, pipe.device) for edit, call in calls.items()}
    return found


def markdown(rows: dict[str, Row], digits: int = 1) -> str:
    """A table with one row for each name."""
    heads = list(next(iter(rows.values())))
    lines = [["", *heads], ["---"] * (len(heads) + 1)]
    lines += [[name, *(summary(values, digits) for values in row.values())] for name, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(setup: Setup, path: Path) -> None:
    """Two rows of each edit, of the first test images."""
    pipe, images, labels = setup.pipe, setup.test.images, setup.test.labels
    rows = []
    for index, half in ((0, "bottom"), (1, "left")):
        image, label, mask = images[index : index + 1], labels[index : index + 1], box_mask(HALVES[half])
        made = pipe.inpaint(image, mask, label, proposals=6)
        tiles = [Tile(each, f"{nats:.1f} nats") for each, nats in zip(made.pixels[0], made.nats[0], strict=True)]
        rows.append([Tile(image[0], f"a {label.item()}"), Tile(painted(image[0], mask[None]), "to redraw"), *tiles])
    for index in (2, 3):
        image, label = images[index : index + 1], labels[index : index + 1]
        targets = [other for other in range(10) if other != label][:7]
        made = to_pixels(pipe.reclass(image.expand(7, -1, -1, -1), label.expand(7), targets))
        tiles = [Tile(each, f"as {target}") for each, target in zip(made, targets, strict=True)]
        rows.append([Tile(image[0], f"a {label.item()}"), *tiles])
    for index in (4, 6):
        ends, names = images[index : index + 2], labels[index : index + 2].tolist()
        made = pipe.interpolate(ends[:1], ends[1:], labels=([names[0]], [names[1]]), steps=6).pixels[0]
        tiles = [Tile(each, f"{20 * step}% as {names[step > 2]}") for step, each in enumerate(made)]
        rows.append([Tile(ends[0], f"a {names[0]}"), *tiles, Tile(ends[1], f"a {names[1]}")])
    for index in (8, 9):
        image, label = images[index : index + 1], labels[index : index + 1]
        tiles = [
            Tile(pipe.vary(image, label, strength=strength, num=1).pixels[0, 0], f"strength {strength:g}")
            for strength in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)
        ]
        rows.append([Tile(image[0], f"a {label.item()}"), *tiles])
    save_sheet(path, rows)


def measure_all(setup: Setup) -> dict[str, Any]:
    """Every table."""
    kinds = masks_for(len(setup.test)).items()
    both = {"one pass": {}, "exact inverse": EXACT}
    found: dict[str, Any] = {
        "inpaint": {name: over_seeds(lambda seed, m=m: measure_proposals(setup, m, seed)) for name, m in kinds},
        "inpaint_settings": {
            name: over_seeds(lambda seed, o=options: measure_inpainting(setup, o, seed))
            for name, options in INPAINTINGS.items()
        },
        "reclass": {
            name: over_seeds(lambda seed, o=options: measure_reclass(setup, o, seed))
            for name, options in SAMPLERS.items()
        },
        "interpolate": {
            name: over_seeds(lambda seed, o=options: measure_interpolation(setup, o, seed))
            for name, options in {**SAMPLERS, "pixel blend": None}.items()
        },
        "vary": {
            name: {
                f"{strength:g}": over_seeds(lambda seed, o=options, s=strength: measure_variations(setup, o, s, seed))
                for strength in STRENGTHS
            }
            for name, options in both.items()
        },
        "milliseconds": milliseconds(setup.pipe, setup.test),
    }
    return found


def render(found: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    vary = {
        strength: {f"{name}: {what}": found["vary"][name][strength][what] for name in found["vary"] for what in row}
        for strength, row in found["vary"]["one pass"].items()
    }
    times = {name: {edit: [ms] for edit, ms in row.items()} for name, row in found["milliseconds"].items()}
    return (
        "# Editing\n\n"
        "Written by `python benchmarks/editing.py MODEL`: edits of the 360 test digits, mean and standard deviation "
        "over three seeds of the noise. Accuracy is the percentage of images that a reference classifier assigns to "
        f"the label; on the unedited images it is {found['accuracy']:.1f}%. Errors, changes, distances and steps are "
        "mean absolute differences in grey levels (0 to 255).\n\n"
        f"## Inpainting: four proposals, one pass\n\n{markdown(found['inpaint'])}\n"
        "## Inpainting: settings\n\nOne proposal, averaged over the five kinds of mask.\n\n"
        f"{markdown(found['inpaint_settings'])}\n"
        f"## Change of class, to each of the nine others\n\n{markdown(found['reclass'])}\n"
        f"## Interpolation: seven images between two\n\n{markdown(found['interpolate'])}\n"
        f"## Variations, by strength\n\n{markdown(vary)}\n"
        f"## Milliseconds per edit of one image\n\n{found['machine']['threads']} thread(s) on a shared machine.\n\n"
        f"{markdown(times)}"
    )


def main() -> None:
    """Measure everything, and write the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("runs/quickstart/model"))
    parser.add_argument("--judge", type=Path, default=Path("runs/editing/judge"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    data = load_data("digits")
    if not arguments.judge.exists():
        train_judge(arguments.judge, data.train, World(0, 1, torch.device("cpu")), Console())
    setup = Setup(Pipeline.from_pretrained(arguments.model), load_judge(arguments.judge), data.test)
    draw(setup, arguments.out / "editing.png")
    found = {
        "machine": describe_machine(setup.pipe.device),
        "accuracy": setup.accuracy(data.test.images, data.test.labels),
    }
    found |= measure_all(setup)
    write_text(arguments.out / "editing.json", json.dumps(found, indent=1) + "\n")
    write_text(arguments.out / "editing.md", render(found))
    print(render(found))


if __name__ == "__main__":
    main()
