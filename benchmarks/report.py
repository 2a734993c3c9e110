"""One page of figures for all measurements in docs/results, rendered from the JSON files alone.

    python benchmarks/report.py

Writes docs/results/figures.html: a single file without scripts or external resources.  JSON files of an unknown kind
are listed at the end of the page.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import inverse
import training_step
from ablations import CLAIMS, verdict
from charts import chart, finish, hint, legend, rows_chart, spread_rows
from machine import described
from matplotlib.ticker import LogLocator
from panels_real import claims_panels, convergence_panels, likelihood_panels, showcase_panels
from repa import PANELS, claims, draw_curves
from seeds import decide
from tables import outcomes

from biflow.evaluation.html import ACCENT, COLOURS, INK, QUIET, html_table, render_page
from biflow.files import write_text
from biflow.quickstart.report import draw_guidance

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MIB = 2**20
Numbers = Mapping[str, Any]


class Panel(NamedTuple):
    """A figure or table with its finding as the title, and its source as the caption."""

    finding: str
    picture: str
    caption: str


class Kind(NamedTuple):
    """A kind of JSON file: how to recognise it, the command that wrote it, and its panels."""

    section: str
    pattern: str  # of the path relative to the results
    needs: frozenset[str]  # keys
    command: Callable[[str, Numbers], str]  # given the path and the numbers
    panels: Callable[[Numbers], Sequence[tuple[str, str]]]  # (finding, HTML of the figure)

    def matches(self, path: str, numbers: Any) -> bool:
        """Whether a file is of this kind."""
        return fnmatch(path, self.pattern) and isinstance(numbers, dict) and self.needs <= numbers.keys()


def quality_against_time(report: Numbers) -> str:
    """Fréchet distance against time for every sampler, without guidance and at its best guidance strength."""
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
    position = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate("real test images", (1, real), (-2, -10), ha="right", fontsize=8, color=INK, **position)
    axes.set_xscale("log")
    axes.set_ylim(0.8 * real, None)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return finish(figure, axes, "milliseconds per image (log)", "Fréchet distance")


def other_inverses(report: Numbers) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds and Fréchet distance of the iterative inverses, which match the exact one within a tolerance."""
    distances = {row["guidance"]: row["frechet_distance"] for row in report["sweep"]["exact"] if not row["annealed"]}
    found: dict[str, list[tuple[float, float]]] = {}
    for flow in report.get("inverses", []):
        for key in ("jacobi", "gs_jacobi", "refine"):
            if key in flow and flow["guidance"] in distances and flow["guidance"] < 1:
                time = 1e3 * flow[key]["seconds"] + report["score_step"]
                found.setdefault(INVERSES[key], []).append((time, distances[flow["guidance"]]))
    return found


def with_other_inverses(files: Mapping[str, Numbers]) -> dict[str, Any]:
    """Timings missing from the quickstart's report: other inverses of its flow, and the score step at its sizes."""
    inverses, latency = (files.get(f"speed/{name}.json") for name in ("inverse_quickstart", "latency_biflow_digits"))
    if not inverses or not latency:
        return {}
    score_step = latency["milliseconds_per_image_by_batch_size"]["score step alone"]["1"]
    return {"inverses": inverses["flows"], "score_step": score_step}


def quickstart_panels(report: Numbers) -> list[tuple[str, str]]:
    """Quality against time, and over guidance."""
    exact, reverse = (report["samples"][key] for key in ("exact", "reverse"))
    speedups = " and ".join(
        f"{batch['ratio_guided']:.1f} times faster at batch {size}"
        for size, batch in report["speed"]["milliseconds_per_image_by_batch_size"].items()
    )
    ratio = report["samples"]["frechet_ratio_reverse_to_exact"]
    first = f"One pass is {speedups} than the exact inverse, at {ratio:.2f} times its Fréchet distance"
    note = "Hollow: without guidance; filled: at the best guidance strength."
    if report.get("inverses"):
        note += (
            " Jacobi, GS-Jacobi and refine match the exact inverse's images within a tolerance, so its distances are "
            "used; their times come from speed/inverse_quickstart.json, plus the score step from "
            "speed/latency_biflow_digits.json."
        )
    found = [(first, quality_against_time(report) + hint(note))]
    last = report["sweep"]["reverse"][-1]
    findings = {
        "frechet_distance": (
            f"The best guidance strength is {exact['guidance']:g}{' annealed' * exact['annealed']} for the exact "
            f"inverse, {reverse['guidance']:g} for one pass"
        ),
        "class_accuracy": (
            f"Class accuracy of one-pass samples: {report['sweep']['reverse'][0]['class_accuracy']:.1%} without "
            f"guidance, {last['class_accuracy']:.1%} at w = {last['guidance']:g}"
        ),
    }
    labels = {"frechet_distance": "Fréchet distance (lower is better)", "class_accuracy": "class accuracy"}
    for key, label in labels.items():
        figure, axes = chart()
        draw_guidance(axes, report["sweep"], key)
        found.append((findings[key], finish(figure, axes, "guidance w", label)))
    return found


