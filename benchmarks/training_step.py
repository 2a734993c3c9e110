"""Throughput of a training step of the flow, relative to the machine's matrix products.

    python benchmarks/training_step.py                                     # a CPU: widths 256 and 512, T = 256
    python benchmarks/training_step.py --compile                           # each shape also with torch.compile
    python benchmarks/training_step.py --device cuda --recipe flowback_latent256 --batch 32

A step is the forward and backward pass, gradient clipping, AdamW and the moving average of the weights, on random
images; bfloat16 autocast on a GPU, float32 on a CPU.  FLOPs count matrix products and causal attention (half of the
full product); the backward pass counts as two forward passes.  Utilisation is relative to large square matrix products
timed between the steps, and on a GPU also to its rated peak (model FLOPs utilisation).  Writes
docs/results/speed/training_step*.{md,json}.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from machine import matmul_rate, page, rated_rate, save, seconds

from biflow.cli.process import keep_freed_memory
from biflow.config import FitConfig, FlowConfig, ModelConfig, load_recipe
from biflow.distributed import World
from biflow.models.forward_flow import ForwardFlow
from biflow.training.batches import Batch
from biflow.training.loop import Trainer
from biflow.training.objectives import FitFlow
from biflow.training.provenance import describe_machine

ROUNDS = 3


def plain(width: int) -> ModelConfig:
    """32x32 RGB images in 256 patches, 4 blocks of 4 layers."""
    flow = FlowConfig(width=width, blocks=4, layers=4, head_width=64)
    return ModelConfig(image_size=32, channels=3, patch_size=2, num_classes=10, noise_std=0.1, flow=flow)


def forward_operations(config: ModelConfig) -> float:
    """FLOPs of the forward pass of one image."""
    flow, length = config.flow, config.num_patches
    matrices = 4 + (3 if flow.mlp == "swiglu" else 2) * flow.mlp_ratio  # of width x width
    layer = 2 * matrices * flow.width**2 + 4 * flow.width * length / 2
    ends = 2 * (1 if flow.volume_preserving else 2) * config.patch_dim * flow.width + 2 * config.patch_dim * flow.width
    return length * (sum(flow.block_layers) * layer + flow.blocks * ends)


def measure(config: ModelConfig, batch_size: int, device: torch.device, *, compiled: bool) -> dict[str, Any]:
    """Tokens per second and utilisation, the best of several rounds."""
    world = World(0, 1, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    precision = str(dtype).removeprefix("torch.")
    fit = FitConfig.model_validate({"compile": compiled, "precision": precision})
    trainer = Trainer(FitFlow(ForwardFlow(config)), fit, world)
    shape = (batch_size, config.channels, config.image_size, config.image_size)
    images, labels = torch.randn(shape, device=device), torch.zeros(batch_size, dtype=torch.long, device=device)
    batch = Batch(images, images, labels, torch.zeros(batch_size, device=device))

    def step() -> None:
        trainer._take_step(batch)

    rounds = [(matmul_rate(device, dtype), seconds(step, device, 2)) for _ in range(ROUNDS)]
    peak, best = max(rate for rate, _ in rounds), min(time for _, time in rounds)
    rate = 3 * batch_size * forward_operations(config) / best
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "width": config.flow.width,
        "patches": config.num_patches,
        "batch_size": batch_size,
        "precision": precision,
        "compiled": compiled,
        "seconds": best,
        "tokens_per_second": batch_size * config.num_patches / best,
        "gflops": rate / 1e9,
        "matmul_gflops": peak / 1e9,
        "share_of_matmul": rate / peak,
        "share_of_rated": rate / rated if (rated := rated_rate(device)) else None,
    }


def row(found: dict[str, Any]) -> list[str]:
    """One row of the table."""
    return [
        str(found["width"]),
        f"{found['parameters'] / 1e6:.1f} M",
        str(found["patches"]),
        str(found["batch_size"]),
        found["precision"] + (", compiled" if found["compiled"] else ""),
        f"{found['seconds'] * 1e3:.0f}",
        f"{found['tokens_per_second']:,.0f}",
        f"{found['gflops']:,.0f}",
        f"{found['matmul_gflops']:,.0f}",
        f"{found['share_of_matmul']:.0%}",
        *([f"{found['share_of_rated']:.0%}"] if found["share_of_rated"] else []),
    ]


def command(numbers: Mapping[str, Any]) -> str:
    """The command that wrote these numbers."""
    compiled = any(each["compiled"] for each in numbers["steps"])
    return f"python benchmarks/training_step.py{' --compile' * compiled}"


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    steps = numbers["steps"]
    text = (
        f"Written by `{command(numbers)}`: forward and backward pass, gradient clipping, AdamW and the moving average "
        "of the weights. *of matmul* is the share of the throughput of large square matrix products, timed between the "
        "steps; attention counts as causal, half of the full product."
    )
    head = ["width", "parameters", "T", "batch", "precision", "ms per step", "tokens/s", "GFLOP/s", "matmul GFLOP/s"]
    head += ["of matmul", *(["of rated peak (MFU)"] if steps[0]["share_of_rated"] else [])]
    return page("Training step", text, head, [row(each) for each in steps], machine=numbers["machine"])


def main() -> None:
    """Measure every shape and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--recipe", action="append", help="time the flow of this recipe instead of the default shapes")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="time each shape also with torch.compile")
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed"))
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    shapes = [load_recipe(name).model for name in arguments.recipe] if arguments.recipe else [plain(256), plain(512)]
    found = [
        measure(config, arguments.batch, arguments.device, compiled=compiled)
        for config in shapes
        for compiled in ([False, True] if arguments.compile else [False])
    ]
    numbers = {"machine": describe_machine(arguments.device), "steps": found}
    name = "_".join(["training_step", *(arguments.recipe or []), *(["compiled"] if arguments.compile else [])])
    save(arguments.out / name, render(numbers), numbers)


if __name__ == "__main__":
    main()
