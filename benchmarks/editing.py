"""What edits by way of noise are worth, on the test digits, read by a judge that the model never saw.

    python benchmarks/editing.py runs/quickstart/model

Writes docs/results/editing.{md,json,png}.  The judge is trained on the training images, once, into --judge.  Every
number is the mean over three seeds of all noise, with its standard deviation.
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
STRENGTHS = tuple(place / 10 for place in range(11))
STEPS = 9
HALVES = {"left": (0, 0, 4, 8), "right": (4, 0, 8, 8), "top": (0, 0, 8, 4), "bottom": (0, 4, 8, 8)}
EXACT = {"method": "sequential"}
INPAINTINGS: dict[str, dict[str, Any]] = {
    "one pass, 2 rounds from a draw": {},
    "1 round": {"rounds": 1},
    "4 rounds": {"rounds": 4},
    "1 round from grey": {"rounds": 1, "start": "grey"},
    "2 rounds from grey": {"start": "grey"},
    "4 rounds from grey": {"start": "grey", "rounds": 4},
    "without the label": {"labels": None},
    "guidance 0.5": {"guidance": 0.5},
    "exact inverse": EXACT,
    "exact inverse, 1 round from grey": {**EXACT, "rounds": 1, "start": "grey"},
    "exact inverse, guidance 0.5": {**EXACT, "guidance": 0.5},
}
WAYS_BACK: dict[str, dict[str, Any]] = {
    "one pass": {},
    "one pass, guidance 0.5": {"guidance": 0.5},
    "one pass, guidance 1": {"guidance": 1.0},
    "exact inverse": EXACT,
    "exact inverse, guidance 0.5": {**EXACT, "guidance": 0.5},
}
Row = dict[str, list[float]]


class Ground(NamedTuple):
    """What every measurement needs."""

    pipe: Pipeline
    judge: Judge
    test: ImageSet

    def read(self, pixels: Tensor) -> Tensor:
        """The classes that the judge reads in images (..., P, H, W): (...)."""
        logits = self.judge(pixels.flatten(0, -4).float() / 127.5 - 1)
        return logits.argmax(dim=1).view(pixels.shape[:-3])

    def share(self, pixels: Tensor, labels: Tensor) -> float:
        """Percent of images (N, ..., P, H, W) that are read as their labels (N,)."""
        read = self.read(pixels)
        return 100 * (read == labels.view(-1, *[1] * (read.ndim - 1))).float().mean().item()


def distance(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Mean absolute difference in grey levels of 255, of the pixels of a mask (N, 1, H, W) if there is one."""
    apart = (a.float() - b.float()).abs()
    return (apart if where is None else apart[where.expand_as(apart)]).mean().item()