FEATURES = {"judge": "judge, the reference classifier"}
INVERSES = {
    "forward": "forward pass",
    "sequential": "sequential",
    "jacobi": "Jacobi",
    "gs_jacobi": "GS-Jacobi",
    "refine": "refine",
}


def inverse_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Time of the exact inverses over the sequence length, or over guidance if there is only one length."""
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
    last, inverses = flows[-1], [key for key in INVERSES if key in flows[-1] and key != "forward"]
    fastest = min(inverses, key=lambda key: last[key]["seconds"])
    share = last[fastest]["seconds"] / last["sequential"]["seconds"]
    finding = (
        f"At {last['patches']:,} patches, {INVERSES[fastest]} is the fastest exact inverse: {share:.0%} of the time of "
        f"the sequential one, {last[fastest]['rounds'] / last['sequential']['rounds']:.0%} of its rounds"
    )
    if not by_length:
        finding += f", at guidance {last['guidance']:g}"
    x_label = "patches (log)" if by_length else f"guidance w, at {last['patches']} patches"
    return [(finding, finish(figure, axes, x_label, "milliseconds, batch 1 (log)"))]


def length_axis(axes: Any, lengths: Sequence[int]) -> None:
    """A log axis with a tick at every measured length."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=[]))
    axes.set_xticks(sorted(set(lengths)))


def shape_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """The sequential inverse against one forward pass, over the sequence length."""
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
        f"The sequential inverse takes {min(ratios):.0f} to {max(ratios):.0f} times as long as one forward pass, "
        f"between {shapes[0]['patches']} and {shapes[-1]['patches']:,} patches"
    )
    return [(finding, finish(figure, axes, "patches (log)", "milliseconds (log)"))]


def latency_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds per image of every sampler, by batch size."""
    samplers = numbers["milliseconds_per_image_by_batch_size"]
    one, exact = samplers["one pass"], samplers["exact inverse"]
    ratios = " and ".join(f"{exact[size] / one[size]:.1f} times faster at batch {size}" for size in one)
    finding = f"At the sizes of {escape(numbers['recipe'])}, one pass is {ratios} than the exact inverse"
    return [(finding, latency_chart(samplers))]


def latency_chart(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds per image of every row, by batch size."""
    figure, axes = rows_chart(list(rows))
    for colour, size in zip((QUIET, ACCENT, *COLOURS[2:]), next(iter(rows.values())), strict=False):
        axes.plot([times[size] for times in rows.values()], range(len(rows)), "o", color=colour, label=f"batch {size}")
    axes.set_xscale("log")
    legend(axes, loc="upper center", bbox_to_anchor=(0.4, 1.18), ncols=3)
    return finish(figure, axes, "milliseconds per image (log)")


