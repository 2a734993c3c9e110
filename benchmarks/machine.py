"""Shared by the benchmarks: timing, matmul throughput, and writing of pages and JSON."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from biflow.files import write_text


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Seconds of the fastest of several calls, after one warm-up call."""
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
    """Peak throughput of square matrix products of these sizes, in FLOP/s."""
    sizes = (8192,) if device.type == "cuda" else sizes
    rates = []
    for size in sizes:
        a = torch.randn(size, size, device=device, dtype=dtype)
        rates.append(2 * size**3 / seconds(lambda a=a: a @ a, device, 5))
    return max(rates)


RATED = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, from the vendor's data sheets


def rated_rate(device: torch.device) -> float | None:
    """The GPU's rated bfloat16 peak in FLOP/s, or None if unknown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((rate for model, rate in RATED.items() if model in name), None)


def page(
    title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, machine: Mapping[str, Any]
) -> str:
    """A Markdown page: a heading, a paragraph, a table, and the machine."""
    table = "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
    return f"# {title}\n\n{fill(text, 120, break_on_hyphens=False)}\n\n{table}\n\n{described(machine)}.\n"


def command_line() -> str:
    """The command that runs this program."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def described(machine: Mapping[str, Any]) -> str:
    """A machine on one line."""
    threads = f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}" if machine.get("threads") else ""
    return f"{machine['device']}{threads}, {machine['system']}, torch {machine['torch']}"


def save(path: Path, text: str, numbers: dict[str, Any]) -> None:
    """Print a page; write it to PATH.md and its numbers to PATH.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_name(f"{path.name}.md"), text)
    write_text(path.with_name(f"{path.name}.json"), json.dumps(numbers, indent=1) + "\n")
    print(text)
