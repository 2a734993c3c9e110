"""Bits per dimension of biflow's flow compared with zuko's and normflows' flows, trained for the same time in one run.

    pip install zuko normflows
    python benchmarks/likelihood.py --data fashion_mnist --minutes 15
    python benchmarks/likelihood.py --data small_32 --minutes 15        # CIFAR-10
    python benchmarks/likelihood.py --minutes 0.1 --images 100 --runs runs/try --out runs/try   # a test

Every flow is conditional on the class and sees the same images with uniform dequantisation noise and no other noise,
one flow after the other on the same threads, with a cosine from its learning rate to 0 over as many steps as fit into
the time.  The learning rate is the best of three, each tried for a tenth of the time, by the likelihood of training
images.  Results are kept in runs/likelihood, so an interrupted command resumes.  Writes
docs/results/likelihood_DATA.{md,json}.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from machine import command_line, described
from studies import STUDIES, images_of, kept, work_of
from torch import Tensor, nn

from biflow.config import FitConfig, FlowConfig, ModelConfig, load_recipe
from biflow.data.augment import add_noise
from biflow.data.datasets import ImageSet, ImageSource, Split, indices_at
from biflow.data.randomness import permutation
from biflow.files import write_text
from biflow.losses.likelihood import bits_per_dim
from biflow.models.codec import PixelCodec
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify
from biflow.training.optim import Optimizers
from biflow.training.provenance import describe_machine

BATCH_SIZE, WARM_UP, TIMED = 64, 50, 20  # images; steps
TRIAL = 0.1  # share of the time, for each learning rate that is tried
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

    learning_rates = (5e-4, 1e-3, 2e-3)
    learning_rate: float  # one of them

    def log_prob(self, images: Tensor, labels: Tensor) -> Tensor:
        """Log-density in nats, (B,)."""
        raise NotImplementedError

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """What trains it."""
        return [torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-5)]


class Ours(Contender):
    """biflow's flow without training noise, trained by Muon and AdamW."""

    learning_rates = (0.01, 0.016, 0.024)  # of Muon; AdamW's is a third

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
        rates = {"learning_rate": self.learning_rate / 3, "muon_learning_rate": self.learning_rate}
        config = FitConfig(optimizer="muon", **rates)
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
def measure(flow: Contender, data: ImageSource, count: int) -> tuple[float, float]:
    """Mean bits per dimension of random images, and its standard error."""
    flow.eval()
    found = []
    for indices in permutation(len(data), "likelihood")[:count].split(BATCH_SIZE):
        nats = flow.log_prob(noisy(data, indices, "test"), data.labels[indices]).double()
        found.append(bits_per_dim(nats, math.prod(data.image_shape), PixelCodec.bin_width))
    bits = torch.cat(found)
    return bits.mean().item(), (bits.std() / len(bits) ** 0.5).item()


def compare(make: Callable[[Size], Contender], size: Size, split: Split[ImageSet], options: Any) -> dict[str, Any]:
    """Choose a learning rate, train for the time with it, and measure."""

    def trained(rate: float, minutes: float) -> tuple[Contender, dict[str, float]]:
        torch.manual_seed(SEED)
        flow = make(size)
        flow.learning_rate = rate
        return flow, train(flow, split.train, 60 * minutes)

    tried = {}
    for rate in make(size).learning_rates:
        flow, _ = trained(rate, TRIAL * options.minutes)
        tried[rate] = measure(flow, split.train, options.images)[0]
    best = min(tried, key=lambda rate: tried[rate])
    flow, facts = trained(best, options.minutes)
    test, error = measure(flow, split.test, options.images)
    return {
        "parameters": sum(p.numel() for p in flow.parameters()),
        **facts,
        "learning_rate": best,
        "tried": tried,
        "test": test,
        "standard_error": error,
        "train": measure(flow, split.train, options.images)[0],
    }


def settings_of(make: Callable[[Size], Contender], size: Size) -> dict[str, Any]:
    """All that a contender's result depends on."""
    contender = make(size)
    contender.learning_rate = contender.learning_rates[0]
    return {
        "size": size,
        "flow": str(contender),
        "learning_rates": contender.learning_rates,
        "optimizers": [str(each) for each in contender.optimizers()],
        "training": (BATCH_SIZE, WARM_UP, TRIAL, SEED),
    }


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    lines = [
        f"# Likelihood compared with other libraries: {STUDIES[numbers['study']].title}",
        "",
        f"Written by `{numbers['command']}`, on {described(numbers['machine'])}: bits per",
        f"dimension of {numbers['images']:,} random test images with uniform dequantisation noise, after",
        f"{numbers['minutes']:g} minutes of training each, one after the other. Every flow is conditional on the",
        "class. The learning rate of each is the best of three, each tried for a tenth of the time, by the likelihood",
        "of training images. biflow's flow has the size of its recipes and is trained by Muon, whose rate is given,",
        "and AdamW; the others are trained by AdamW, and their sizes are not tuned.",
        "",
        "| flow | parameters | steps of 64 | minutes | learning rate | bits/dim, test | bits/dim, training images |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in sorted(numbers["rows"].items(), key=lambda item: item[1]["test"]):
        skipped = f", {row['skipped']} skipped" * bool(row["skipped"])
        cells = [name, f"{row['parameters'] / 1e6:.2f} M", f"{row['steps']:,}{skipped}", f"{row['seconds'] / 60:.1f}"]
        cells += [
            f"{row['learning_rate']:g}",
            f"{row['test']:.2f} ± {row['standard_error']:.2f}",
            f"{row['train']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "± is the standard error over the images; the spread between trainings is not measured."]
    if numbers["study"] == "small_32":
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
    parser.add_argument("--data", choices=STUDIES, default="fashion_mnist")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/likelihood"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    work = work_of(options.data, options.images, options.runs)
    split, model = images_of(work), load_recipe(work.study.recipe, work.study.overrides).model
    size = Size((model.channels, model.image_size, model.image_size), model.num_classes, model.patch_size)
    rows, machine = {}, describe_machine(torch.device("cpu"))
    for name, make in CONTENDERS.items():
        path = work.runs / f"{name.replace(' ', '_').lower()}.json"
        of = {"minutes": options.minutes, "images": options.images, "machine": machine, **settings_of(make, size)}
        rows[name] = kept(path, of, partial(compare, make, size, split, options))
        print(name, rows[name], flush=True)
    numbers = {
        "command": command_line(),
        "machine": machine,
        "study": options.data,
        "minutes": options.minutes,
        "images": min(options.images, len(split.test)),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / f"likelihood_{options.data}.json", json.dumps(numbers, indent=1) + "\n")
    write_text(options.out / f"likelihood_{options.data}.md", render(numbers))
    print(render(numbers))


if __name__ == "__main__":
    main()