def export_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds per image of exported files and of PyTorch, by batch size."""
    formats = numbers["exported_milliseconds_per_image"]
    plain, onnx = formats["PyTorch"], formats["ONNX, float32"]
    ratios = ", ".join(f"{plain[size] / onnx[size]:.1f}x at batch {size}" for size in plain)
    worst = {name: file["largest_grey_levels"] for name, file in numbers["files"].items()}
    differences = ", ".join(f"{escape(name)} {value:.2g}" for name, value in worst.items())
    note = hint(f"Largest difference from PyTorch's images, in grey levels (0 to 255): {differences}.")
    finding = f"Speedup of ONNX (float32) over PyTorch on one thread: {ratios}"
    return [(finding, latency_chart(formats) + note)]


def training_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds per training step, and utilisation."""
    steps = numbers["steps"]
    names = [
        f"width {each['width']}, {each['patches']} patches\n{each['precision']}{', compiled' * each['compiled']}"
        for each in steps
    ]
    figure, axes = rows_chart(names, 0.9 + 0.45 * len(names))
    axes.barh(range(len(steps)), [1e3 * each["seconds"] for each in steps], height=0.5, color=QUIET, alpha=0.75)
    for row, each in enumerate(steps):
        note = f" {each['share_of_matmul']:.0%} of matmul"
        axes.annotate(note, (1e3 * each["seconds"], row), va="center", fontsize=8, color=INK)
    axes.margins(x=0.32)
    axes.set_xlim(left=0)
    shares = [each["share_of_matmul"] for each in steps]
    finding = f"Training steps reach {min(shares):.0%} to {max(shares):.0%} of the throughput of large matrix products"
    return [(finding, finish(figure, axes, f"milliseconds per step, batch {steps[0]['batch_size']}"))]


def batch_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds to prepare a training batch."""
    times = numbers["ms"]
    figure, axes = rows_chart(list(times))
    axes.barh(range(len(times)), list(times.values()), height=0.5, color=QUIET, alpha=0.75)
    images = f"{numbers['batch_size']} images of {numbers['side']} x {numbers['side']}"
    finding = f"Preparing a batch of {images} takes {times['full batch']:.0f} ms"
    return [(finding, finish(figure, axes, "milliseconds"))]


def gpu_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Milliseconds per image of one pass on a GPU, by precision and compilation."""
    times = {name: each["ms per image"] for name, each in numbers["one pass"].items() if isinstance(each, dict)}
    if not times:
        return []
    figure, axes = rows_chart(list(times))
    axes.barh(range(len(times)), list(times.values()), height=0.5, color=QUIET, alpha=0.75)
    axes.set_xscale("log")
    finding = f"One pass on a GPU takes {min(times.values()):.2g} ms per image at best"
    return [(finding, finish(figure, axes, "milliseconds per image"))]


def contention_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """A training step alone, and with a second process."""
    found = numbers["ms_a_step"]
    figure, axes = rows_chart(list(found), 0.9 + 0.45 * len(found))
    for key, color in (("with a second process", QUIET), ("alone", ACCENT)):
        axes.barh(range(len(found)), [each[key] for each in found.values()], height=0.5, color=color, label=key)
    legend(axes, loc="lower right")
    *_, ours = found.values()
    ratio = ours["with a second process"] / ours["alone"]
    finding = f"With a second training process on the same cores, a step takes {ratio:.1f} times as long"
    return [(finding, finish(figure, axes, "milliseconds per step"))]


def ablation_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """A dot plot for each table: every seed, mean and standard deviation."""
    tables: dict[str, dict[str, list[float]]] = {}
    for row in numbers["rows"]:
        tables.setdefault(row["table"], {})[row["row"]] = [each["frechet_distance"] for each in row["seeds"]]
    scores = {(row["table"], row["row"]): row["seeds"] for row in numbers["rows"]}
    found = []
    for table, rows in tables.items():
        best = min(rows, key=lambda name: statistics.mean(rows[name]))
        names = {name.replace(", ", ",\n", 1) if len(name) > 26 else name: values for name, values in rows.items()}
        counts = outcomes([verdict(claim, scores) for claim in CLAIMS if claim.table == table])
        finding = f"{table}: <i>{escape(best)}</i> is best, {statistics.mean(rows[best]):.1f}; claims: {counts}"
        found.append((finding, spread_rows(names, "Fréchet distance (lower is better)")))
    return found


