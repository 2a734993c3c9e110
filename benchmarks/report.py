"""Every measurement under docs/results on one page, with figures, made by nothing but the JSON.

    python benchmarks/report.py

Writes docs/results/figures.html: one file, no scripts, nothing from the network.  JSON of a kind that this does not
know is listed at the page's end.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from ablations import CLAIMS, verdict
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from repa import PANELS, claims, draw_curves
from seeds import judge
from tables import outcomes

from biflow.evaluation.html import ACCENT, COLOURS, INK, QUIET, html_table, render_page, style, svg
from biflow.files import write_text
from biflow.quickstart.report import GUIDANCE_PANELS, draw_guidance

RESULTS = Path(__file__).parents[1] / "docs" / "results"
WIDTH = 4.6  # inches of a panel
MIB = 2**20
Numbers = Mapping[str, Any]


class Panel(NamedTuple):
    """A figure or a table with what it found and where that comes from."""

    finding: str
    picture: str
    caption: str


class Kind(NamedTuple):
    """A kind of JSON file: how to know it, what made it, and what to show of it."""

    section: str
    pattern: str  # of the path below the results
    needs: frozenset[str]  # keys
    command: Callable[[str, Numbers], str]  # given the path and the numbers
    panels: Callable[[Numbers], Sequence[tuple[str, str]]]  # (finding, HTML of the picture)

    def knows(self, path: str, numbers: Any) -> bool:
        """Whether a file is of this kind."""
        return fnmatch(path, self.pattern) and isinstance(numbers, dict) and self.needs <= numbers.keys()


def chart(height: float = 3.2) -> tuple[Figure, Any]:
    """An empty figure of a panel's width, and its axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def finish(figure: Figure, axes: Any, x_label: str, y_label: str = "") -> str:
    """Labels, the common look, and the figure as SVG."""
    style(axes, "", x_label)
    axes.set_ylabel(y_label, fontsize=9)
    for direction in (axes.xaxis, axes.yaxis):
        if direction.get_scale() == "log":
            direction.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            direction.set_minor_formatter(NullFormatter())
            if not isinstance(direction.get_major_locator(), FixedLocator):
                low, high = sorted(direction.get_view_interval())
                direction.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    return svg(figure)


def rows_chart(names: Sequence[str], height: float = 0.0) -> tuple[Figure, Any]:
    """An empty chart with one named line a row, the first on top."""
    figure, axes = chart(height or 0.9 + 0.3 * len(names))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, axes


def legend(axes: Any, **options: Any) -> None:
    """What the colours mean, without a box."""
    axes.legend(frameon=False, fontsize=8, **options)


def spread_rows(rows: Mapping[str, Sequence[float]], x_label: str) -> str:
    """A dot for each seed, and the mean with its standard deviation, of every row."""
    figure, axes = rows_chart(list(rows))
    for place, values in enumerate(rows.values()):
        deviation = statistics.stdev(values) if len(values) > 1 else 0
        axes.plot(values, [place + 0.24] * len(values), "o", color=QUIET, alpha=0.7, markersize=4, markeredgewidth=0)
        axes.errorbar(statistics.mean(values), place, xerr=deviation, fmt="D", color=ACCENT, markersize=5, capsize=3)
    return finish(figure, axes, x_label) + hint("Blue: every seed; red: their mean and standard deviation.")


def hint(text: str) -> str:
    """How to read a picture."""
    return f'<p class="hint">{text}</p>'


def quality_against_time(report: Numbers) -> str:
    """Every way of sampling, without guidance and with its best: what it costs and how far it is from the data."""
    figure, axes = chart(4.1)
    times = report["speed"]["milliseconds_per_image_by_batch_size"]
    for marker, (size, batch) in zip(("o", "s", "^", "v"), times.items(), strict=False):
        for key, name, colour in (("exact", "exact inverse", QUIET), ("reverse", "one pass", ACCENT)):
            best, plain = report["samples"][key], report["sweep"][key][0]
            drawn = [batch[key], batch[f"{key}_guided"]], [plain["frechet_distance"], best["frechet_distance"]]
            axes.plot(*drawn, "-", color=colour, alpha=0.35, linewidth=1)
            axes.plot(drawn[0][0], drawn[1][0], marker, color=colour, markerfacecolor="none", markersize=7)
            axes.plot(drawn[0][1], drawn[1][1], marker, color=colour, markersize=7, label=f"{name}, batch {size}")
    for marker, colour, (name, points) in zip("DPX*", COLOURS[2:], other_inverses(report).items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=6, label=f"{name}, batch 1")
    real = report["real"]["frechet_distance"]
    axes.axhline(real, color=INK, linewidth=0.8, linestyle=":")
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate("real test images", (1, real), (-2, -10), ha="right", fontsize=8, color=INK, **place)
    axes.set_xscale("log")
    axes.set_ylim(0.8 * real, None)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return finish(figure, axes, "milliseconds an image (log)", "Frechet distance")


