"""Charts that pages of measurements share."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from biflow.evaluation.html import ACCENT, QUIET, style, svg

WIDTH = 4.6  # of a panel, in inches


def chart(height: float = 3.2) -> tuple[Figure, Any]:
    """An empty figure of panel width, and its axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def finish(figure: Figure, axes: Any, x_label: str, y_label: str = "") -> str:
    """Add labels and the common style; return the figure as SVG."""
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
    """An empty chart with one labelled row per name, the first on top."""
    figure, axes = chart(height or 0.9 + 0.3 * len(names))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, axes


def legend(axes: Any, **options: Any) -> None:
    """A legend without a frame."""
    axes.legend(frameon=False, fontsize=8, **options)


def spread_rows(rows: Mapping[str, Sequence[float]], x_label: str) -> str:
    """A dot for each seed, and mean and standard deviation, for every row."""
    figure, axes = rows_chart(list(rows))
    for row, values in enumerate(rows.values()):
        deviation = statistics.stdev(values) if len(values) > 1 else 0
        axes.plot(values, [row + 0.24] * len(values), "o", color=QUIET, alpha=0.7, markersize=4, markeredgewidth=0)
        axes.errorbar(statistics.mean(values), row, xerr=deviation, fmt="D", color=ACCENT, markersize=5, capsize=3)
    return finish(figure, axes, x_label) + hint("Blue: individual seeds; red: mean and standard deviation.")


def hint(text: str) -> str:
    """A note on how to read a figure."""
    return f'<p class="hint">{text}</p>'
