"""The tables of BiFlow and FlowBack: the published numbers, our small-scale results, and the full-size commands.

    python benchmarks/tables.py

Renders docs/results/tables.md from benchmarks/paper_tables.yaml and the JSON in docs/results; trains nothing.
"""

import argparse
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from textwrap import fill
from typing import Any, NamedTuple

import ablations
import repa
import yaml
from seeds import decide, summary

from biflow.config.base import Config, check_config
from biflow.files import write_text
from biflow.training.run import MODEL_FOLDER

PAPER_TABLES = Path(__file__).with_name("paper_tables.yaml")
RESULTS = Path(__file__).parents[1] / "docs" / "results"
NOT_MEASURED, UNKNOWN = "not measured", "unknown"
WIDTH = 110  # of commands
LINKS = {
    "BiFlow": "[BiFlow](https://arxiv.org/abs/2512.10953)",
    "FlowBack": "[FlowBack / R-REPA](https://arxiv.org/abs/2511.22345)",
}


class Row(Config):
    """One row of a paper's table; the keys are documented in `paper_tables.yaml`."""

    name: str
    numbers: tuple[str, ...] = ()
    train: str = ""
    sample: str = ""
    data: str = ""
    measured: str = ""


class Section(Config):
    """One table of a paper."""

    paper: str
    title: str
    source: str
    setting: str
    columns: tuple[str, ...]
    data: str = ""
    num: str = ""
    ours: str = ""
    claims: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    rows: tuple[Row, ...]


class Tables(Config):
    """All of `paper_tables.yaml`."""

    launch: str
    words: dict[str, str]
    sections: tuple[Section, ...]

    def filled(self, text: str) -> str:
        """A command with its words replaced, on one line."""
        return " ".join(Template(text).substitute(self.words).split())


def read_tables(path: Path = PAPER_TABLES) -> Tables:
    """Read the papers' tables; every value is a string, so numbers stay as printed."""
    return check_config(Tables, yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader), origin=str(path))


def commands(tables: Tables, section: Section, row: Row) -> list[str]:
    """The full-size commands of a row: training, then evaluation."""
    if not row.train:
        return []
    train = tables.filled(row.train)
    if not train.startswith("biflow train"):
        return [train]
    words = shlex.split(train)
    out, sample = words[words.index("--out") + 1], tables.filled(row.sample)
    lines = [f"{tables.launch} {train}"]
    if sample:
        swept = "--sweep" in sample
        folder = f"{'sweep' if swept else 'evaluation'}_{section.num}"
        if swept:
            sample += f" --set sweep_num={min(int(section.num), SWEEP_NUM)}"
        lines.append(
            f"biflow evaluate {out}/{MODEL_FOLDER} --data {row.data or section.data} --num {section.num} {sample} "
            f"--features inception --out {out}/{folder}"
        )
    return lines


SWEEP_NUM = 10_000


class Results(NamedTuple):
    """The contents of the JSON files that the tables quote."""

    ablations: Mapping[str, Any]
    repa: Mapping[str, Any]
    quickstart: Mapping[str, Any]
    latency: Mapping[str, Any]


def read_results(folder: Path) -> Results:
    """Read the measurements that the tables quote."""
    names = ("ablations", "repa", "quickstart/report", "speed/latency_biflow_digits")
    return Results(*(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names))


Cells = Callable[[Results, str], list[str]]


def ablation_scores(results: Results) -> ablations.Scores:
    """Scores of every seed, by table and row."""
    return {(each["table"], each["row"]): each["seeds"] for each in results.ablations["rows"]}


def ablation_cells(results: Results, key: str) -> list[str]:
    """Fréchet distance and class accuracy of the row `Table/row`."""
    table, row = key.split("/")
    found = ablation_scores(results)[table, row]
    accuracies = [100 * each["class_accuracy"] for each in found]
    return [summary([each["frechet_distance"] for each in found]), f"{summary(accuracies, 1)}%"]


def repa_cells(results: Results, strategy: str) -> list[str]:
    """Fréchet distance of the exact inverse and single-gradient accuracy of an alignment strategy."""
    found = results.repa["scores"][strategy]
    accuracies = [100 * each["accuracy"] for each in found]
    return [summary([each["frechet_distance"] for each in found]), f"{summary(accuracies, 1)}%"]


