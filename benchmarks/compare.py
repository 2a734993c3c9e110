"""Run the quickstart at several values of one setting, all else equal, and write one table.

    python benchmarks/compare.py model.noise_std 0.1 0.2 0.3
    python benchmarks/compare.py seed 0 1 2

Each run takes as long as a quickstart.  Complete runs are reused and interrupted runs resume.  Writes
docs/results/SETTING/table.md and reports.json.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import page
from rich.console import Console

from biflow.cli.process import keep_freed_memory
from biflow.files import write_text
from biflow.quickstart.run import make_plan, run_quickstart

COLUMNS = ("w", "accuracy", "Fréchet", "spread")
HEAD = [*(f"{name}: {column}" for name in ("exact", "one pass") for column in COLUMNS), "ratio", "ratio at w=0"]


def measure(override: str, folder: Path, console: Console) -> dict[str, Any]:
    """The report of a quickstart with this override, run or resumed in `folder`."""
    done = folder / "report.json"
    if not done.exists():
        console.rule(override)
        resume = (folder / "config.yaml").exists()
        run_quickstart(folder, make_plan([override]), resume=resume, console=console)
    return json.loads(done.read_text(encoding="utf-8"))


def row(report: dict[str, Any]) -> list[str]:
    """One row of the table: both samplers, each at its best guidance strength."""
    cells = []
    for sampler in ("exact", "reverse"):
        drawn = report["samples"][sampler]
        cells += [
            f"{drawn['guidance']:g}{' annealed' if drawn['annealed'] else ''}",
            f"{drawn['class_accuracy']:.1%}",
            f"{drawn['frechet_distance']:.2f}",
            f"{drawn['spread_ratio']:.2f}",
        ]
    unguided = {name: drawn[0]["frechet_distance"] for name, drawn in report["sweep"].items()}
    cells.append(f"{report['samples']['frechet_ratio_reverse_to_exact']:.2f}")
    return [*cells, f"{unguided['reverse'] / unguided['exact']:.2f}"]


def render(setting: str, reports: Mapping[str, dict[str, Any]]) -> str:
    """The page."""
    text = (
        f"Written by `python benchmarks/compare.py {setting} {' '.join(reports)}`: one quickstart per value, each "
        "sampler at its best guidance strength w. *ratio* is the Fréchet distance of one pass relative to the exact "
        "inverse, at the best strengths and without guidance. Every run trains its own reference classifier."
    )
    rows = [[value, *row(report)] for value, report in reports.items()]
    machine = next(iter(reports.values()))["machine"]
    return page(f"The quickstart by {setting}", text, [setting, *HEAD], rows, machine=machine)


def main() -> None:
    """Run every value and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", help="a key of the recipe biflow_digits, such as model.noise_std")
    parser.add_argument("values", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    arguments = parser.parse_args()
    keep_freed_memory()
    console = Console()
    overrides = {value: f"{arguments.setting}={value}" for value in arguments.values}
    reports = {value: measure(each, arguments.runs / each, console) for value, each in overrides.items()}
    folder = arguments.out / arguments.setting
    folder.mkdir(parents=True, exist_ok=True)
    text = render(arguments.setting, reports)
    write_text(folder / "table.md", text)
    write_text(folder / "reports.json", json.dumps(reports, indent=1) + "\n")
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
