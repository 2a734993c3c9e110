"""Measure the peak memory of a training step and compare it with the estimate of `biflow plan`.

    python benchmarks/memory.py                  # a CPU
    python benchmarks/memory.py --device cuda

Each row runs two training steps in a separate process.  On a CPU, the peak is computed from the allocations that
PyTorch's profiler records, exact to the byte; the process size would also count libraries, cached memory and
fragmentation.  On a GPU, it is torch.cuda.max_memory_allocated.  Writes docs/results/plan.{md,json} on a CPU,
plan_cuda.{md,json} on a GPU.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from machine import page, save
from torch.profiler import ProfilerActivity, profile

from biflow.config import FlowConfig, FlowFitConfig, ModelConfig, ReverseConfig, ReverseFitConfig, RunConfig
from biflow.data.augment import GUIDED_SHARE
from biflow.distributed import World
from biflow.features.classifier import Classifier
from biflow.features.encoders import make_encoder
from biflow.models.codec import make_codec
from biflow.models.forward_flow import ForwardFlow
from biflow.models.reverse_model import ReverseModel
from biflow.plan.memory import step_memory
from biflow.training.alignment import Alignment
from biflow.training.batches import Batch
from biflow.training.loop import Trainer
from biflow.training.objective import Objective
from biflow.training.objectives import FitFlow, FitJoint, FitReverse
from biflow.training.provenance import describe_machine
from biflow.training.reverse_loss import ReverseLoss

BATCH = 64
STEPS = 2  # gradients and optimizer state exist from the second step on
MODERN = {"norm": "rms", "mlp": "swiglu", "mlp_ratio": 8 / 3, "positions": "rotary", "qk_norm": True}
REPA = {"encoder": "classifier", "layers": [[3, 2], [4, 2]]}
ROWS: dict[str, dict[str, Any]] = {
    "flow, width 128": {},
    "flow, width 256": {"width": 256},
    "flow, width 256, one image": {"width": 256, "batch": 1},
    "flow, width 128, bfloat16": {"precision": "bfloat16"},
    "flow, RMS, SwiGLU, rotary": {"parts": MODERN},
    "flow, RMS, SwiGLU, rotary, bfloat16": {"parts": MODERN, "precision": "bfloat16"},
    "flow, aligned by reverse": {"align": {**REPA, "strategy": "reverse"}},
    "flow, aligned by detach": {"align": {**REPA, "strategy": "detach"}},
    "reverse model": {"stage": "reverse"},
    "reverse model, trained guidance": {"stage": "reverse", "reverse": {"guidance": "trained"}},
    "reverse model, trained guidance, bfloat16": {
        "stage": "reverse",
        "reverse": {"guidance": "trained", **MODERN},
        "precision": "bfloat16",
    },
    "joint": {"stage": "joint"},
}


def run_config(
    *,
    width: int = 128,
    batch: int = BATCH,
    precision: str = "float32",
    parts: dict[str, Any] | None = None,
    align: dict[str, Any] | None = None,
    stage: str = "flow",
    reverse: dict[str, Any] | None = None,
) -> RunConfig:
    """16x16 RGB images in 64 patches, 4 blocks of 4 layers."""
    sizes = {"layers": 4, "width": width, "head_width": 32}
    model = ModelConfig(
        image_size=16,
        channels=3,
        patch_size=2,
        num_classes=10,
        noise_std=0.1,
        flow=FlowConfig.model_validate({"blocks": 4, **sizes, **(parts or {})}),
        reverse=ReverseConfig.model_validate({**sizes, **(reverse or {})}),
    )
    fit = {"batch_size": batch, "precision": precision}
    return RunConfig.model_validate(
        {
            "stage": stage,
            "flow_from": "a model folder" if stage == "reverse" else None,
            "model": model,
            "fit_flow": FlowFitConfig.model_validate({**fit, "align": align}),
            "fit_reverse": ReverseFitConfig.model_validate(fit),
        }
    )


def make_objective(config: RunConfig) -> Objective:
    """The training objective of a config's stage."""
    model, align = config.model, config.fit_flow.align
    shape = (model.channels, model.image_size, model.image_size)
    flow, alignment = ForwardFlow(model), None
    if align:
        encoder = make_encoder(align, classifier=Classifier(model.channels, model.num_classes))
        alignment = Alignment(align, model, encoder, image_shape=shape)
    if config.stage == "flow":
        return FitFlow(flow, alignment)
    assert config.fit_reverse is not None
    loss = ReverseLoss(config.fit_reverse, model, codec=make_codec(model.codec), image_shape=shape)
    if config.stage == "reverse":
        return FitReverse(ReverseModel(model), flow, loss)
    return FitJoint(ReverseModel(model), FitFlow(flow, alignment), loss)


def train(config: RunConfig, device: torch.device) -> None:
    """Run the first training steps."""
    fit, model = config.fit_flow, config.model
    objective = make_objective(config)
    trainer = Trainer(objective, fit, World(0, 1, device))
    images = torch.randn(fit.batch_size, model.channels, model.image_size, model.image_size, device=device)
    labels = torch.arange(fit.batch_size, device=device) % model.num_classes
    guided = torch.arange(fit.batch_size, device=device) < GUIDED_SHARE * (1 - fit.label_drop) * fit.batch_size
    for _ in range(STEPS):
        trainer._take_step(Batch(images, images + 0.1, labels, guided.float()))


def measure(config: RunConfig, device: torch.device) -> int:
    """Peak allocated bytes."""
    torch.manual_seed(0)
    if device.type == "cuda":
        train(config, device)
        return torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(config, device)
    events = profiler.profiler.kineto_results.events()
    now, most = 0, 0
    for event in sorted((each for each in events if each.name() == "[memory]"), key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def compare(name: str, device: str) -> dict[str, Any]:
    """One row, measured by this script in a separate process."""
    config = run_config(**ROWS[name])
    command = [sys.executable, __file__, "--device", device, "--row", name]
    measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    memory = step_memory(config, config.stage, devices=1, sharded=False)
    batch = config.fit_flow.batch_size
    return {
        "name": name,
        "batch_size": batch,
        "measured": measured,
        "estimated": memory.peak(batch),
        "estimated_without_images": memory.fixed,
    }


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    text = (
        "Written by `python benchmarks/memory.py`: peak memory of a training step on 16x16 RGB images (64 patches), "
        "measured, and as `biflow plan` estimates it. The fixed part of the estimate does not depend on the batch size."
    )
    head = ["", "batch", "measured, MiB", "estimated, MiB", "fixed part, MiB", "estimated / measured"]
    rows = [
        [each["name"], str(each["batch_size"])]
        + [f"{each[key] / 2**20:.1f}" for key in ("measured", "estimated", "estimated_without_images")]
        + [f"{each['estimated'] / each['measured']:.3f}"]
        for each in numbers["rows"]
    ]
    return page("Memory of a training step", text, head, rows, machine=numbers["machine"])


def main() -> None:
    """Measure every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--row", help="only measure this row, and print its bytes")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.row:
        print(measure(run_config(**ROWS[arguments.row]), device))
        return
    found = [compare(name, arguments.device) for name in ROWS]
    numbers = {"machine": describe_machine(device), "rows": found}
    save(arguments.out / ("plan_cuda" if device.type == "cuda" else "plan"), render(numbers), numbers)


if __name__ == "__main__":
    main()