def during_training(results: Results, key: str) -> list[Mapping[str, float]]:
    """The measurements of every seed after a fraction of its steps, given `strategy fraction`."""
    strategy, share = key.split()
    seeds = results.repa["curves"][strategy]
    return [next(line for line in seed if line["step"] >= float(share) * seed[-1]["step"]) for seed in seeds]


def curve_cells(results: Results, key: str) -> list[str]:
    """The metrics of `repa_cells` after a fraction of the steps."""
    found = during_training(results, key)
    accuracies = [100 * each["accuracy"] for each in found]
    return [summary([each["frechet_distance"] for each in found]), f"{summary(accuracies, 1)}%"]


def quickstart_cells(results: Results, sampler: str) -> list[str]:
    """Fréchet distance and class accuracy of the quickstart at the best guidance strength; one seed."""
    found = results.quickstart["samples"][sampler]
    return [f"{found['frechet_distance']:.2f}", f"{found['class_accuracy']:.1%}"]


def speed_cells(results: Results, sampler: str) -> list[str]:
    """Milliseconds per image by batch size."""
    return [f"{time:.3g} ms" for time in latencies(results)[sampler].values()]


def latencies(results: Results) -> Mapping[str, Mapping[str, float]]:
    """Sampler -> batch size -> milliseconds per image."""
    return results.latency["milliseconds_per_image_by_batch_size"]


def throughput_cells(results: Results, strategy: str) -> list[str]:
    """Training speed relative to no alignment, by the shape of the flow."""
    return [f"{shares[strategy]:.2f}" for shares in results.repa["throughput"].values()]


def reach_cells(results: Results, strategy: str) -> list[str]:
    """Fraction of the steps after which each seed reaches the plain flow's final Fréchet distance."""
    shares = [each["frechet_distance"] for each in results.repa["reach"][strategy]]
    return [", ".join("never" if share is None else f"{share:.2f}" for share in shares)]


SCORED = ("digits: FD", "digits: class accuracy")
FLOW_SCORED = ("digits: FD, exact inverse", "digits: single-gradient accuracy")
OURS: Mapping[str, tuple[Callable[[Results], Sequence[str]], Cells]] = {
    "": (lambda _: ["digits"], lambda *_: []),
    "ablations": (lambda _: SCORED, ablation_cells),
    "repa": (lambda _: FLOW_SCORED, repa_cells),
    "curve": (lambda _: FLOW_SCORED, curve_cells),
    "quickstart": (lambda _: [f"{head}, one seed" for head in SCORED], quickstart_cells),
    "speed": (
        lambda results: [f"digits: batch {size}" for size in next(iter(latencies(results).values()))],
        speed_cells,
    ),
    "throughput": (lambda results: list(results.repa["throughput"]), throughput_cells),
    "reach": (lambda _: ["digits: fraction of the steps"], reach_cells),
}


def verdicts(results: Results, claim: str) -> list[str]:
    """The verdict on a claim, or on all claims of a table, as lines of Markdown."""
    source, _, name = claim.partition("/")
    if claim in CLAIMS:
        return [CLAIMS[claim](results)]
    if source == "ablations":
        scores = ablation_scores(results)
        return [ablations.verdict(each, scores) for each in ablations.CLAIMS if each.table == name]
    return [repa.claims(results.repa["scores"], results.repa["reach"], results.repa["inverses"])[name]]


def earlier_is_better(results: Results, key: str, *, factor: int, unit: str) -> str:
    """Whether the aligned flow after 40% of the steps beats the plain one at the end."""
    pairs = zip(during_training(results, "reverse 0.4"), during_training(results, "none 1.0"), strict=True)
    found = decide([factor * (ours[key] - plain[key]) for ours, plain in pairs])
    return (
        f"- After 40% of the steps, the aligned flow beats the plain flow at the end of training: "
        f"**{found.outcome}** ({unit} {found})"
    )