def box_mask(box: Sequence[int]) -> Tensor:
    """(H, W), true inside."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def random_boxes(count: int) -> Tensor:
    """A box of 3 to 5 pixels a side for each image, anywhere: (N, H, W)."""
    masks = []
    for place in range(count):
        draw = stream("boxes", place)
        width, height = draw.integers(3, 6, 2)
        left, top = draw.integers(0, 9 - width), draw.integers(0, 9 - height)
        masks.append(box_mask((left, top, left + width, top + height)))
    return torch.stack(masks)


def masks_for(count: int) -> dict[str, Tensor]:
    """The masks, each (N, H, W)."""
    halves = {name: box_mask(box).expand(count, 8, 8) for name, box in HALVES.items()}
    return {**halves, "boxes": random_boxes(count)}


def over_seeds(measure: Callable[[int], dict[str, float]]) -> Row:
    """What is measured, by name, with a value for each seed."""
    found = [measure(seed) for seed in SEEDS]
    return {name: [each[name] for each in found] for name in found[0]}


def measure_proposals(ground: Ground, masks: Tensor, seed: int) -> dict[str, float]:
    """Four proposals for one kind of mask."""
    images, labels, known = ground.test.images, ground.test.labels, ~masks[:, None]
    bare = ground.pipe.inpaint(images, masks, labels, paste=False, seed=seed).pixels
    made = ground.pipe.inpaint(images, masks, labels, seed=seed).pixels
    return {
        "known pixels off, not pasted": distance(bare, images[:, None].expand_as(bare), known[:, None]),
        "known pixels off, pasted": distance(made, images[:, None].expand_as(made), known[:, None]),
        "right, not pasted": ground.share(bare, labels),
        "right, pasted": ground.share(made, labels),
        "right, likeliest": ground.share(made[:, 0], labels),
        "right, least likely": ground.share(made[:, -1], labels),
        "redrawn pixels off": distance(made, images[:, None].expand_as(made), ~known[:, None]),
        "redrawn pixels off, likeliest": distance(made[:, 0], images, ~known),
    }


def measure_inpainting(ground: Ground, way: dict[str, Any], seed: int) -> dict[str, float]:
    """One proposal, over all masks."""
    images, labels, rows = ground.test.images, ground.test.labels, []
    options = {"labels": labels, "proposals": 1, "seed": seed, **way}
    for masks in masks_for(len(images)).values():
        bare = ground.pipe.inpaint(images, masks, paste=False, **options).pixels[:, 0]
        made = torch.where(masks[:, None], bare, images)
        nats = ground.pipe.log_prob(made, labels, noise="training", seed=seed).nats.mean().item()
        rows.append([distance(bare, images, ~masks[:, None]), ground.share(made, labels), nats])
    names = ("known pixels off, not pasted", "right, pasted", "nats, pasted")
    return dict(zip(names, torch.tensor(rows).mean(dim=0).tolist(), strict=True))


def measure_reclass(ground: Ground, way: dict[str, Any], seed: int) -> dict[str, float]:
    """Every image as the nine other classes; samples of these classes from other noise for comparison."""
    images, labels, rows = ground.test.images, ground.test.labels, []
    for step in range(1, 10):
        targets = (labels + step) % 10
        made = to_pixels(ground.pipe.reclass(images, labels, targets, seed=seed, **way))
        other = ground.pipe.sample_pixels(targets, seed=10 * seed + step, **way)
        shares = [ground.share(made, targets), ground.share(made, labels)]
        rows.append([*shares, distance(made, images), distance(other, images)])
    names = ("read as the target", "as the source", "from the source", "a sample from the source")
    return dict(zip(names, torch.tensor(rows).mean(dim=0).tolist(), strict=True))


def measure_interpolation(ground: Ground, way: dict[str, Any] | None, seed: int) -> dict[str, float]:
    """Seven images between each test image and another; without a way, mixtures of the pixels."""
    images, labels = ground.test.images, ground.test.labels
    order = permutation(len(images), "pairs", seed)
    last, last_labels = images[order], labels[order]
    if way is None:
        shares = torch.linspace(0, 1, STEPS).view(1, -1, 1, 1, 1)
        made = ((1 - shares) * images[:, None] + shares * last[:, None]).round().to(torch.uint8)
    else:
        pair = (labels, last_labels)
        made = ground.pipe.interpolate(images, last, labels=pair, steps=STEPS, seed=seed, **way).pixels
    read = ground.read(made[:, 1:-1])
    either = (read == labels[:, None]) | (read == last_labels[:, None])
    moves = (made[:, 1:].float() - made[:, :-1].float()).abs().mean(dim=(0, 2, 3, 4))
    return {
        "in between, read as either end": 100 * either.float().mean().item(),
        "one of them in the middle": 100 * either[:, STEPS // 2 - 1].float().mean().item(),
        "a step": moves.mean().item(),
        "the longest step": moves.max().item(),
        "end to end": distance(made[:, 0], made[:, -1]),
    }


def measure_variations(ground: Ground, way: dict[str, Any], strength: float, seed: int) -> dict[str, float]:
    """One variation of every image."""
    images, labels = ground.test.images, ground.test.labels
    made = ground.pipe.vary(images, labels, strength=strength, num=1, seed=seed, **way).pixels[:, 0]
    return {"right": ground.share(made, labels), "from the image": distance(made, images)}


def milliseconds(pipe: Pipeline, test: ImageSet) -> dict[str, dict[str, float]]:
    """Each edit of one image, by each way back."""
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
    """A table with a line for each name."""
    heads = list(next(iter(rows.values())))
    lines = [["", *heads], ["---"] * (len(heads) + 1)]
    lines += [[name, *(summary(values, digits) for values in row.values())] for name, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(ground: Ground, path: Path) -> None:
    """Two rows of each edit, of the first test images."""
    pipe, images, labels = ground.pipe, ground.test.images, ground.test.labels
    rows = []
    for place, half in ((0, "bottom"), (1, "left")):
        image, label, mask = images[place : place + 1], labels[place : place + 1], box_mask(HALVES[half])
        made = pipe.inpaint(image, mask, label, proposals=6)
        tiles = [Tile(each, f"{nats:.1f} nats") for each, nats in zip(made.pixels[0], made.nats[0], strict=True)]
        rows.append([Tile(image[0], f"a {label.item()}"), Tile(painted(image[0], mask[None]), "to redraw"), *tiles])
    for place in (2, 3):
        image, label = images[place : place + 1], labels[place : place + 1]
        targets = [other for other in range(10) if other != label][:7]
        made = to_pixels(pipe.reclass(image.expand(7, -1, -1, -1), label.expand(7), targets))
        tiles = [Tile(each, f"as {target}") for each, target in zip(made, targets, strict=True)]
        rows.append([Tile(image[0], f"a {label.item()}"), *tiles])
    for place in (4, 6):
        ends, names = images[place : place + 2], labels[place : place + 2].tolist()
        made = pipe.interpolate(ends[:1], ends[1:], labels=([names[0]], [names[1]]), steps=6).pixels[0]
        tiles = [Tile(each, f"{20 * step}% as {names[step > 2]}") for step, each in enumerate(made)]
        rows.append([Tile(ends[0], f"a {names[0]}"), *tiles, Tile(ends[1], f"a {names[1]}")])
    for place in (8, 9):
        image, label = images[place : place + 1], labels[place : place + 1]
        tiles = [
            Tile(pipe.vary(image, label, strength=strength, num=1).pixels[0, 0], f"strength {strength:g}")
            for strength in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)
        ]
        rows.append([Tile(image[0], f"a {label.item()}"), *tiles])
    save_sheet(path, rows)


def measure_all(ground: Ground) -> dict[str, Any]:
    """Every table."""
    kinds = masks_for(len(ground.test)).items()
    both = {"one pass": {}, "exact inverse": EXACT}
    found: dict[str, Any] = {
        "inpaint": {name: over_seeds(lambda seed, m=m: measure_proposals(ground, m, seed)) for name, m in kinds},
        "inpaint_ways": {
            name: over_seeds(lambda seed, way=way: measure_inpainting(ground, way, seed))
            for name, way in INPAINTINGS.items()
        },
        "reclass": {
            name: over_seeds(lambda seed, way=way: measure_reclass(ground, way, seed))
            for name, way in WAYS_BACK.items()
        },
        "interpolate": {
            name: over_seeds(lambda seed, way=way: measure_interpolation(ground, way, seed))
            for name, way in {**WAYS_BACK, "mixed pixels": None}.items()
        },
        "vary": {
            name: {
                f"{strength:g}": over_seeds(lambda seed, way=way, s=strength: measure_variations(ground, way, s, seed))
                for strength in STRENGTHS
            }
            for name, way in both.items()
        },
        "milliseconds": milliseconds(ground.pipe, ground.test),
    }
    return found


def page(found: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    vary = {
        strength: {f"{name}: {what}": found["vary"][name][strength][what] for name in found["vary"] for what in row}
        for strength, row in found["vary"]["one pass"].items()
    }
    times = {name: {edit: [ms] for edit, ms in row.items()} for name, row in found["milliseconds"].items()}
    return (
        "# Edits by way of noise, on the 360 test digits\n\n"
        '`python benchmarks/editing.py MODEL`; mean and standard deviation over three seeds of all noise. "Right" is '
        f"the percentage that a judge reads as their class; of the images themselves it is {found['right']:.1f}. "
        'Distances ("off", "from", "step") are mean absolute differences in grey levels of 255.\n\n'
        f"## Inpainting: four proposals, one pass\n\n{markdown(found['inpaint'])}\n"
        f"## Inpainting: ways, one proposal, mean of the five kinds of mask\n\n{markdown(found['inpaint_ways'])}\n"
        f"## Change of class, to each of the nine others\n\n{markdown(found['reclass'])}\n"
        f"## Interpolation, seven images between two\n\n{markdown(found['interpolate'])}\n"
        f"## Variations, by strength\n\n{markdown(vary)}\n"
        f"## Milliseconds for one image\n\n{found['machine']['threads']} thread(s); other work shared the machine.\n\n"
        f"{markdown(times)}"
    )


def main() -> None:
    """Measure everything, and write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("runs/quickstart/model"))
    parser.add_argument("--judge", type=Path, default=Path("runs/editing/judge"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    data = load_data("digits")
    if not arguments.judge.exists():
        train_judge(arguments.judge, data.train, World(0, 1, torch.device("cpu")), Console())
    ground = Ground(Pipeline.from_pretrained(arguments.model), load_judge(arguments.judge), data.test)
    draw(ground, arguments.out / "editing.png")
    found = {"machine": describe_machine(ground.pipe.device), "right": ground.share(data.test.images, data.test.labels)}
    found |= measure_all(ground)
    write_text(arguments.out / "editing.json", json.dumps(found, indent=1) + "\n")
    write_text(arguments.out / "editing.md", page(found))
    print(page(found))


if __name__ == "__main__":
    main()