def other_inverses(report: Numbers) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds and Frechet distance of the inverses that give the exact inverse's images within a tolerance."""
    distances = {row["guidance"]: row["frechet_distance"] for row in report["sweep"]["exact"] if not row["annealed"]}
    found: dict[str, list[tuple[float, float]]] = {}
    for flow in report.get("inverses", []):
        for key in ("jacobi", "gs_jacobi", "refine"):
            if key in flow and flow["guidance"] in distances and flow["guidance"] < 1:
                time = 1e3 * flow[key]["seconds"] + report["score_step"]
                found.setdefault(INVERSES[key], []).append((time, distances[flow["guidance"]]))
    return found


def with_other_inverses(files: Mapping[str, Numbers]) -> dict[str, Any]:
    """What the quickstart does not time itself: other inverses of its flow, and a score step at its sizes."""
    inverses, latency = (files.get(f"speed/{name}.json") for name in ("inverse_quickstart", "latency_biflow_digits"))
    if not inverses or not latency:
        return {}
    score_step = latency["milliseconds_per_image_by_batch_size"]["its score step alone"]["1"]
    return {"inverses": inverses["flows"], "score_step": score_step}


def quickstart_panels(report: Numbers) -> list[tuple[str, str]]:
    """Quality against time, and over guidance."""
    exact, reverse = (report["samples"][key] for key in ("exact", "reverse"))
    times = " and ".join(
        f"1/{batch['ratio_guided']:.1f} of the time at batch {size}"
        for size, batch in report["speed"]["milliseconds_per_image_by_batch_size"].items()
    )
    ratio = report["samples"]["frechet_ratio_reverse_to_exact"]
    first = f"One pass takes {times}, at {ratio:.2f} times the exact inverse's distance from the training images"
    told = hint(
        "Hollow: without guidance; filled: with the strength that suits it best, at the line's other end. The other "
        "inverses give the exact one's images within a tolerance, so they have its distance; "
        "their times are of speed/inverse_quickstart.json, with the score step of speed/latency_biflow_digits.json."
        if report.get("inverses")
        else "Hollow: without guidance; filled: with the strength that suits it best, at the line's other end."
    )
    found = [(first, quality_against_time(report) + told)]
    last = report["sweep"]["reverse"][-1]
    findings = {
        "frechet_distance": (
            f"The strength that suits the exact inverse is {exact['guidance']:g}{' annealed' * exact['annealed']}, "
            f"that of one pass {reverse['guidance']:g}"
        ),
        "class_accuracy": (
            f"Without guidance {report['sweep']['reverse'][0]['class_accuracy']:.1%} of the one-pass samples are read "
            f"as their class, {last['class_accuracy']:.1%} at strength {last['guidance']:g}"
        ),
    }
    for key, name in GUIDANCE_PANELS.items():
        figure, axes = chart()
        draw_guidance(axes, report["sweep"], key)
        found.append((findings[key], finish(figure, axes, "guidance w", name)))
    return found


INVERSES = {
    "forward": "forward pass",
    "sequential": "sequential",
    "jacobi": "Jacobi",
    "gs_jacobi": "GS-Jacobi",
    "refine": "refine",
}