def alignment_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Training curves, training speed, and the learned inverses."""
    scores = numbers["scores"]
    found = []
    for key, name in PANELS.items():
        figure, axes = chart()
        draw_curves(axes, numbers["curves"], key)
        if key == "frechet_distance":
            axes.set_yscale("log")
        legend(axes, title="alignment", title_fontsize=8)
        note = hint("Lines: mean over seeds; bands: minimum to maximum.")
        found.append((alignment_finding(scores, key, name), finish(figure, axes, "step", name) + note))
    shapes = numbers["throughput"]
    strategies = list(next(iter(shapes.values())))
    figure, axes = rows_chart(strategies)
    for colour, (shape, shares) in zip((QUIET, ACCENT), shapes.items(), strict=False):
        speeds = [100 * shares[strategy] for strategy in strategies]
        axes.plot(speeds, range(len(strategies)), "o", color=colour, label=shape)
    legend(axes, loc="upper left")
    axes.set_xlim(0, 105)
    slowest = min(shapes.values(), key=lambda shares: shares["reverse"])["reverse"]
    finding = f"Training with alignment by reverse runs at {slowest:.0%} of the plain speed or more"
    found.append((finding, finish(figure, axes, "steps per second, % of no alignment")))
    inverses = {
        f"flow: {strategy}": [each["frechet_distance"] for each in seeds]
        for strategy, seeds in numbers["inverses"].items()
    }
    finding = claims(scores, numbers["reach"], numbers["inverses"])["inverse"].removeprefix("- ").replace("**", "")
    found.append((finding, spread_rows(inverses, "Fréchet distance, no guidance")))
    return found


def alignment_finding(scores: Mapping[str, Sequence[Numbers]], key: str, name: str) -> str:
    """Which strategies are significantly better than none at the end of training."""
    sign = -1 if key == "frechet_distance" else 1
    better = []
    for strategy in [each for each in scores if each != "none"]:
        pairs = zip(scores[strategy], scores["none"], strict=True)
        if decide([sign * (ours[key] - plain[key]) for ours, plain in pairs]).outcome == "holds":
            better.append(strategy)
    mean = statistics.mean(each[key] for each in scores["none"])
    listed = " and ".join(better) or "no strategy"
    return f"{name[0].upper()}{name[1:]}: {mean:.3g} without alignment; significantly better: {listed}"


def compare_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Both samplers at several values of one setting."""
    figure, axes = chart()
    for colour, (value, report) in zip(COLOURS, numbers.items(), strict=False):
        for line, (key, name) in zip(("--", "-"), (("exact", "exact"), ("reverse", "one pass")), strict=True):
            rows = [row for row in report["sweep"][key] if not row["annealed"]]
            drawn = [row["guidance"] for row in rows], [row["frechet_distance"] for row in rows]
            axes.plot(*drawn, line, marker="o", markersize=4, color=colour, label=f"{value}, {name}")
    legend(axes)
    ratios = {value: report["samples"]["frechet_ratio_reverse_to_exact"] for value, report in numbers.items()}
    listed = ", ".join(f"{ratio:.2f} for <i>{escape(value)}</i>" for value, ratio in ratios.items())
    finding = f"Fréchet distance of one pass relative to the exact inverse, each at its best guidance: {listed}"
    return [(finding, finish(figure, axes, "guidance w", "Fréchet distance"))]


def plan_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Measured memory against the estimate of `biflow plan`."""
    rows = numbers["rows"]
    figure, axes = rows_chart([row["name"] for row in rows])
    axes.barh(range(len(rows)), [row["measured"] / MIB for row in rows], height=0.5, color=QUIET, alpha=0.55,
              label="measured")  # fmt: skip
    axes.plot([row["estimated"] / MIB for row in rows], range(len(rows)), "|", color=ACCENT, markersize=13,
              markeredgewidth=2, label="estimated")  # fmt: skip
    legend(axes, loc="upper center", bbox_to_anchor=(0.3, 1.1), ncols=2)
    off = max(abs(row["estimated"] / row["measured"] - 1) for row in rows)
    finding = f"biflow plan estimates the memory of {len(rows)} kinds of training step within {off:.1%}"
    return [(finding, finish(figure, axes, "peak memory, MiB"))]


def fault_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Outcomes of injected faults, as a table."""
    kills, stops, disk, damage = (numbers[key] for key in ("kills", "terminations", "full_disk", "damage"))
    yes = {True: "yes", False: "no"}
    rows = [
        ["fault", "times", "outcome"],
        [
            f"SIGKILL, {kills['in_a_save']} of them during a save",
            str(kills["kills"]),
            f"weights of an uninterrupted run: {yes[kills['same_weights']]}",
        ],
        ["SIGTERM", str(len(stops)), f"saved and exited within {max(each['seconds'] for each in stops):.1f} s"],
        [
            "full disk",
            "1",
            f"older checkpoints intact: {yes[disk['older_kept']]}; same weights after resuming: "
            f"{yes[disk['same_weights_after']]}",
        ],
        ["flipped bit", str(damage["times"]), f"detected {damage['flips']} times"],
        ["truncated file", str(damage["times"]), f"detected {damage['cuts']} times"],
    ]
    same = "the weights of an uninterrupted run" if kills["same_weights"] else "other weights"
    detected = damage["flips"] + damage["cuts"]
    finding = (
        f"A run killed {kills['kills']} times ends with {same}; {detected} of {2 * damage['times']} corrupted "
        "checkpoints were detected"
    )
    return [(finding, f'<div class="scroll">{html_table(rows)}</div>')]


