"""Time the preparation of a training batch, including all of its randomness.

    python benchmarks/batches.py

512 images of 32x32 from memory, with random flips, noise, label dropout and guidance strengths, as for a reverse
model, on PyTorch's default number of threads.  For comparison: the noise alone, and the noise from one NumPy generator
per image, the previous implementation.  Writes docs/results/speed/batches.{md,json}.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import page, save, seconds

from biflow.cli.process import keep_freed_memory
from biflow.config import ModelConfig, ReadingConfig, ReverseConfig, ReverseFitConfig, RunConfig
from biflow.data.datasets import ImageSet
from biflow.data.randomness import normal_for, stream
from biflow.distributed import World
from biflow.models.codec import PixelCodec
from biflow.models.model import new_model
from biflow.training.objectives import FitReverse
from biflow.training.provenance import describe_machine
from biflow.training.reverse_loss import ReverseLoss
from biflow.training.stages import Run, training_batches

SIDE, BATCH, IMAGES, TURNS = 32, 512, 4096, 20


def noise_per_image() -> None:
    """The noise of a batch from one generator per image."""
    shape = (3, SIDE, SIDE)
    np.stack([stream("noise", 0, index).standard_normal(shape, np.float32) for index in range(BATCH)])


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    text = (
        "Written by `python benchmarks/batches.py`: milliseconds to prepare a training batch of "
        f"{numbers['batch_size']} images of {numbers['side']}x{numbers['side']}."
    )
    rows = [[name, f"{time:.1f}"] for name, time in numbers["ms"].items()]
    return page("Training batches", text, ["", "ms"], rows, machine=numbers["machine"])


def main() -> None:
    """Time all variants, interleaved, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed"))
    arguments = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cpu")
    sizes = {"image_size": SIDE, "channels": 3, "patch_size": 2, "num_classes": 10, "noise_std": 0.05}
    config = ModelConfig(**sizes, reverse=ReverseConfig(guidance="trained"))
    fit = ReverseFitConfig(batch_size=BATCH)
    run_config = RunConfig(model=config, fit_reverse=fit, reading=ReadingConfig(flip=True))
    pixels = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
    data = ImageSet(pixels, torch.arange(IMAGES) % 10, tuple(str(label) for label in range(10)))
    run = Run(run_config, data, PixelCodec(), World(0, 1, device), Path("unused"), lambda *_: [])
    model = new_model(config, data.class_names)
    assert model.reverse
    objective = FitReverse(
        model.reverse, model.flow, ReverseLoss(fit, config, codec=run.codec, image_shape=data.image_shape)
    )
    make_batch = training_batches(run, "reverse", objective, fit)
    variants = {
        "full batch": lambda: make_batch(3),
        "noise only": lambda: normal_for(range(BATCH), (3, SIDE, SIDE), "noise", 0),
        "noise only, one generator per image": noise_per_image,
    }
    found: dict[str, float] = {}
    for _ in range(TURNS):
        for name, variant in variants.items():
            found[name] = min(found.get(name, float("inf")), 1e3 * seconds(variant, device, 1))
    numbers: dict[str, Any] = {"machine": describe_machine(device), "batch_size": BATCH, "side": SIDE, "ms": found}
    save(arguments.out / "batches", render(numbers), numbers)


if __name__ == "__main__":
    main()