def inverse_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Time of the exact inverses over the length, or over guidance where there is one length."""
    flows = numbers["flows"]
    by_length = len({flow["patches"] for flow in flows}) > 1
    across = "patches" if by_length else "guidance"
    figure, axes = chart()
    for colour, (key, name) in zip(COLOURS, INVERSES.items(), strict=False):
        drawn = [(flow[across], 1e3 * flow[key]["seconds"]) for flow in flows if key in flow]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), "o-", color=colour, markersize=4, linewidth=1.4, label=name)
    axes.set_yscale("log")
    if by_length:
        length_axis(axes, [flow["patches"] for flow in flows])
    legend(axes, ncols=2, loc="best")
    last, ways = flows[-1], [key for key in INVERSES if key in flows[-1] and key != "forward"]
    fastest = min(ways, key=lambda key: last[key]["seconds"])
    share = last[fastest]["seconds"] / last["sequential"]["seconds"]
    finding = (
        f"At {last['patches']:,} patches the fastest exact inverse is {INVERSES[fastest]}: {share:.0%} of sequential's "
        f"time, {last[fastest]['rounds'] / last['sequential']['rounds']:.0%} of its rounds"
    )
    if not by_length:
        finding += f", at guidance {last['guidance']:g}"
    x_label = "patches (log)" if by_length else f"guidance w, at {last['patches']} patches"
    return [(finding, finish(figure, axes, x_label, "milliseconds, batch 1 (log)"))]


def length_axis(axes: Any, lengths: Sequence[int]) -> None:
    """A log axis with a mark at every length that was measured."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=[]))
    axes.set_xticks(sorted(set(lengths)))


def shape_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """The sequential inverse beside one forward pass, over the length."""
    figure, axes = chart()
    names = {"forward": "forward pass", "sequential": "sequential", "pair": "two images", "guided": "guided"}
    shapes = numbers["shapes"]
    for colour, (key, name) in zip(COLOURS, names.items(), strict=False):
        lengths, times = [each["patches"] for each in shapes], [1e3 * each[key] for each in shapes]
        axes.plot(lengths, times, "o-", color=colour, markersize=4, linewidth=1.4, label=name)
    axes.set_yscale("log")
    length_axis(axes, [each["patches"] for each in shapes])
    legend(axes, ncols=2)
    ratios = [each["sequential"] / each["forward"] for each in shapes]
    finding = (
        f"Patch by patch, the inverse takes {min(ratios):.0f} to {max(ratios):.0f} times one forward pass, from "
        f"{shapes[0]['patches']} to {shapes[-1]['patches']:,} patches"
    )
    return [(finding, finish(figure, axes, "patches (log)", "milliseconds (log)"))]


def latency_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds an image of every way of sampling, by batch size."""
    ways = numbers["milliseconds_per_image_by_batch_size"]
    figure, axes = rows_chart(list(ways))
    for colour, size in zip((QUIET, ACCENT, *COLOURS[2:]), next(iter(ways.values())), strict=False):
        axes.plot([times[size] for times in ways.values()], range(len(ways)), "o", color=colour, label=f"batch {size}")
    axes.set_xscale("log")
    legend(axes, loc="upper center", bbox_to_anchor=(0.4, 1.18), ncols=3)
    one, exact = ways["one pass"], ways["exact inverse"]
    ratios = " and ".join(f"{exact[size] / one[size]:.1f} times at batch {size}" for size in one)
    finding = f"One pass is faster than the exact inverse by {ratios}, of the sizes of {escape(numbers['recipe'])}"
    return [(finding, finish(figure, axes, "milliseconds an image (log)"))]


def export_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds an image of exported files beside PyTorch."""
    ways = numbers["exported_milliseconds_per_image"]
    figure, axes = rows_chart(list(ways))
    for colour, size in zip((QUIET, ACCENT, *COLOURS[2:]), next(iter(ways.values())), strict=False):
        axes.plot([times[size] for times in ways.values()], range(len(ways)), "o", color=colour, label=f"batch {size}")
    axes.set_xscale("log")
    legend(axes, loc="upper center", bbox_to_anchor=(0.4, 1.18), ncols=3)
    plain, onnx = ways["PyTorch"], ways["ONNX, float32"]
    ratios = ", ".join(f"{plain[size] / onnx[size]:.1f} at batch {size}" for size in plain)
    worst = {name: file["largest_grey_levels"] for name, file in numbers["files"].items()}
    off = ", ".join(f"{escape(name)} {value:.2g}" for name, value in worst.items())
    told = hint(f"Largest difference from the model's images, in grey levels of 255: {off}.")
    finding = f"PyTorch's time over that of the ONNX file in float32, one thread: {ratios}"
    return [(finding, finish(figure, axes, "milliseconds an image (log)") + told)]