def area_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Area under the ROC curve for each kind of outlier."""
    scores: Numbers = numbers["areas"]
    kinds = [kind for kind in next(iter(scores.values())) if kind != "bits_per_dim"]
    figure, axes = rows_chart(kinds, 1.1 + 0.3 * len(kinds) + 0.17 * len(scores))
    for index, (score, areas) in enumerate(scores.items()):
        shift = (index - (len(scores) - 1) / 2) * 0.13
        heights = [row + shift for row in range(len(kinds))]
        axes.plot([areas[kind] for kind in kinds], heights, "o", color=COLOURS[index], markersize=4, label=score)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center")
    best = {kind: max(areas[kind] for areas in scores.values()) for kind in kinds}
    hardest = min(best, key=lambda kind: best[kind])
    finding = (
        f"The likelihood detects outliers; <i>{escape(hardest)}</i> images are the hardest, {best[hardest]:.2f} at best"
    )
    return [(finding, finish(figure, axes, "area under the ROC curve (0.5 is chance)"))]


def certify_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Area under the ROC curve for rejected samples, over guidance."""
    figure, axes = chart()
    lines = numbers["strengths"]
    for score, name in enumerate(lines[0]["areas"]):
        areas = [line["areas"][name] for line in lines]
        heights, errors = zip(*areas, strict=True)
        across = [index + (score - 1.5) * 0.08 for index in range(len(lines))]
        axes.errorbar(across, heights, yerr=errors, fmt="o", color=COLOURS[score], markersize=5, capsize=2, label=name)
    axes.set_xticks(range(len(lines)), [f"{line['guidance']:g}" for line in lines])
    legend(axes, loc="upper left")
    firsts = [line["areas"]["cycle error"][0] for line in lines]
    finding = (
        f"The cycle error (certify) detects rejected samples with an AUC of {min(firsts):.2f} to {max(firsts):.2f}; of "
        f"{numbers['samples']:,} samples, {lines[0]['rejected']} are rejected without guidance, "
        f"{lines[-1]['rejected']} at w = {lines[-1]['guidance']:g}"
    )
    note = hint(
        "Rejected: the reference classifier predicts another class than the label. Bars: one standard error. An AUC of "
        "0.5 is chance."
    )
    return [(finding, finish(figure, axes, "guidance w", "area under the ROC curve (AUC)") + note)]


