"""Compare exported files with PyTorch: latency, size, numerical difference and sample quality.

    python benchmarks/export.py runs/quickstart     # the folder of a finished quickstart

All formats sample the same images on one CPU thread, interleaved, so that a slow moment of the machine affects all;
the fastest round counts.  Sample quality comes from the quickstart's reference classifier in RUN/judge and is left out
if there is none.  Writes docs/results/export.{md,json}.
"""

import argparse
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import page, save, seconds
from torch import Tensor

from biflow.data.datasets import load_data
from biflow.data.randomness import normal_for
from biflow.export.onnx import SampleFunction, export_model, make_sampler, read_onnx, read_torch
from biflow.features.judge import load_judge
from biflow.pipeline import Pipeline
from biflow.quickstart.measures import SampleScorer
from biflow.training.provenance import describe_machine

BATCHES, ROUNDS = (1, 16, 256), 15
GUIDANCE = 0.25
JUDGED = 1000  # samples
FILES = {
    "torch.export, float32": ("torch", "float32"),
    "ONNX, float32": ("onnx", "float32"),
    "ONNX, float16": ("onnx", "float16"),
    "ONNX, int8": ("onnx", "int8"),
}
PLAIN = "PyTorch"


def write_files(model: Path, folder: Path) -> tuple[dict[str, SampleFunction], dict[str, dict[str, float]]]:
    """Export every format: a sampling function for each, and its size and difference from PyTorch."""
    samplers, found = {}, {}
    for name, (target, precision) in FILES.items():
        path = folder / f"{precision}{'.pt2' if target == 'torch' else '.onnx'}"
        written = export_model(model, path, target=target, precision=precision)  # type: ignore[arg-type]
        samplers[name] = read_torch(path) if target == "torch" else read_onnx(path, threads=1)
        check = written.check
        found[name] = {"bytes": written.size, "largest_grey_levels": check.grey_levels, "tolerance": check.tolerance}
        found[name]["mean_grey_levels"] = 127.5 * check.mean
    return samplers, found


def inputs(pipe: Pipeline, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, labels and a guidance strength for each image."""
    noise = normal_for(range(count), (pipe.config.num_patches, pipe.config.patch_dim), "sample", 0)
    return noise, torch.arange(count) % max(1, pipe.config.num_classes), torch.full((count,), GUIDANCE)


def measure_times(samplers: dict[str, SampleFunction], pipe: Pipeline) -> dict[str, dict[str, float]]:
    """Milliseconds per image of every format, by batch size."""
    found: dict[str, dict[str, float]] = {name: {} for name in samplers}
    for batch in BATCHES:
        given = inputs(pipe, batch)
        for _ in range(ROUNDS):
            for name, sampler in samplers.items():
                time = 1e3 * seconds(partial(sampler, *given), torch.device("cpu"), 1) / batch
                found[name][str(batch)] = min(time, found[name].get(str(batch), time))
    return found


def judge_samples(samplers: dict[str, SampleFunction], pipe: Pipeline, run: Path) -> dict[str, dict[str, float]]:
    """Sample quality of every format from the same noise, by the reference classifier."""
    if not (run / "judge").is_dir():
        return {}
    judge = SampleScorer(load_judge(run / "judge"), load_data("digits").train)
    given = inputs(pipe, JUDGED)
    found = {}
    for name, sampler in samplers.items():
        pixels = (sampler(*given) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        found[name] = judge(pixels, given[1])
    return found


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    times, files, judged = (numbers[key] for key in ("exported_milliseconds_per_image", "files", "judged"))
    text = (
        f"Written by `python benchmarks/export.py RUN`: one-pass sampling at guidance {numbers['guidance']:g} on one "
        "CPU thread. Speedups and differences are relative to PyTorch, differences in grey levels (0 to 255). Class "
        f"accuracy and Fréchet distance of {numbers['judged_samples']:,} samples, by the quickstart's reference "
        "classifier."
    )
    head = ["", *(f"ms per image, batch {size} (speedup)" for size in times[PLAIN]), "MB", "max difference",
            "mean difference", "class accuracy", "Fréchet distance"]  # fmt: skip
    rows = []
    for name, each in times.items():
        ratios = [f"{time:.3f} ({times[PLAIN][size] / time:.2f})" for size, time in each.items()]
        file, scores = files.get(name), judged.get(name)
        size = [f"{file['bytes'] / 1e6:.2f}", f"{file['largest_grey_levels']:.2g}"] if file else ["", ""]
        size += [f"{file['mean_grey_levels']:.2g}"] if file else [""]
        quality = [f"{scores['class_accuracy']:.1%}", f"{scores['frechet_distance']:.2f}"] if scores else ["", ""]
        rows.append([name, *ratios, *size, *quality])
    return page("Exported files", text, head, rows, machine=numbers["machine"])


@torch.no_grad()
def main() -> None:
    """Export every format, time them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished quickstart")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = arguments.run / "model"
    pipe = Pipeline.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        samplers, files = write_files(model, Path(folder))
        samplers = {PLAIN: make_sampler(pipe), **samplers}
        times, judged = measure_times(samplers, pipe), judge_samples(samplers, pipe, arguments.run)
    numbers: dict[str, Any] = {"machine": describe_machine(torch.device("cpu")), "guidance": GUIDANCE}
    numbers["judged_samples"] = JUDGED
    numbers |= {"exported_milliseconds_per_image": times, "files": files, "judged": judged}
    save(arguments.out / "export", render(numbers), numbers)


if __name__ == "__main__":
    main()