def training_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds of a training step and the share of the machine's rate."""
    steps = numbers["steps"]
    names = [
        f"width {each['width']}, {each['patches']} patches\n{each['precision']}{', compiled' * each['compiled']}"
        for each in steps
    ]
    figure, axes = rows_chart(names, 0.9 + 0.45 * len(names))
    axes.barh(range(len(steps)), [1e3 * each["seconds"] for each in steps], height=0.5, color=QUIET, alpha=0.75)
    for place, each in enumerate(steps):
        told = f" {each['share_of_matmul']:.0%} of matmul"
        axes.annotate(told, (1e3 * each["seconds"], place), va="center", fontsize=8, color=INK)
    axes.margins(x=0.32)
    axes.set_xlim(left=0)
    shares = [each["share_of_matmul"] for each in steps]
    finding = f"A training step runs at {min(shares):.0%} to {max(shares):.0%} of the rate of large matrix products"
    return [(finding, finish(figure, axes, f"milliseconds a step, batch {steps[0]['batch_size']}"))]


def batch_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds that a batch takes to make."""
    times = numbers["ms"]
    figure, axes = rows_chart(list(times))
    axes.barh(range(len(times)), list(times.values()), height=0.5, color=QUIET, alpha=0.75)
    images = f"{numbers['batch_size']} images of {numbers['side']} x {numbers['side']}"
    finding = f"A batch of {images} takes {times['a whole batch']:.0f} ms to make"
    return [(finding, finish(figure, axes, "milliseconds"))]


def gpu_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds an image of one pass on a GPU, by what is done to the network."""
    times = {name: each["ms an image"] for name, each in numbers["one pass"].items() if isinstance(each, dict)}
    if not times:
        return []
    figure, axes = rows_chart(list(times))
    axes.barh(range(len(times)), list(times.values()), height=0.5, color=QUIET, alpha=0.75)
    axes.set_xscale("log")
    finding = f"One pass on a GPU takes {min(times.values()):.2g} ms an image at the least"
    return [(finding, finish(figure, axes, "milliseconds an image"))]


def contention_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """A training step alone, and beside a second process."""
    found = numbers["ms_a_step"]
    figure, axes = rows_chart(list(found), 0.9 + 0.45 * len(found))
    for key, color in (("beside another", QUIET), ("alone", ACCENT)):
        axes.barh(range(len(found)), [each[key] for each in found.values()], height=0.5, color=color, label=key)
    legend(axes, loc="lower right")
    *_, ours = found.values()
    finding = (
        f"Beside a second process, a training step takes {ours['beside another'] / ours['alone']:.1f} times as long"
    )
    return [(finding, finish(figure, axes, "milliseconds a step"))]


def ablation_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """A dot plot for each table: every seed, the mean and its spread."""
    tables: dict[str, dict[str, list[float]]] = {}
    for row in numbers["rows"]:
        tables.setdefault(row["table"], {})[row["row"]] = [each["frechet_distance"] for each in row["seeds"]]
    scores = {(row["table"], row["row"]): row["seeds"] for row in numbers["rows"]}
    found = []
    for table, rows in tables.items():
        best = min(rows, key=lambda name: statistics.mean(rows[name]))
        names = {name.replace(", ", ",\n", 1) if len(name) > 26 else name: values for name, values in rows.items()}
        told = outcomes([verdict(claim, scores) for claim in CLAIMS if claim.table == table])
        finding = f"{table}: lowest with <i>{escape(best)}</i>, {statistics.mean(rows[best]):.1f}; claims: {told}"
        found.append((finding, spread_rows(names, "Frechet distance (lower is better)")))
    return found


