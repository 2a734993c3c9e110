"""How does the noise that the flow is trained with change both ways of sampling?

Runs the whole quickstart at several noise levels, everything else equal, and writes one table.

    python benchmarks/noise.py --out docs/results/noise     # about 7 minutes a level on two cores; continues if stopped
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from biflow.cli import keep_freed_memory
from biflow.files import write_text
from biflow.quickstart import make_plan, run_quickstart

HEAD = (
    "noise std",
    "exact: w",
    "class",
    "Frechet",
    "one pass: w",
    "class",
    "Frechet",
    "ratio",
    "ratio without guidance",
)


def measure(noise_std: float, folder: Path, console: Console) -> dict:
    """The report of a quickstart at this noise level, run or continued in `folder`."""
    done = folder / "report.json"
    if not done.exists():
        resume = (folder / "config.yaml").exists()
        run_quickstart(folder, make_plan([f"model.noise_std={noise_std}"]), resume=resume, console=console)
    return json.loads(done.read_text(encoding="utf-8"))


def row(noise_std: float, report: dict) -> list[str]:
    """One line of the table."""
    cells = [f"{noise_std:g}"]
    for sampler in ("exact", "reverse"):
        drawn = report["samples"][sampler]
        cells += [f"{drawn['guidance']:g}", f"{drawn['class_accuracy']:.1%}", f"{drawn['frechet_distance']:.2f}"]
    unguided = {line["method"]: line["frechet_distance"] for line in report["sweep"] if line["guidance"] == 0}
    cells.append(f"{report['samples']['frechet_ratio_reverse_to_exact']:.2f}")
    return [*cells, f"{unguided['reverse'] / unguided['sequential']:.2f}"]


def main() -> None:
    """Run every level and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/noise"))
    parser.add_argument("--runs", type=Path, default=Path("runs/noise"))
    parser.add_argument("--levels", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    arguments = parser.parse_args()
    keep_freed_memory()
    console = Console()
    reports = {level: measure(level, arguments.runs / f"{level:g}", console) for level in arguments.levels}
    lines = [HEAD, ["---"] * len(HEAD), *(row(level, report) for level, report in reports.items())]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "table.md", table)
    write_text(arguments.out / "reports.json", json.dumps({f"{k:g}": v for k, v in reports.items()}, indent=1) + "\n")
    console.print(table, highlight=False)


if __name__ == "__main__":
    main()
