"""Milliseconds per image of every sampler at the sizes of a recipe, with random weights.

    python benchmarks/latency.py                                       # the digits' model on the CPU
    python benchmarks/latency.py --recipe biflow_b2 --device cuda --batch 128 --compile

Noise to patches, without the codec; the fastest of fifteen rounds.  One pass is timed without guidance, with trained
guidance (the strength is an extra input) and with two-pass guidance; the exact inverse patch by patch, with and without
guidance, and its score step alone.  Jacobi's cost depends on the trained weights: see benchmarks/inverse.py.  Uses
bfloat16 autocast on a GPU.  Writes docs/results/speed/latency_RECIPE.{md,json}.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from machine import page, save, seconds

from biflow.config import ModelConfig, load_recipe
from biflow.data.randomness import normal_for
from biflow.evaluation.cost import count_parameters
from biflow.models.model import new_model
from biflow.models.reverse_model import ReverseModel
from biflow.nn.compilation import compile_layers
from biflow.sampling.denoise import score_denoise
from biflow.sampling.guidance import Guidance
from biflow.sampling.sequential import invert_sequentially
from biflow.training.provenance import describe_machine

GUIDANCE = 1.0
ROUNDS = 15


def reverse_model(config: ModelConfig, guidance: str, device: torch.device, *, compiled: bool) -> ReverseModel:
    """The reverse model of a config, with this kind of guidance."""
    assert config.reverse is not None
    changed = config.model_copy(update={"reverse": config.reverse.model_copy(update={"guidance": guidance})})
    model = ReverseModel(changed).to(device).eval().requires_grad_(False)
    if compiled:
        compile_layers(model, device)
    return model


def samplers(
    config: ModelConfig, batch: int, device: torch.device, *, compiled: bool
) -> dict[str, Callable[[], object]]:
    """Every sampler by name, as a function without arguments."""
    trained, two_passes = (reverse_model(config, kind, device, compiled=compiled) for kind in ("trained", "two_passes"))
    flow = new_model(config, ()).flow.to(device).eval().requires_grad_(False)
    z = normal_for(range(batch), (config.num_patches, config.patch_dim), "latency").to(device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    guidance = Guidance(GUIDANCE)
    return {
        "one pass": lambda: two_passes(z, labels),
        "one pass, trained guidance": lambda: trained(z, labels, GUIDANCE),
        "two-pass guidance": lambda: two_passes(z, labels, GUIDANCE),
        "exact inverse": lambda: invert_sequentially(flow, z, labels),
        "exact inverse, guided": lambda: invert_sequentially(flow, z, labels, guidance=guidance),
        "score step alone": lambda: score_denoise(flow, z, labels),
    }


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    times = numbers["milliseconds_per_image_by_batch_size"]
    text = (
        f"Written by `python benchmarks/latency.py --recipe {numbers['recipe']}`: from noise to patches with random "
        f"weights in {numbers['precision']}{', the reverse model compiled' * numbers['compiled']}. Guided samplers use "
        f"w = {GUIDANCE:g}; the exact inverse is sequential, without its score step."
    )
    head = ["", *(f"ms per image, batch {size}" for size in next(iter(times.values())))]
    rows = [[name, *(f"{time:.3f}" for time in each.values())] for name, each in times.items()]
    return page("Latency of every sampler", text, head, rows, machine=numbers["machine"])


def main() -> None:
    """Time every sampler and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="biflow_digits")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers of the reverse model with torch.compile"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed"))
    arguments = parser.parse_args()
    config, device = load_recipe(arguments.recipe).model, arguments.device
    assert config.reverse is not None, "Expected a recipe with a reverse model."
    found: dict[str, dict[str, float]] = {}
    for batch in arguments.batch:
        timed = samplers(config, batch, device, compiled=arguments.compile)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            for turn in range(ROUNDS):  # interleaved, so that a slow moment of the machine affects all samplers
                for name, sampler in timed.items():
                    if turn and device.type == "cuda" and "exact" in name:
                        continue  # takes minutes; once is enough
                    time = 1e3 * seconds(sampler, device, 1) / batch
                    times = found.setdefault(name, {})
                    times[str(batch)] = min(time, times.get(str(batch), time))
    numbers: dict[str, Any] = {
        "machine": describe_machine(device),
        "recipe": arguments.recipe,
        "reverse_parameters": count_parameters(ReverseModel(config)),
        "precision": "bfloat16" if device.type == "cuda" else "float32",
        "compiled": arguments.compile,
        "milliseconds_per_image_by_batch_size": found,
    }
    save(arguments.out / f"latency_{arguments.recipe}", render(numbers), numbers)


if __name__ == "__main__":
    main()