def alignment_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Curves of the training, what came out at its end, what it costs, and the gradient's agreement."""
    scores = numbers["scores"]
    found = []
    for key, name in PANELS.items():
        figure, axes = chart()
        draw_curves(axes, numbers["curves"], key)
        if key == "frechet_distance":
            axes.set_yscale("log")
        legend(axes, title="alignment", title_fontsize=8)
        told = hint("Lines: means over seeds; bands: from the least to the most.")
        found.append((alignment_finding(scores, key, name), finish(figure, axes, "step", name) + told))
    shapes = numbers["throughput"]
    ways = list(next(iter(shapes.values())))
    figure, axes = rows_chart(ways)
    for colour, (shape, shares) in zip((QUIET, ACCENT), shapes.items(), strict=False):
        axes.plot([100 * shares[way] for way in ways], range(len(ways)), "o", color=colour, label=shape)
    legend(axes, loc="upper left")
    axes.set_xlim(0, 105)
    slowest = min(shapes.values(), key=lambda shares: shares["reverse"])["reverse"]
    finding = f"Alignment by reverse keeps {slowest:.0%} of a plain step's speed at the least"
    found.append((finding, finish(figure, axes, "steps a second, % of a plain flow's")))
    inverses = {
        f"flow: {strategy}": [each["frechet_distance"] for each in seeds]
        for strategy, seeds in numbers["inverses"].items()
    }
    finding = claims(scores, numbers["reach"], numbers["inverses"])["inverse"].removeprefix("- ").replace("**", "")
    found.append((finding, spread_rows(inverses, "Frechet distance, no guidance")))
    return found


def alignment_finding(scores: Mapping[str, Sequence[Numbers]], key: str, name: str) -> str:
    """Which strategies are better than none at the end, beyond chance."""
    sign = -1 if key == "frechet_distance" else 1
    better = []
    for strategy in [each for each in scores if each != "none"]:
        pairs = zip(scores[strategy], scores["none"], strict=True)
        if judge([sign * (ours[key] - plain[key]) for ours, plain in pairs]).outcome == "holds":
            better.append(strategy)
    mean = statistics.mean(each[key] for each in scores["none"])
    told = " and ".join(better) or "no strategy"
    return f"{name[0].upper()}{name[1:]}: {mean:.3g} without alignment, better beyond chance with {told}"


def compare_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Both ways of sampling at several values of one setting."""
    figure, axes = chart()
    for place, (value, report) in enumerate(numbers.items()):
        for line, (key, name) in zip(("--", "-"), (("exact", "exact"), ("reverse", "one pass")), strict=True):
            rows = [row for row in report["sweep"][key] if not row["annealed"]]
            drawn = [row["guidance"] for row in rows], [row["frechet_distance"] for row in rows]
            axes.plot(*drawn, line, marker="o", markersize=4, color=COLOURS[place], label=f"{value}, {name}")
    legend(axes)
    ratios = {value: report["samples"]["frechet_ratio_reverse_to_exact"] for value, report in numbers.items()}
    told = ", ".join(f"{ratio:.2f} with <i>{escape(value)}</i>" for value, ratio in ratios.items())
    finding = f"Distance of one pass over that of the exact inverse, each with its best guidance: {told}"
    return [(finding, finish(figure, axes, "guidance w", "Frechet distance"))]


def plan_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Measured memory beside the estimate of `biflow plan`."""
    rows = numbers["rows"]
    figure, axes = rows_chart([row["name"] for row in rows])
    axes.barh(range(len(rows)), [row["measured"] / MIB for row in rows], height=0.5, color=QUIET, alpha=0.55,
              label="measured")  # fmt: skip
    axes.plot([row["estimated"] / MIB for row in rows], range(len(rows)), "|", color=ACCENT, markersize=13,
              markeredgewidth=2, label="estimated")  # fmt: skip
    legend(axes, loc="upper center", bbox_to_anchor=(0.3, 1.1), ncols=2)
    off = max(abs(row["estimated"] / row["measured"] - 1) for row in rows)
    finding = f"The plan's memory is within {off:.1%} of what {len(rows)} kinds of step take"
    return [(finding, finish(figure, axes, "MiB at the peak"))]


def fault_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """What a training survives, as a table."""
    kills, stops, disk, damage = (numbers[key] for key in ("kills", "terminations", "full_disk", "damage"))
    yes = {True: "yes", False: "no"}
    rows = [
        ["fault", "times", "what came of it"],
        [
            f"killed, {kills['in_a_save']} while it saved",
            str(kills["kills"]),
            f"weights of the unbroken run: {yes[kills['same_weights']]}",
        ],
        ["asked to end", str(len(stops)), f"saved and ended within {max(each['seconds'] for each in stops):.1f} s"],
        [
            "no room for a checkpoint",
            "1",
            f"older ones intact: {yes[disk['older_kept']]}; same weights after: {yes[disk['same_weights_after']]}",
        ],
        ["a flipped bit", str(damage["times"]), f"noticed {damage['flips']} times"],
        ["a file cut", str(damage["times"]), f"noticed {damage['cuts']} times"],
    ]
    same = "the same weights" if kills["same_weights"] else "other weights"
    noticed = damage["flips"] + damage["cuts"]
    finding = f"{kills['kills']} kills leave {same}; of {2 * damage['times']} damages {noticed} were noticed"
    return [(finding, f'<div class="scroll">{html_table(rows)}</div>')]