def best_guided(results: Results) -> str:
    """One pass against the exact inverse, each at its best guidance; one seed, so never significant."""
    exact, reverse = (results.quickstart["samples"][name]["frechet_distance"] for name in ("exact", "reverse"))
    found = decide([exact - reverse])
    return (
        f"- One pass beats the exact inverse, each at its best guidance: **{found.outcome}** (one seed; FD lower by "
        f"{found.mean:.2f})"
    )


def unguided(results: Results) -> str:
    """One pass against the exact inverse without guidance, for the plain flows of the alignment benchmark."""
    pairs = zip(results.repa["inverses"]["none"], results.repa["scores"]["none"], strict=True)
    found = decide([exact["frechet_distance"] - reverse["frechet_distance"] for reverse, exact in pairs])
    return (
        f"- Hidden alignment beats the exact inverse for the bounded flows of the [alignment benchmark](repa.md): "
        f"**{found.outcome}** (FD lower by {found})"
    )


def one_pass_is_faster(results: Results) -> str:
    """Guided one-pass sampling against the guided exact inverse, wherever both were timed."""
    times = results.quickstart["speed"]["milliseconds_per_image_by_batch_size"]
    ratios = {f"quickstart, batch {size}": time["ratio_guided"] for size, time in times.items()}
    exact, reverse = (latencies(results)[name] for name in ("exact inverse, guided", "one pass, trained guidance"))
    ratios |= {f"random weights, batch {size}": exact[size] / reverse[size] for size in exact}
    outcome = ordered([ratio > 1 for ratio in ratios.values()])
    listed = ", ".join(f"{ratio:.1f}x ({name})" for name, ratio in ratios.items())
    return f"- One pass is faster than the exact inverse, wherever both were timed: **{outcome}** ({listed})"


def speeds_are_ordered(results: Results) -> str:
    """The order of the training speeds, for every shape that was timed; speeds have no seeds."""
    shapes = results.repa["throughput"].values()
    outcome = ordered([each["forward"] > each["detach"] > each["reverse"] for each in shapes])
    return f"- Forward is faster than Detach, and Detach than Reverse, for each of {len(shapes)} shapes: **{outcome}**"


def ordered(found: Sequence[bool]) -> str:
    """The verdict on repeated comparisons of timings, which have no seeds."""
    return "holds" if all(found) else "too close to tell" if any(found) else "does not hold"


CLAIMS: Mapping[str, Callable[[Results], str]] = {
    "curve/FD": lambda results: earlier_is_better(results, "frechet_distance", factor=-1, unit="FD lower by"),
    "curve/accuracy": lambda results: earlier_is_better(results, "accuracy", factor=100, unit="points of accuracy:"),
    "quickstart/quality": best_guided,
    "repa/unguided": unguided,
    "speed/faster": one_pass_is_faster,
    "throughput/order": speeds_are_ordered,
}


def outcomes(lines: Sequence[str]) -> str:
    """How many claims hold, do not hold, or are too close to tell."""
    counts = Counter(re.findall(r"\*\*(.+?)\*\*", "\n".join(lines)))
    plural = {"holds": "hold", "does not hold": "do not hold"}
    order = (*plural, "too close to tell")
    return ", ".join(f"{n} {plural.get(each, each) if n > 1 else each}" for each in order if (n := counts[each]))


def section_lines(tables: Tables, section: Section, results: Results) -> list[str]:
    """A table, the verdicts on its claims, and its commands."""
    found = [line for claim in section.claims for line in verdicts(results, claim)]
    heads, cells = OURS[section.ours]
    head = heads(results)
    rows = [
        [
            row.name,
            *(number or UNKNOWN for number in row.numbers or [""] * len(section.columns)),
            *(cells(results, row.measured) if row.measured else [NOT_MEASURED] * len(head)),
        ]
        for row in section.rows
    ]
    lines = [f"### {section.title}", "", f"{section.source.capitalize()}. {section.setting}", ""]
    lines += repa.table([section.title, *(f"paper: {name}" for name in section.columns), *head], rows)
    lines += ["", f"Claims at our scale: {outcomes(found)}." if found else "Claims: **not measured**.", "", *found]
    return [*lines, *[""] * bool(found), *command_block(tables, section), ""]


