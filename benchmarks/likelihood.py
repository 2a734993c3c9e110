"""Bits per dimension of biflow's flow beside zuko's and normflows' flows, trained for the same time in one run.

    pip install zuko normflows
    python benchmarks/likelihood.py --data npz:data/fashion_mnist --minutes 30
    python benchmarks/likelihood.py --data digits --minutes 0.2 --runs runs/try --out runs/try   # a test

Every flow is conditional on the class and sees the same images with uniform dequantisation noise and no other, one flow
after the other on the same threads, with a cosine from its learning rate to 0 over as many steps as fit into the time.
Results are kept in runs/likelihood, so an interrupted command resumes.  Writes docs/results/likelihood_DATA.{md,json}.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from machine import described
from torch import Tensor, nn

from biflow.config import FitConfig, FlowConfig, ModelConfig, ReadingConfig
from biflow.data.augment import add_noise
from biflow.data.datasets import ImageSource, indices_at
from biflow.data.open import open_images
from biflow.files import write_text
from biflow.losses.likelihood import bits_per_dim
from biflow.models.codec import PixelCodec
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify
from biflow.training.optim import Optimizers
from biflow.training.provenance import describe_machine

BATCH_SIZE, WARM_UP, TIMED = 64, 50, 20  # images; steps
SEED = 0


class Size(NamedTuple):
    """What a flow is made for."""

    shape: tuple[int, int, int]  # (P, H, W)
    classes: int
    patch_size: int

    @property
    def dims(self) -> int:
        """Values of an image."""
        return math.prod(self.shape)


class Contender(nn.Module):
    """A flow of some library: log-density in nats (B,) of images (B, P, H, W) about [-1, 1], and how it is trained."""

    learning_rate = 1e-3

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """Log-density in nats, (B,)."""
        raise NotImplementedError

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """What trains it."""
        return [torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-5)]


class Ours(Contender):
    """biflow's flow without training noise, trained by Muon and AdamW."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        channels, side, _ = size.shape
        shape = {"image_size": side, "channels": channels, "patch_size": size.patch_size}
        flow = FlowConfig(width=128, head_width=32, blocks=4, layers=2)
        self.flow = ForwardFlow(
            ModelConfig(**shape, num_classes=size.classes, noise_std=0.0, dequantise=True, flow=flow)
        )

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """Log-density of the patches."""
        return self.flow.log_prob(patchify(images, self.flow.config.patch_size), labels)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of the recipes."""
        config = FitConfig(optimizer="muon", learning_rate=0.004, muon_learning_rate=0.012)
        return Optimizers(self.flow, config).all


class Zuko(Contender):
    """A flow of zuko over the values of an image, with the class as context."""

    def __init__(self, size: Size, name: str, **settings: Any) -> None:
        import zuko

        super().__init__()
        self.classes = size.classes
        self.flow = getattr(zuko.flows, name)(size.dims, context=size.classes, **settings)

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """Log-density of the values."""
        return self.flow(F.one_hot(labels, self.classes).float()).log_prob(images.flatten(1))


class Glow(Contender):
    """normflows' multiscale Glow with a class-conditional base, as deep as the image's side halves evenly."""

    def __init__(self, size: Size, steps: int = 8, hidden: int = 128) -> None:
        import normflows

        super().__init__()
        channels, side, _ = size.shape
        levels = next(levels for levels in (3, 2, 1) if side % 2**levels == 0)
        bases, flows, merges = [], [], []
        for level in range(levels):
            width = channels * 2 ** (levels + 1 - level)
            blocks = [normflows.flows.GlowBlock(width, hidden, scale=True, scale_map="sigmoid") for _ in range(steps)]
            flows.append([*blocks, normflows.flows.Squeeze()])
            rest, end = side // 2 ** (levels - level), level == 0
            shape = (width if end else width // 2, rest, rest)
            bases.append(normflows.distributions.ClassCondDiagGaussian(shape, size.classes))
            if not end:
                merges.append(normflows.flows.Merge())
        self.flow = normflows.MultiscaleFlow(bases, flows, merges)

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """Log-density of the images."""
        return self.flow.log_prob(images, labels)


CONTENDERS: Mapping[str, Callable[[Size], Contender]] = {
    "biflow": Ours,
    "zuko MAF": lambda size: Zuko(size, "MAF", transforms=5, hidden_features=(512, 512)),
    "zuko NSF": lambda size: Zuko(size, "NSF", transforms=3, hidden_features=(256, 256)),
    "normflows Glow": Glow,
}


PUBLISHED = {  # bits/dim on CIFAR-10 of flows without classes, as their papers print them
    "Real NVP (arXiv 1605.08803)": 3.49,
    "Glow (arXiv 1807.03039)": 3.35,
    "Residual Flow (arXiv 1906.02735)": 3.28,
    "Flow++ (arXiv 1902.00275), with variational dequantisation": 3.08,
}


def noisy(data: ImageSource, indices: Tensor, *keys: str | int) -> Tensor:
    """Dequantised images (B, P, H, W)."""
    images = PixelCodec().encode(data.read(indices))
    return add_noise(images, indices.tolist(), 0.0, SEED, *keys, bin_width=PixelCodec.bin_width)


def train(flow: Contender, data: ImageSource, seconds: float) -> dict[str, float]:
    """Train for this time; returns what was done."""
    flow.train()
    steps, start, skipped = WARM_UP + TIMED, time.perf_counter(), 0
    optimizers = flow.optimizers()
    full = [[group["lr"] for group in each.param_groups] for each in optimizers]
    step = 0
    while step < steps:
        progress = (step - WARM_UP) / max(1, steps - WARM_UP)
        factor = (step + 1) / WARM_UP if step < WARM_UP else 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer, rates in zip(optimizers, full, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        indices = indices_at(step, SEED, "likelihood", batch_size=BATCH_SIZE, num_images=len(data))
        loss = -flow.log_prob(noisy(data, indices, step), data.labels[indices]).mean() / math.prod(data.image_shape)
        flow.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        if (loss + norm).isfinite():
            for optimizer in optimizers:
                optimizer.step()
        else:
            skipped += 1
        step += 1
        taken = time.perf_counter() - start
        if step == TIMED:
            timed_from, start_step = taken, step
        if step == WARM_UP:  # now the time of a step is known
            per_step = (taken - timed_from) / (step - start_step)
            steps = max(steps, step + int((seconds - taken) / per_step))
    return {"steps": step, "seconds": time.perf_counter() - start, "skipped": skipped}


@torch.no_grad()
def measure(flow: Contender, data: ImageSource, count: int) -> float:
    """Mean bits per dimension of the first images."""
    flow.eval()
    found = []
    for indices in torch.arange(min(count, len(data))).split(BATCH_SIZE):
        nats = flow.log_prob(noisy(data, indices, "test"), data.labels[indices]).double()
        found.append(bits_per_dim(nats, math.prod(data.image_shape), PixelCodec.bin_width))
    return torch.cat(found).mean().item()


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    lines = [
        "# Likelihood beside other libraries",
        "",
        f"Written by `{numbers['command']}`: bits per dimension of the first",
        f"{numbers['images']:,} test images with uniform dequantisation noise, after {numbers['minutes']:g} minutes of",
        f"training each, one after the other, on {described(numbers['machine'])}. Every flow is conditional on the",
        "class.",
        "",
        "| flow | parameters | steps of 64 | minutes | bits/dim, test | bits/dim, as many training images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in sorted(numbers["rows"].items(), key=lambda item: item[1]["test"]):
        skipped = f", {row['skipped']} skipped" * bool(row["skipped"])
        cells = (name, f"{row['parameters'] / 1e6:.2f} M", f"{row['steps']:,}{skipped}", f"{row['seconds'] / 60:.1f}")
        lines.append(f"| {' | '.join(cells)} | {row['test']:.3f} | {row['train']:.3f} |")
    if "cifar10" in numbers["data"]:
        lines += [
            "",
            "Published for CIFAR-10, by much larger flows that were trained for days on GPUs: "
            + ", ".join(f"{name} {value}" for name, value in PUBLISHED.items())
            + ".",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="npz:data/fashion_mnist")
    parser.add_argument("--size", type=int, default=28, help="side of the images")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/likelihood"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    side = 8 if options.data == "digits" else options.size
    shape = (options.channels, side, side)
    split = open_images(options.data, shape, ReadingConfig())
    name = options.data.rpartition(":")[2].rstrip("/").rpartition("/")[2]
    size = Size(shape, len(split.train.class_names), 2 if side == 8 else options.patch_size)
    rows = {}
    for contender, make in CONTENDERS.items():
        kept = options.runs / f"{name}_{contender.replace(' ', '_').lower()}_{options.minutes:g}.json"
        if not kept.exists():
            torch.manual_seed(SEED)
            flow = make(size)
            row = {"parameters": sum(p.numel() for p in flow.parameters())}
            row |= train(flow, split.train, 60 * options.minutes)
            row |= {
                "test": measure(flow, split.test, options.images),
                "train": measure(flow, split.train, options.images),
            }
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, json.dumps(row) + "\n")
            print(contender, row, flush=True)
        rows[contender] = json.loads(kept.read_text(encoding="utf-8"))
    numbers = {"machine": describe_machine(torch.device("cpu")), "data": options.data, "minutes": options.minutes}
    numbers |= {"images": min(options.images, len(split.test)), "rows": rows}
    numbers["command"] = f"python benchmarks/likelihood.py --data {options.data} --minutes {options.minutes:g}"
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / f"likelihood_{name}.json", json.dumps(numbers, indent=1) + "\n")
    write_text(options.out / f"likelihood_{name}.md", render(numbers))
    print(render(numbers))


if __name__ == "__main__":
    main()