def area_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Area under the ROC curve for each kind of intruder."""
    ways: Numbers = numbers["areas"]
    kinds = [kind for kind in next(iter(ways.values())) if kind != "bits_per_dim"]
    figure, axes = rows_chart(kinds, 1.1 + 0.3 * len(kinds) + 0.17 * len(ways))
    for place, (way, areas) in enumerate(ways.items()):
        shift = (place - (len(ways) - 1) / 2) * 0.13
        heights = [row + shift for row in range(len(kinds))]
        axes.plot([areas[kind] for kind in kinds], heights, "o", color=COLOURS[place], markersize=4, label=way)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center")
    hardest = {kind: max(areas[kind] for areas in ways.values()) for kind in kinds}
    worst = min(hardest, key=lambda kind: hardest[kind])
    finding = f"The likelihood finds intruders; hardest are those <i>{escape(worst)}</i>, {hardest[worst]:.2f} at best"
    return [(finding, finish(figure, axes, "area under the ROC curve (0.5 is chance)"))]


def certify_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Area under the ROC curve for rejected samples, over guidance."""
    figure, axes = chart()
    lines = numbers["strengths"]
    for place, name in enumerate(lines[0]["areas"]):
        areas = [line["areas"][name] for line in lines]
        heights, errors = zip(*areas, strict=True)
        across = [index + (place - 1.5) * 0.08 for index in range(len(lines))]
        axes.errorbar(across, heights, yerr=errors, fmt="o", color=COLOURS[place], markersize=5, capsize=2, label=name)
    axes.set_xticks(range(len(lines)), [f"{line['guidance']:g}" for line in lines])
    legend(axes, loc="upper left")
    firsts = [line["areas"]["certify"][0] for line in lines]
    finding = (
        f"The distance from the noise tells rejected samples apart with an area of {min(firsts):.2f} to "
        f"{max(firsts):.2f}; of {numbers['samples']:,} samples {lines[0]['rejected']} are rejected without guidance, "
        f"{lines[-1]['rejected']} with the most"
    )
    told = hint("Bars: one standard error. An area of 0.5 is chance.")
    return [(finding, finish(figure, axes, "guidance w", "area under the ROC curve") + told)]


