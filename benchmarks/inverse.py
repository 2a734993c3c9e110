"""Cost of every exact inverse from 16 to 1024 patches: time, network calls, error, memory.

    python benchmarks/inverse.py                        # trains a small flow per length first, about 20 minutes
    python benchmarks/inverse.py --lengths 16 64        # only these lengths
    python benchmarks/inverse.py --model MODEL --guidance 0 1   # your own flow, at these guidance strengths
    python benchmarks/inverse.py --refine --lengths 16 64 256   # also trains reverse models, another ten minutes
    python benchmarks/inverse.py --shape                # sequential against one forward pass, 8 blocks x 2 layers x 256
    python benchmarks/inverse.py --shape --recipe itarflow_b2 --device cuda

Jacobi's number of rounds depends on the trained weights, so each flow is trained: the digits' recipe on digits resized
to the length, 400 steps at batch size 8; reverse models 1,000 steps at batch size 16.  The runs are kept in
runs/inverse.  Batch 1; the fastest of three calls.  Writes docs/results/speed/inverse*.{md,json}.
"""

import argparse
import ctypes
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import runs
import torch
import torch.nn.functional as F
from machine import page, save, seconds
from rich.console import Console

from biflow.checkpoint import load_model
from biflow.config import FlowConfig, ModelConfig, load_recipe
from biflow.data.datasets import load_data
from biflow.data.randomness import normal_for, seeded_weights
from biflow.models.forward_flow import ForwardFlow
from biflow.models.model import Model
from biflow.sampling.guidance import Guidance
from biflow.sampling.jacobi import invert_by_jacobi, measure_groups
from biflow.sampling.one_pass import guess_states
from biflow.sampling.refine import refine
from biflow.sampling.result import SamplerOutput
from biflow.sampling.sequential import invert_sequentially
from biflow.training.provenance import describe_machine

LENGTHS = [16, 64, 144, 256, 576, 1024]
STEPS, BATCH = 400, 8
REVERSE_STEPS, REVERSE_BATCH = 1000, 16
TOLERANCE = 1e-3
MIB = 2**20


def trained_flow(length: int, folder: Path) -> Path:
    """The model folder of a flow over this many patches, trained unless it exists."""
    overrides = ["stage=flow", "model.reverse=null", f"fit_flow.steps={STEPS}", f"fit_flow.batch_size={BATCH}"]
    return trained(length, folder / f"patches_{length}", overrides)


def trained_reverse(length: int, folder: Path) -> Path:
    """The model folder of the same flow with a reverse model, trained unless it exists."""
    overrides = ["stage=reverse", f"flow_from={trained_flow(length, folder)}"]
    overrides += [f"fit_reverse.steps={REVERSE_STEPS}", f"fit_reverse.batch_size={REVERSE_BATCH}"]
    return trained(length, folder / f"patches_{length}_reverse", overrides)


def trained(length: int, folder: Path, overrides: list[str]) -> Path:
    """The model folder of a run on digits resized to this many patches."""
    patch_size, side = (2, 8) if length == 16 else (1, round(length**0.5))
    config = load_recipe("biflow_digits", [f"model.image_size={side}", f"model.patch_size={patch_size}", *overrides])
    digits = load_data("digits").train
    images = F.interpolate(digits.images.float(), size=(side, side), mode="bilinear").round().to(torch.uint8)
    return runs.trained(config, replace(digits, images=images), folder, console=Console())


