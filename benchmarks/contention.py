"""Time a CPU training step alone and while a second training process runs on the same cores.

    python benchmarks/contention.py

Trains the digits' flow with one thread per core, under several OpenMP wait policies.  `biflow` commands set
GOMP_SPINCOUNT=100 by default.  Writes docs/results/speed/contention.{md,json}.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS = {
    "PyTorch default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100 (biflow)": {"GOMP_SPINCOUNT": "100"},
}
STEPS = 60
PAIR = "with a second process"


def train(steps: int) -> float:
    """Mean milliseconds per training step of the digits' flow."""
    import torch
    from machine import seconds

    from biflow.cli.process import keep_freed_memory
    from biflow.config import load_recipe
    from biflow.distributed import World
    from biflow.models.forward_flow import ForwardFlow
    from biflow.training.batches import Batch
    from biflow.training.loop import Trainer
    from biflow.training.objectives import FitFlow

    keep_freed_memory()
    config, device = load_recipe("biflow_digits"), torch.device("cpu")
    trainer = Trainer(FitFlow(ForwardFlow(config.model)), config.fit_flow, World(0, 1, device))
    images = torch.randn(config.fit_flow.batch_size, 1, 8, 8)
    labels = torch.zeros(len(images), dtype=torch.long)
    batch = Batch(images, images, labels, torch.zeros(len(images)))

    def take_steps() -> None:
        for _ in range(steps):
            trainer._take_step(batch)

    return 1e3 * seconds(take_steps, device, 1) / steps


def start(setting: dict[str, str], steps: int) -> subprocess.Popen[str]:
    """Start a process that trains with this setting and prints the milliseconds per step."""
    command = [sys.executable, __file__, "--steps", str(steps)]
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    return subprocess.Popen(command, env=ours | setting, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> float:
    """The milliseconds per step that a process printed."""
    return float(process.communicate()[0])


def render(numbers: Mapping[str, Any]) -> str:
    """The page."""
    from machine import page

    text = (
        "Written by `python benchmarks/contention.py`: milliseconds per training step of the digits' flow, alone and "
        "while a second process trains on the same cores. With fair sharing the ratio would be 2."
    )
    rows = [
        [name, f"{each['alone']:.0f}", f"{each[PAIR]:.0f}", f"{each[PAIR] / each['alone']:.1f}"]
        for name, each in numbers["ms_a_step"].items()
    ]
    head = ["setting", "ms per step, alone", PAIR, "ratio"]
    return page("Two training processes on the same cores", text, head, rows, machine=numbers["machine"])


def main() -> None:
    """Measure every setting with one and with two processes, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="only train for this many steps and print the milliseconds per step")
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed"))
    arguments = parser.parse_args()
    if arguments.steps:
        print(train(arguments.steps))
        return
    import torch
    from machine import save

    from biflow.training.provenance import describe_machine

    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        alone = result(start(setting, STEPS))
        pair = [start(setting, STEPS) for _ in range(2)]
        found[name] = {"alone": alone, PAIR: max(result(process) for process in pair)}
    numbers = {"machine": describe_machine(torch.device("cpu")), "ms_a_step": found}
    save(arguments.out / "contention", render(numbers), numbers)


if __name__ == "__main__":
    main()