def command_block(tables: Tables, section: Section) -> list[str]:
    """The commands of all rows, each under the name of its row."""
    lines = ["```bash"]
    for first in section.first:
        lines += ["# first", wrapped(f"{tables.launch} {tables.filled(first)}")]
    for row in section.rows:
        if found := commands(tables, section, row):
            lines += [f"# {row.name}", *map(wrapped, found)]
    return [*lines, "```"]


def wrapped(command: str) -> str:
    """A command wrapped with backslashes, options kept together with their values."""
    lines = [""]
    for part in re.split(r" (?=--\w)", command):
        if lines[-1] and len(lines[-1]) + len(part) > WIDTH:
            lines.append("  ")
        lines[-1] += part + " "
    return " \\\n".join(line.rstrip() for line in lines)


def overview(tables: Tables, results: Results) -> list[str]:
    """One row for every table."""
    rows = []
    for section in tables.sections:
        found = [line for claim in section.claims for line in verdicts(results, claim)]
        measured = sum(bool(row.measured) for row in section.rows)
        link = f"[{section.title}](#{re.sub(r'[^a-z0-9 -]', '', section.title.lower()).replace(' ', '-')})"
        rows.append([section.paper, link, f"{measured} of {len(section.rows)}", outcomes(found) or NOT_MEASURED])
    return repa.table(["paper", "table", "rows measured here", "claims at our scale"], rows)


def introduction(results: Results) -> list[str]:
    """The paragraphs at the top of the page."""
    scored, aligned, quickstart = results.ablations, results.repa, results.quickstart
    model = quickstart["recipe"]["model"]
    patches = (model["image_size"] // model["patch_size"]) ** 2
    return [
        "Written by `python benchmarks/tables.py` from `benchmarks/paper_tables.yaml` and the JSON files in this "
        "folder. Each table has the paper's numbers as printed, our results at a small scale, the verdicts on the "
        "paper's claims at that scale, and the commands for the full-size rows. **No full-size command has been run "
        "by this project.**",
        "**Scale.** The papers train on ImageNet at 64x64 and 256x256 (256 or 1024 patches, 118 M parameters and more) "
        "and report FID in Inception features. We train on scikit-learn's digits "
        f"({quickstart['data']['train_images']:,} training images, {patches} patches, "
        f"{quickstart['flow']['parameters'] / 1e6:.2f} M parameters) for {scored['steps']:,} steps, with "
        f"{scored['samples']:,} samples and {scored['seeds']} seeds for the ablations, "
        f"{len(aligned['scores']['none'])} for the alignment, and report FD, the Fréchet distance in the features of "
        "a small reference classifier. Compare only the order of the rows with the paper, never the numbers. The "
        "classifiers of `ablations.json`, `repa.json` and the quickstart were trained separately, so their FD cannot "
        "be compared with each other either.",
        "**Reading the tables.** ± is the standard deviation over seeds. A claim *holds* (or *does not hold*) if zero "
        "lies outside the 95% interval (Student's t) of the difference paired by seed; brackets give the difference "
        "and half the interval; intervals are not corrected for multiple claims. A claim about speed *holds* if every "
        f"timing agrees. *{UNKNOWN}*: not in the paper's table, or not known to this project. *{NOT_MEASURED}*: no "
        "small-scale counterpart was run.",
        "**Commands** expect ImageNet as folders (`imagenet64`, `imagenet256`), latents made by the command at the top "
        "of each recipe, eight devices, and the weights of LPIPS, Inception and the encoders. Skip a command that "
        "repeats an earlier one. Guidance 0 means none. For FlowBack's *Acc*, run "
        "`biflow classify runs/tables/NAME/model FOLDER --method gradient --out classes.csv` on the test images and "
        "take the share of correct classes.",
    ]


def render(tables: Tables, results: Results) -> str:
    """The page."""
    lines = ["# The papers' tables", ""]
    for paragraph in introduction(results):
        lines += [fill(paragraph, 120, break_on_hyphens=False), ""]
    lines += [*overview(tables, results), ""]
    for paper, link in LINKS.items():
        lines += [f"## {link}", ""]
        for section in tables.sections:
            if section.paper == paper:
                lines += section_lines(tables, section, results)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--out", type=Path, default=RESULTS / "tables.md")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, render(read_tables(), read_results(arguments.results)))
    print(arguments.out)


if __name__ == "__main__":
    main()
