"""What the benchmarks share: the machine's description, its speed at matrix products, timing, tables and JSON."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from biflow.files import write_text


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """The fastest of some calls, after one that is not timed."""
    times = []
    for i in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        if i:
            times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype, sizes: Sequence[int] = (1024, 2048)) -> float:
    """The most floating-point operations a second of square matrix products, of these sizes."""
    sizes = (8192,) if device.type == "cuda" else sizes
    rates = []
    for size in sizes:
        a = torch.randn(size, size, device=device, dtype=dtype)
        rates.append(2 * size**3 / seconds(lambda a=a: a @ a, device, 5))
    return max(rates)


RATED = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, of the makers' data sheets


def rated_rate(device: torch.device) -> float | None:
    """The peak that a GPU's maker states for bfloat16; None where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((rate for model, rate in RATED.items() if model in name), None)


def report(path: Path, head: list[str], rows: list[list[str]], numbers: dict[str, Any]) -> None:
    """Print a table, and write it and its numbers to this path, with .md and .json put to its end."""
    lines = [head, ["---"] * len(head), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_name(f"{path.name}.md"), table)
    write_text(path.with_name(f"{path.name}.json"), json.dumps(numbers, indent=1) + "\n")
    print(table)