def peak_memory(call: Callable[[], object]) -> float | None:
    """Peak additional memory of a call in bytes, or None if the system does not report it."""
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _kib(status.read_text(), "VmRSS")
        call()
        return 1024 * (_kib(status.read_text(), "VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _kib(status: str, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found
    return int(found[1])


def measure(model: Model, guidance: Guidance, tolerance: float) -> dict[str, Any]:
    """Every exact inverse of a trained flow from the same noise; with a reverse model, also `refine`."""
    flow, reverse, device = model.flow, model.reverse, torch.device("cpu")
    shape = tuple(flow.prior_variance.shape)
    z, labels = normal_for([0], shape, "inverse"), torch.tensor([3])
    several, classes = normal_for(range(8), shape, "groups"), torch.arange(8)
    groups = measure_groups(flow, several, classes, guidance=guidance, tolerance=tolerance)
    samplers: dict[str, Callable[[], SamplerOutput]] = {
        "sequential": lambda: invert_sequentially(flow, z, labels, guidance=guidance),
        "jacobi": lambda: invert_by_jacobi(flow, z, labels, guidance=guidance, tolerance=tolerance),
        "gs_jacobi": lambda: invert_by_jacobi(flow, z, labels, guidance=guidance, tolerance=tolerance, groups=groups),
    }
    if reverse:

        def refined() -> SamplerOutput:
            start = guess_states(reverse, z, labels, guidance)
            return refine(flow, z, labels, start=start, guidance=guidance, tolerance=tolerance)

        samplers["refine"] = refined
    exact = samplers["sequential"]().x
    found: dict[str, Any] = {
        "patches": flow.config.num_patches,
        "guidance": guidance.strength,
        "groups": list(groups),
        "forward": {"seconds": seconds(lambda: flow(z, labels), device)},
    }
    for name, sampler in samplers.items():
        drawn = sampler()
        assert drawn.residual is not None
        found[name] = {
            "seconds": seconds(sampler, device),
            "network_calls": drawn.network_calls,
            "rounds": drawn.rounds,
            "residual": drawn.residual.max().item(),
            "error": (drawn.x - exact).abs().max().item(),
            "peak_bytes": peak_memory(sampler),
        }
    return found


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The rows of the table for one flow."""
    forward = f"{found['forward']['seconds'] * 1e3:.1f}"
    lines = [[str(found["patches"]), f"{found['guidance']:g}", "forward", "", "", "", forward, "", "", "", ""]]
    slow = found["sequential"]
    for name in [name for name in ("sequential", "jacobi", "gs_jacobi", "refine") if name in found]:
        each = found[name]
        cells = [str(each["network_calls"]), str(each["rounds"]), f"{each['rounds'] / slow['rounds']:.2f}"]
        cells += [f"{each['seconds'] * 1e3:.0f}", f"{each['seconds'] / slow['seconds']:.2f}"]
        cells += ["" if each["peak_bytes"] is None else f"{each['peak_bytes'] / MIB:.1f}", f"{each['error']:.0e}"]
        groups = " ".join(map(str, found["groups"])) if name == "gs_jacobi" else ""
        lines.append(["", "", name.replace("_", "-"), *cells, groups])
    return lines


def wide(length: int) -> ModelConfig:
    """8 blocks of 2 layers of width 256, one value per patch."""
    flow = FlowConfig(width=256, blocks=8, layers=2, head_width=64)
    side = round(length**0.5)
    return ModelConfig(image_size=side, channels=1, patch_size=1, num_classes=10, noise_std=0.1, flow=flow)


def measure_shape(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Sequential inverse (plain, guided, and of two images) against one forward pass, with random weights."""
    with seeded_weights(0):
        flow = ForwardFlow(config).to(device).eval().requires_grad_(False)
    z = normal_for([0], tuple(flow.prior_variance.shape), "inverse").to(device)
    labels = torch.zeros(1, dtype=torch.long, device=device)
    repeats = 3 if config.num_patches <= 256 else 1
    pair = (z.repeat(2, 1, 1), labels.repeat(2))
    return {
        "patches": config.num_patches,
        "forward": seconds(lambda: flow(z, labels), device, 10),
        "sequential": seconds(lambda: invert_sequentially(flow, z, labels), device, repeats),
        "guided": seconds(lambda: invert_sequentially(flow, z, labels, guidance=Guidance(1.0)), device, repeats),
        "pair": seconds(lambda: invert_sequentially(flow, *pair), device, repeats),
        "network_calls": config.flow.blocks * (config.num_patches - 1),
    }


def shape_row(found: dict[str, Any]) -> list[str]:
    """One row of the `--shape` table."""
    forward, sequential, guided, pair = (found[name] for name in ("forward", "sequential", "guided", "pair"))
    cells = [str(found["patches"]), f"{forward * 1e3:.1f}", str(found["network_calls"]), f"{sequential * 1e3:.0f}"]
    cells += [f"{sequential / forward:.1f}", f"{guided * 1e3:.0f}", f"{pair * 1e3:.0f}", f"{guided / pair:.2f}"]
    return cells


def command(numbers: Mapping[str, Any]) -> str:
    """The command that wrote these numbers."""
    flows = numbers["flows"]
    lengths = dict.fromkeys(str(flow["patches"]) for flow in flows)
    if len(lengths) > 1:
        refined = f" --refine --lengths {' '.join(lengths)}" if "refine" in flows[0] else ""
        return f"python benchmarks/inverse.py{refined}"
    strengths = " ".join(f"{flow['guidance']:g}" for flow in flows)
    return f"python benchmarks/inverse.py --model MODEL --guidance {strengths}"


def render(numbers: Mapping[str, Any]) -> str:
    """The page of the exact inverses."""
    text = (
        f"Written by `{command(numbers)}`: batch 1, tolerance {numbers['tolerance']:g}. T is the number of patches, w "
        "the guidance strength; *rounds* are network calls that depend on each other, *error* is the largest "
        "difference from the sequential result, *MiB* the additional peak memory, and *groups* are the measured group "
        "sizes of every block, from the data to the noise."
    )
    head = ["T", "w", "inverse", "calls", "rounds", "rounds / sequential", "ms", "ms / sequential", "MiB", "error"]
    head.append("groups")
    lines = [line for each in numbers["flows"] for line in rows(each)]
    return page("Exact inverses", text, head, lines, machine=numbers["machine"])


def render_shapes(numbers: Mapping[str, Any]) -> str:
    """The page of `--shape`."""
    text = (
        "Written by `python benchmarks/inverse.py --shape`: the sequential inverse against one forward pass, with "
        "random weights at batch 1. Guidance takes one doubled batch, so compare it with the time of two images."
    )
    head = ["T", "forward ms", "calls", "sequential ms", "sequential / forward", "guided ms", "two images ms"]
    head.append("guided / two images")
    lines = [shape_row(each) for each in numbers["shapes"]]
    return page("Sequential inverse and forward pass", text, head, lines, machine=numbers["machine"])


def main() -> None:
    """Measure every length and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--model", type=Path, help="measure this model folder instead of training flows")
    parser.add_argument("--guidance", type=float, nargs="+", default=[0.0])
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--refine", action="store_true", help="also train reverse models, and measure refine")
    parser.add_argument(
        "--shape", action="store_true", help="time sequential against the forward pass at a fixed shape"
    )
    parser.add_argument("--recipe", help="with --shape: time the flow of this recipe instead")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--runs", type=Path, default=Path("runs/inverse"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed"))
    arguments = parser.parse_args()
    numbers: dict[str, Any] = {"machine": describe_machine(arguments.device)}
    if arguments.shape:
        shapes = [load_recipe(arguments.recipe).model] if arguments.recipe else [wide(t) for t in arguments.lengths]
        numbers["shapes"] = [measure_shape(shape, arguments.device) for shape in shapes]
        name = "_".join(["inverse_shape", *([arguments.recipe] if arguments.recipe else [])])
        save(arguments.out / name, render_shapes(numbers), numbers)
        return
    numbers |= {"tolerance": arguments.tolerance, "steps": STEPS, "batch_size": BATCH}
    prepare = trained_reverse if arguments.refine else trained_flow
    folders = [arguments.model] if arguments.model else [prepare(t, arguments.runs) for t in arguments.lengths]
    models = [load_model(folder) for folder in folders]
    numbers["flows"] = [
        measure(model, Guidance(strength), arguments.tolerance) for model in models for strength in arguments.guidance
    ]
    name = f"_{arguments.model.parent.name}" if arguments.model else "_refine" if arguments.refine else ""
    save(arguments.out / f"inverse{name}", render(numbers), numbers)


if __name__ == "__main__":
    main()
