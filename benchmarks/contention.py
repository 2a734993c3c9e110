"""What a training step on a CPU costs alone, and beside a second process that trains as well.

    python benchmarks/contention.py

The step of the digits' flow, with as many threads as there are cores, for several ways in which OpenMP's threads may
wait for each other.  `biflow` commands set GOMP_SPINCOUNT=100 unless the user has set something.  Writes
docs/results/speed/contention.{md,json}.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "as PyTorch comes": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100 (biflow)": {"GOMP_SPINCOUNT": "100"},
}
STEPS = 60


def train(steps: int) -> float:
    """Milliseconds of a step of the digits' flow, the mean over so many."""
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

    def some() -> None:
        for _ in range(steps):
            trainer._take_step(batch)

    return 1e3 * seconds(some, device, 1) / steps


def start(setting: dict[str, str], steps: int) -> subprocess.Popen[str]:
    """A process that trains with this setting and prints what a step took."""
    command = [sys.executable, __file__, "--steps", str(steps)]
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    return subprocess.Popen(command, env=ours | setting, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> float:
    """What a process printed."""
    return float(process.communicate()[0])


def main() -> None:
    """Measure every setting alone and in a pair, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="train for so many steps, and print what one took")
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed"))
    arguments = parser.parse_args()
    if arguments.steps:
        print(train(arguments.steps))
        return
    import torch
    from machine import report

    from biflow.training.provenance import describe_machine

    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        alone = result(start(setting, STEPS))
        pair = [start(setting, STEPS) for _ in range(2)]
        found[name] = {"alone": alone, "beside another": max(result(process) for process in pair)}
    rows = [
        [name, f"{each['alone']:.0f}", f"{each['beside another']:.0f}", f"{each['beside another'] / each['alone']:.1f}"]
        for name, each in found.items()
    ]
    numbers = {"machine": describe_machine(torch.device("cpu")), "ms_a_step": found}
    report(arguments.out / "contention", ["setting", "ms a step, alone", "beside a second", "ratio"], rows, numbers)


if __name__ == "__main__":
    main()