def evaluation_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Quality over guidance, and what the strength that was chosen gives."""
    samples, tried = numbers["samples"], numbers["sweep"]["tried"]
    network, found = next(iter(numbers["metrics"].items()))
    figure, axes = chart()
    strengths = [each["guidance"] for each in tried]
    axes.plot(strengths, [each["frechet_distance"] for each in tried], "o-", color=ACCENT, markersize=4)
    finding = (
        f"{samples['num']:,} samples by method {samples['method']} at guidance {samples['guidance']}: Frechet distance "
        f"{found['frechet_distance']:.2f}, precision {found['precision']:.2f}, recall {found['recall']:.2f}"
    )
    told = hint(
        f"Features of: {network}. The curve is of {numbers['sweep']['num']:,} images of another seed at every strength."
    )
    return [(finding, finish(figure, axes, "guidance w", "Frechet distance") + told)]


def evaluation_command(_: str, numbers: Numbers) -> str:
    """What made an evaluation."""
    samples, tried = numbers["samples"], [each["guidance"] for each in numbers["sweep"]["tried"]]
    sweep = f"guidance={tried[0]:g}:{tried[-1]:g}:{tried[1] - tried[0]:g}"
    annealed = ",annealed" if "annealed" in samples["guidance"] else ""
    return (
        f"biflow evaluate {numbers['model']['folder']} --data {numbers['data']['name']} --num {samples['num']} "
        f"--method {samples['method']} --guidance 0{annealed} --features {' '.join(numbers['metrics'])} "
        f"--sweep {sweep} --sweep-num {numbers['sweep']['num']} --out OUT"
    )


def editing_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """What edits by way of noise keep: variations over their strength, inpainting by the mask."""
    figure, axes = chart()
    for (name, rows), colour in zip(numbers["vary"].items(), (ACCENT, QUIET), strict=True):
        means = [statistics.mean(row["right"]) for row in rows.values()]
        spreads = [statistics.stdev(row["right"]) for row in rows.values()]
        strengths = [float(strength) for strength in rows]
        axes.errorbar(strengths, means, yerr=spreads, fmt="o-", color=colour, markersize=4, capsize=2, label=name)
    axes.axhline(numbers["right"], color=INK, linewidth=0.8, linestyle=":", label="the images")
    legend(axes, loc="lower left")
    one = {strength: statistics.mean(row["right"]) for strength, row in numbers["vary"]["one pass"].items()}
    varied = f"Variations keep their class: {one['0']:.1f}% of reconstructions, {one['1']:.1f}% with all noise new"
    kinds = {name: row["right, likeliest"] for name, row in numbers["inpaint"].items()}
    means = {name: statistics.mean(values) for name, values in kinds.items()}
    low, high = min(means.values()), max(means.values())
    inpainted = f"Of the likeliest of four inpaintings {low:.1f}% to {high:.1f}% are read as their class"
    return [
        (varied, finish(figure, axes, "strength", "% read as their class")),
        (inpainted, spread_rows(kinds, "% read as their class")),
    ]


def fixed(command: str) -> Callable[[str, Numbers], str]:
    """A command that does not depend on the numbers."""
    return lambda *_: command


def repa_command(_: str, numbers: Numbers) -> str:
    """What made the alignment's numbers."""
    return f"python benchmarks/repa.py --data {numbers['data']} --seeds {len(numbers['scores']['none'])}"


def inverse_command(_: str, numbers: Numbers) -> str:
    """What made a file of inverses: at several lengths, with a reverse model, or of a model of one's own."""
    flows = numbers["flows"]
    lengths = dict.fromkeys(str(flow["patches"]) for flow in flows)
    if len(lengths) > 1:
        refined = f" --refine --lengths {' '.join(lengths)}" if "refine" in flows[0] else ""
        return f"python benchmarks/inverse.py{refined}"
    strengths = " ".join(f"{flow['guidance']:g}" for flow in flows)
    return f"python benchmarks/inverse.py --model MODEL --guidance {strengths}"


def compare_command(path: str, numbers: Numbers) -> str:
    """What made a comparison: the folder is the setting."""
    return f"python benchmarks/compare.py {Path(path).parent.name} {' '.join(numbers)}"


def training_command(_: str, numbers: Numbers) -> str:
    """What made a file of training steps."""
    compiled = any(each["compiled"] for each in numbers["steps"])
    return f"python benchmarks/training_step.py{' --compile' * compiled}"


