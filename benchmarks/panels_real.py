"""Figures of what was measured on real images, for the page of all measurements."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from charts import chart, finish, hint, legend, rows_chart, spread_rows
from claims_page import PLAIN
from showcase import DRAWN
from studies import STUDIES

from biflow.evaluation.html import ACCENT, INK, QUIET

Numbers = Mapping[str, Any]
Panels = list[tuple[str, str]]


def showcase_panels(numbers: Numbers) -> Panels:
    """Fréchet distance over guidance, one pass compared with the exact inverse."""
    figure, axes = chart()
    rows, title = numbers["rows"], STUDIES[numbers["data"]].title
    for key, colour in (("reverse", ACCENT), ("jacobi", QUIET)):
        tried = {float(w): distance for w, distance in rows[key]["tried"].items() if "," not in w}
        axes.plot(tried.keys(), tried.values(), "o-", color=colour, markersize=4, label=DRAWN[key].partition(",")[0])
    axes.axhline(numbers["real"]["judge"], color=INK, linewidth=0.8, linestyle=":", label="real test images")
    axes.set_ylim(bottom=0)
    legend(axes)
    ours, exact = rows["reverse"], rows["sequential"]
    finding = (
        f"{title}: one pass has {ours['frechet_distance'] / exact['frechet_distance']:.2f} times the exact inverse's "
        f"Fréchet distance, {exact['seconds']['1'] / ours['seconds']['1']:.0f} times faster for one image"
    )
    return [(finding, finish(figure, axes, "guidance w", "Fréchet distance"))]


def claims_panels(numbers: Numbers) -> Panels:
    """Fréchet distance of every row of every table."""
    found = []
    for table, rows in numbers["rows"].items():
        distances = {name: [each["frechet_distance"] for each in scores] for name, scores in rows.items()}
        best = min(distances, key=lambda name: statistics.mean(distances[name]))
        found.append((f"{table}: {best} has the lowest Fréchet distance", spread_rows(distances, "Fréchet distance")))
    return [*found, *curve_panels(numbers["flows"])]


def curve_panels(flows: Mapping[str, Sequence[Numbers]]) -> Panels:
    """Accuracy of flows with one gradient, by training step, of the first seed."""
    figure, axes = chart()
    for name, seeds in flows.items():
        curve = seeds[0]["curve"]
        steps, accuracies = [line["step"] for line in curve], [line["accuracy"] for line in curve]
        axes.plot(steps, accuracies, "o-", markersize=3, linewidth=1.3, label="none" if name == PLAIN else name)
    legend(axes)
    plain, aligned = (flows[name][0]["gradient"] for name in (PLAIN, "reverse"))
    finding = f"Single-gradient accuracy: {plain:.1%} without alignment, {aligned:.1%} with alignment by reverse"
    return [(finding, finish(figure, axes, "training steps", "accuracy, test images"))]


def convergence_panels(numbers: Numbers) -> Panels:
    """Fréchet distance of every variant of the reverse model's training."""
    rows = {name: [each["frechet_distance"] for each in scores] for name, scores in numbers["rows"].items()}
    best = min(rows, key=lambda name: statistics.mean(rows[name]))
    title = STUDIES[numbers["data"]].title
    finding = f"{title}: of all variants of reverse training, '{best}' has the lowest Fréchet distance"
    return [(finding, spread_rows(rows, "Fréchet distance, without guidance"))]


def likelihood_panels(numbers: Numbers) -> Panels:
    """Bits per dimension of every library's flow."""
    rows = dict(sorted(numbers["rows"].items(), key=lambda item: item[1]["test"]))
    figure, axes = rows_chart(list(rows))
    for key, colour, name in (("train", QUIET, "training images"), ("test", ACCENT, "test images")):
        axes.plot([row[key] for row in rows.values()], range(len(rows)), "o", color=colour, label=name)
    legend(axes)
    first, best = next(iter(rows.items()))
    finding = (
        f"{STUDIES[numbers['study']].title}: after {numbers['minutes']:g} minutes of training, {first} has "
        f"{best['test']:.2f} bits/dim"
    )
    return [(finding, finish(figure, axes, "bits per dimension") + hint("Lower is better."))]
