"""Run the quickstart at several values of one setting, everything else equal, and write one table.

    python benchmarks/compare.py model.noise_std 0.1 0.2 0.3
    python benchmarks/compare.py seed 0 1 2

Each run takes as long as a quickstart.  A value whose run is complete is not run again, and a run that was stopped
goes on.  Writes docs/results/SETTING/table.md and reports.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from biflow.cli.process import keep_freed_memory
from biflow.files import write_text
from biflow.quickstart.run import make_plan, run_quickstart

WAYS = ("exact", "one pass")
HEAD = [*(f"{way}: {what}" for way in WAYS for what in ("w", "accuracy", "Fréchet", "spread")), "ratio", "ratio at w=0"]


def measure(override: str, folder: Path, console: Console) -> dict[str, Any]:
    """The report of a quickstart with this override, run or continued in `folder`."""
    done = folder / "report.json"
    if not done.exists():
        console.rule(override)
        resume = (folder / "config.yaml").exists()
        run_quickstart(folder, make_plan([override]), resume=resume, console=console)
    return json.loads(done.read_text(encoding="utf-8"))


def row(report: dict[str, Any]) -> list[str]:
    """One line of the table: both ways of sampling, each at its best strength."""
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
    head = [arguments.setting, *HEAD]
    lines = [head, ["---"] * len(head), *([value, *row(report)] for value, report in reports.items())]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    folder = arguments.out / arguments.setting
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", table)
    write_text(folder / "reports.json", json.dumps(reports, indent=1) + "\n")
    console.print(table, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