KINDS = (
    Kind("Quality and time", "quickstart/report.json", frozenset({"sweep", "samples", "speed"}),
         fixed("make quickstart"), quickstart_panels),
    Kind("Quality and time", "speed/latency_*.json", frozenset({"milliseconds_per_image_by_batch_size", "recipe"}),
         lambda _, numbers: f"python benchmarks/latency.py --recipe {numbers['recipe']}", latency_panels),
    Kind("Quality and time", "evaluation/*.json", frozenset({"metrics", "sweep", "cost"}), evaluation_command,
         evaluation_panels),
    Kind("Quality and time", "export.json", frozenset({"exported_milliseconds_per_image", "files"}),
         fixed("python benchmarks/export.py RUN"), export_panels),
    Kind("Cost", "speed/inverse*.json", frozenset({"flows"}), inverse_command, inverse_panels),
    Kind("Cost", "speed/inverse_shape*.json", frozenset({"shapes"}),
         fixed("python benchmarks/inverse.py --shape"), shape_panels),
    Kind("Cost", "speed/training_step*.json", frozenset({"steps"}),
         training_command, training_panels),
    Kind("Cost", "speed/gpu.json", frozenset({"training", "one pass"}), fixed("python benchmarks/gpu.py"), gpu_panels),
    Kind("Cost", "speed/batches.json", frozenset({"ms", "batch_size", "side"}),
         fixed("python benchmarks/batches.py"), batch_panels),
    Kind("Cost", "speed/contention.json", frozenset({"ms_a_step"}),
         fixed("python benchmarks/contention.py"), contention_panels),
    Kind("Ablations of BiFlow", "ablations.json", frozenset({"rows", "real"}),
         lambda _, numbers: f"python benchmarks/ablations.py --data {numbers['data']} --seeds {numbers['seeds']}",
         ablation_panels),
    Kind("Alignment with an encoder", "repa.json", frozenset({"curves", "scores", "throughput"}), repa_command,
         alignment_panels),
    Kind("Ablations of BiFlow", "*/reports.json", frozenset(), compare_command, compare_panels),
    Kind("Memory and faults", "plan*.json", frozenset({"rows"}), fixed("python benchmarks/memory.py"), plan_panels),
    Kind("Memory and faults", "faults.json", frozenset({"kills", "damage"}), fixed("python benchmarks/faults.py"),
         fault_panels),
    Kind("Which images belong", "out_of_place.json", frozenset({"areas"}),
         fixed("python benchmarks/find_intruders.py MODEL"), area_panels),
    Kind("Which images belong", "certify.json", frozenset({"strengths", "samples"}),
         fixed("python benchmarks/certify.py RUN"), certify_panels),
    Kind("Edits by way of noise", "editing.json", frozenset({"inpaint", "reclass", "vary"}),
         fixed("python benchmarks/editing.py MODEL"), editing_panels),
)  # fmt: skip


def caption(path: str, command: str, machine: Numbers) -> str:
    """Where the numbers come from: file, command, machine."""
    threads = f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}" if machine.get("threads") else ""
    told = f"{machine['device']}{threads}, {machine['system']}, torch {machine['torch']}"
    return f'<a href="{escape(path)}">{escape(path)}</a>, <code>{escape(command)}</code>; {escape(told)}'


def machine_of(numbers: Numbers) -> Numbers:
    """The machine of a file, or of the first report in it."""
    return numbers["machine"] if "machine" in numbers else machine_of(next(iter(numbers.values())))


def gather(folder: Path) -> tuple[dict[str, list[Panel]], list[str]]:
    """The panels of every section, and the paths of files that are of no known kind."""
    sections: dict[str, list[Panel]] = {kind.section: [] for kind in KINDS}
    unknown = []
    files = {
        file.relative_to(folder).as_posix(): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.rglob("*.json"))
    }
    for path, numbers in files.items():
        kind = next((kind for kind in KINDS if kind.knows(path, numbers)), None)
        if kind is None:
            unknown.append(path)
            continue
        shown = {**numbers, **with_other_inverses(files)} if kind.panels is quickstart_panels else numbers
        told = caption(path, kind.command(path, numbers), machine_of(numbers))
        sections[kind.section] += [Panel(finding, picture, told) for finding, picture in kind.panels(shown)]
    return sections, unknown


def render(folder: Path) -> str:
    """The page."""
    sections, unknown = gather(folder)
    parts = [
        "<h1>What was measured</h1>",
        '<p class="lead">Every number of this project that a command wrote, in figures. Under each: its file, the '
        "command that made it, and the machine.</p>",
        '<p><a href="README.md">README.md</a> says what the numbers mean, <a href="tables.md">tables.md</a> sets them '
        "beside the papers' tables. Times of a shared machine move by a third from run to run.</p>",
    ]
    for title, panels in sections.items():
        if panels:
            parts += [f"<h2>{title}</h2>", f'<div class="panels">{"".join(map(panel_html, panels))}</div>']
    if unknown:
        links = "".join(f'<li><a href="{escape(path)}">{escape(path)}</a></li>' for path in unknown)
        parts.append(f"<h2>More files</h2><p>Of kinds that this page has no figure for.</p><ul>{links}</ul>")
    return render_page("biflow results", "\n".join(parts))


def panel_html(panel: Panel) -> str:
    """One figure with its title and caption."""
    return f"<figure><h3>{panel.finding}</h3>{panel.picture}<figcaption>{panel.caption}</figcaption></figure>"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the measurements")
    parser.add_argument("--out", type=Path, default=RESULTS / "figures.html")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, render(arguments.results))
    print(arguments.out)


if __name__ == "__main__":
    main()