def evaluation_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Fréchet distance over guidance, and the metrics at the chosen strength."""
    samples, tried = numbers["samples"], numbers["sweep"]["tried"]
    network, found = next(iter(numbers["metrics"].items()))
    figure, axes = chart()
    strengths = [each["guidance"] for each in tried]
    axes.plot(strengths, [each["frechet_distance"] for each in tried], "o-", color=ACCENT, markersize=4)
    finding = (
        f"{samples['num']:,} samples by method {samples['method']} at guidance {samples['guidance']}: Fréchet distance "
        f"{found['frechet_distance']:.2f}, precision {found['precision']:.2f}, recall {found['recall']:.2f}"
    )
    features = FEATURES.get(network, network)
    note = hint(
        f"Features: {features}. The curve uses {numbers['sweep']['num']:,} images per strength, with a different seed."
    )
    return [(finding, finish(figure, axes, "guidance w", "Fréchet distance") + note)]


def evaluation_command(_: str, numbers: Numbers) -> str:
    """The command of an evaluation."""
    samples, tried = numbers["samples"], [each["guidance"] for each in numbers["sweep"]["tried"]]
    sweep = f"guidance={tried[0]:g}:{tried[-1]:g}:{tried[1] - tried[0]:g}"
    annealed = ",annealed" if "annealed" in samples["guidance"] else ""
    return (
        f"biflow evaluate {numbers['model']['folder']} --data {numbers['data']['name']} --num {samples['num']} "
        f"--method {samples['method']} --guidance 0{annealed} --features {' '.join(numbers['metrics'])} "
        f"--sweep {sweep} --set sweep_num={numbers['sweep']['num']} --out OUT"
    )


def editing_panels(numbers: Numbers) -> list[tuple[str, str]]:
    """Class accuracy after editing: variations over their strength, inpainting by mask."""
    figure, axes = chart()
    for (name, rows), colour in zip(numbers["vary"].items(), (ACCENT, QUIET), strict=True):
        means = [statistics.mean(row["accuracy"]) for row in rows.values()]
        spreads = [statistics.stdev(row["accuracy"]) for row in rows.values()]
        strengths = [float(strength) for strength in rows]
        axes.errorbar(strengths, means, yerr=spreads, fmt="o-", color=colour, markersize=4, capsize=2, label=name)
    axes.axhline(numbers["accuracy"], color=INK, linewidth=0.8, linestyle=":", label="unedited images")
    legend(axes, loc="lower left")
    one = {strength: statistics.mean(row["accuracy"]) for strength, row in numbers["vary"]["one pass"].items()}
    varied = (
        f"Variations keep their class: {one['0']:.1f}% at strength 0 (reconstruction), {one['1']:.1f}% at strength 1"
    )
    kinds = {name: row["accuracy, most likely proposal"] for name, row in numbers["inpaint"].items()}
    averages = {name: statistics.mean(values) for name, values in kinds.items()}
    low, high = min(averages.values()), max(averages.values())
    inpainted = f"Inpainting keeps the class in {low:.1f}% to {high:.1f}% of the most likely of four proposals"
    return [
        (varied, finish(figure, axes, "strength", "class accuracy, %")),
        (inpainted, spread_rows(kinds, "class accuracy, %")),
    ]


def fixed(command: str) -> Callable[[str, Numbers], str]:
    """A command that does not depend on the numbers."""
    return lambda *_: command


def repa_command(_: str, numbers: Numbers) -> str:
    """The command of the alignment benchmark."""
    return f"python benchmarks/repa.py --data {numbers['data']} --seeds {len(numbers['scores']['none'])}"


def compare_command(path: str, numbers: Numbers) -> str:
    """The command of a comparison; the folder is named after the setting."""
    return f"python benchmarks/compare.py {Path(path).parent.name} {' '.join(numbers)}"


def recorded(_: str, numbers: Numbers) -> str:
    """The command that a file names."""
    return numbers["command"]


KINDS = (
    Kind("Real images", "*.json", frozenset({"rows", "real", "losses"}), recorded, showcase_panels),
    Kind("Real images", "claims_*.json", frozenset({"rows", "flows", "claims"}), recorded, claims_panels),
    Kind("Real images", "convergence_*.json", frozenset({"rows", "recipe", "steps"}), recorded, convergence_panels),
    Kind("Real images", "likelihood_*.json", frozenset({"rows", "minutes"}), recorded, likelihood_panels),
    Kind("Sampling", "quickstart/report.json", frozenset({"sweep", "samples", "speed"}),
         fixed("make quickstart"), quickstart_panels),
    Kind("Sampling", "speed/latency_*.json", frozenset({"milliseconds_per_image_by_batch_size", "recipe"}),
         lambda _, numbers: f"python benchmarks/latency.py --recipe {numbers['recipe']}", latency_panels),
    Kind("Sampling", "evaluation/*.json", frozenset({"metrics", "sweep", "cost"}), evaluation_command,
         evaluation_panels),
    Kind("Sampling", "export.json", frozenset({"exported_milliseconds_per_image", "files"}),
         fixed("python benchmarks/export.py RUN"), export_panels),
    Kind("Speed", "speed/inverse*.json", frozenset({"flows"}), lambda _, numbers: inverse.command(numbers),
         inverse_panels),
    Kind("Speed", "speed/inverse_shape*.json", frozenset({"shapes"}),
         fixed("python benchmarks/inverse.py --shape"), shape_panels),
    Kind("Speed", "speed/training_step*.json", frozenset({"steps"}),
         lambda _, numbers: training_step.command(numbers), training_panels),
    Kind("Speed", "speed/gpu.json", frozenset({"training", "one pass"}), fixed("python benchmarks/gpu.py"), gpu_panels),
    Kind("Speed", "speed/batches.json", frozenset({"ms", "batch_size", "side"}),
         fixed("python benchmarks/batches.py"), batch_panels),
    Kind("Speed", "speed/contention.json", frozenset({"ms_a_step"}),
         fixed("python benchmarks/contention.py"), contention_panels),
    Kind("Ablations of BiFlow", "ablations.json", frozenset({"rows", "real"}),
         lambda _, numbers: f"python benchmarks/ablations.py --data {numbers['data']} --seeds {numbers['seeds']}",
         ablation_panels),
    Kind("Alignment with an encoder", "repa.json", frozenset({"curves", "scores", "throughput"}), repa_command,
         alignment_panels),
    Kind("Sampling", "*/reports.json", frozenset(), compare_command, compare_panels),
    Kind("Memory and faults", "plan*.json", frozenset({"rows"}), fixed("python benchmarks/memory.py"), plan_panels),
    Kind("Memory and faults", "faults.json", frozenset({"kills", "damage"}), fixed("python benchmarks/faults.py"),
         fault_panels),
    Kind("Outliers and rejected samples", "outliers.json", frozenset({"areas"}),
         fixed("python benchmarks/outliers.py MODEL"), area_panels),
    Kind("Outliers and rejected samples", "certify.json", frozenset({"strengths", "samples"}),
         fixed("python benchmarks/certify.py RUN"), certify_panels),
    Kind("Editing", "editing.json", frozenset({"inpaint", "reclass", "vary"}),
         fixed("python benchmarks/editing.py MODEL"), editing_panels),
)  # fmt: skip


def caption(path: str, command: str, machine: Numbers) -> str:
    """The source of the numbers: file, command, machine."""
    source = f'<a href="{escape(path)}">{escape(path)}</a>, <code>{escape(command)}</code>'
    return f"{source}; {escape(described(machine))}"


def machine_of(numbers: Numbers) -> Numbers:
    """The machine of a file, or of the first report in it."""
    return numbers["machine"] if "machine" in numbers else machine_of(next(iter(numbers.values())))


def gather(folder: Path) -> tuple[dict[str, list[Panel]], list[str]]:
    """The panels of every section, and the paths of files of unknown kinds."""
    sections: dict[str, list[Panel]] = {kind.section: [] for kind in KINDS}
    unknown = []
    files = {
        file.relative_to(folder).as_posix(): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.rglob("*.json"))
    }
    for path, numbers in files.items():
        kind = next((kind for kind in KINDS if kind.matches(path, numbers)), None)
        if kind is None:
            unknown.append(path)
            continue
        shown = {**numbers, **with_other_inverses(files)} if kind.panels is quickstart_panels else numbers
        source = caption(path, kind.command(path, numbers), machine_of(numbers))
        sections[kind.section] += [Panel(finding, picture, source) for finding, picture in kind.panels(shown)]
    return sections, unknown


def render(folder: Path) -> str:
    """The page."""
    sections, unknown = gather(folder)
    parts = [
        "<h1>All measurements</h1>",
        '<p class="lead">Every measurement in docs/results as a figure. Each caption names the JSON file, the command '
        "that wrote it, and the machine.</p>",
        "<p>Fréchet distances are to the training images, in the features of a reference classifier that never sees "
        "samples, unless noted. Timings come from a shared machine and vary by a third from run to run.</p>",
    ]
    for title, panels in sections.items():
        if panels:
            parts += [f"<h2>{title}</h2>", f'<div class="panels">{"".join(map(panel_html, panels))}</div>']
    if unknown:
        links = "".join(f'<li><a href="{escape(path)}">{escape(path)}</a></li>' for path in unknown)
        parts.append(f"<h2>More files</h2><p>Files of a kind that has no figure here.</p><ul>{links}</ul>")
    return render_page("biflow results", "\n".join(parts))


def panel_html(panel: Panel) -> str:
    """One figure with its title and caption."""
    return f"<figure><h3>{panel.finding}</h3>{panel.picture}<figcaption>{panel.caption}</figcaption></figure>"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--out", type=Path, default=RESULTS / "figures.html")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, render(arguments.results))
    print(arguments.out)


if __name__ == "__main__":
    main()
