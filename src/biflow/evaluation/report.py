"""One run as a page: self-contained HTML with the pictures, the curves and the numbers."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biflow.data.datasets import ImageSet
from biflow.data.images import make_grid, to_pil
from biflow.errors import InputError

Numbers = Mapping[str, Any]
GRID_ROWS = 8
INK, ACCENT, QUIET = "#1c1b22", "#b4441f", "#2f6f9f"


class Pictures(NamedTuple):
    """What the page shows."""

    real: ImageSet
    exact: Tensor  # uint8 (N, P, H, W)
    reverse: Tensor  # uint8 (N, P, H, W)
    labels: Tensor  # (N,), of both sets of samples
    way_to_noise: Sequence[Tensor]  # images (P, H, W)
    way_back: Sequence[Tensor]  # images (P, H, W)


def check_report() -> None:
    """Raise, before anything long, if the page could not be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "Expected matplotlib for the report; install it with pip install 'biflow[quickstart]'."
        ) from None


def summary_rows(report: Numbers) -> list[list[str]]:
    """The table of the report: a head, then one row for each measure of each sampler."""
    exact, reverse, speed = report["exact"], report["reverse_samples"], report["speed"]
    small, large = (key for key in speed if key.startswith("batch_"))
    judge = report["judge"]

    def row(title: str, key: str, form: str, real: str) -> list[str]:
        return [title, format(exact[key], form), format(reverse[key], form), real]

    def times(batch: str) -> list[str]:
        size = batch.removeprefix("batch_")
        ours = speed[batch]
        cells = [f"{ours[name]:.3g} ms" for name in ("exact_guided", "reverse")]
        return [f"time per image, batch {size}", *cells, f"{ours['ratio']:.1f}x faster"]

    return [
        ["", f"exact inverse, w = {exact['guidance']:g}", "reverse, one pass", "real test images"],
        row("read as their class", "class_accuracy", ".1%", f"{judge['test_accuracy']:.1%}"),
        row("Frechet distance", "frechet_distance", ".1f", f"{judge['frechet_floor_test_to_train']:.1f}"),
        row("nearer to training than real", "nearer_than_real_share", ".1%", "1.0%"),
        row("spread against real", "spread_ratio", ".2f", "1.00"),
        times(small),
        times(large),
    ]


def render_report(report: Numbers, history: Sequence[Numbers], pictures: Pictures) -> str:
    """The whole page."""
    template = Template((resources.files("biflow.evaluation") / "report.html").read_text(encoding="utf-8"))
    head, *rows = summary_rows(report)
    machine, speed = report["machine"], report["speed"]
    return template.substitute(
        headline=_headline(report),
        table_head="".join(f"<th>{cell}</th>" for cell in head),
        table_rows="".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows),
        **{f"grid_{name}": _picture(grid, name) for name, grid in _grids(pictures).items()},
        way_to_noise=_strip(pictures.way_to_noise, _names_there(len(pictures.way_to_noise))),
        way_back=_strip(pictures.way_back, _names_back(len(pictures.way_back))),
        curves=_curves(history),
        sweep=_sweep(report["sweep"]),
        speed_note=f"guided at w = {speed['guidance']:g}",
        facts="".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in _facts(report).items()),
        machine=f"{machine['system']}, {machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
    )


def _headline(report: Numbers) -> str:
    speed = next(value for key, value in report["speed"].items() if key.startswith("batch_"))
    reverse = report["reverse_samples"]
    return (
        f"One pass: {speed['reverse']:.1f} ms an image, {speed['ratio']:.0f} times faster than the exact inverse, "
        f"{reverse['class_accuracy']:.1%} of the samples read as their class, "
        f"at {report['frechet_ratio']:.2f} of its Frechet distance."
    )


def _facts(report: Numbers) -> dict[str, str]:
    data, flow, reverse, judge = (report[key] for key in ("data", "flow", "reverse", "judge"))
    noise = report["recipe"]["model"]["noise_std"]
    return {
        "data": f"{data['name']}: {data['train_images']:,} to train, {data['test_images']:,} to test",
        "flow": f"{flow['parameters']:,} parameters, {flow['steps']:,} steps in {flow['train_seconds']:.0f} s",
        "bits per dimension": (
            f"{flow['test_bits_per_dim_of_noisy_data']:.3f} in units of 8-bit grey levels, "
            f"on test images with the training noise (std {noise:g}) added"
        ),
        "round trip": (
            f"largest error {flow['round_trip_error_float32']:.1e} in float32, "
            f"{flow['round_trip_error_float64']:.1e} in float64"
        ),
        "reverse model": (
            f"{reverse['parameters']:,} parameters, {reverse['steps']:,} steps in {reverse['train_seconds']:.0f} s; "
            f"mean squared error on test images {reverse['test_reconstruction_mse']:.4f}"
        ),
        "judge": f"{judge['what']}; reads {judge['test_accuracy']:.1%} of the test images",
        "whole run": f"{report['total_seconds']:.0f} s",
    }


def _grids(pictures: Pictures) -> dict[str, Tensor]:
    """One column a class, for real images, exact samples and one-pass samples."""
    real = pictures.real
    sets = {
        "real": (real.images, real.labels),
        "exact": (pictures.exact, pictures.labels),
        "reverse": (pictures.reverse, pictures.labels),
    }
    return {name: _by_class(images, labels, len(real.class_names)) for name, (images, labels) in sets.items()}


def _by_class(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    columns = [images[labels == label][:GRID_ROWS] for label in range(classes)]
    rows = min(len(column) for column in columns)
    return make_grid(torch.stack([column[:rows] for column in columns], dim=1).flatten(0, 1), columns=classes)


def _picture(pixels: Tensor, name: str) -> str:
    """uint8 (P, H, W) -> an <img> that carries its own data."""
    buffer = io.BytesIO()
    to_pil(pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'


def _strip(images: Sequence[Tensor], names: Sequence[str]) -> str:
    figures = (
        f"<figure>{_picture(_visible(image), name)}<figcaption>{name}</figcaption></figure>"
        for image, name in zip(images, names, strict=True)
    )
    return "".join(figures)


def _visible(image: Tensor) -> Tensor:
    """Stretch an image of any range to grey levels, with zero in the middle."""
    reach = image.abs().flatten().quantile(0.98).clamp(min=1e-6)
    return ((image / reach).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def _names_there(count: int) -> list[str]:
    blocks = count - 2
    return ["image", "+ noise", *(f"block {i}" for i in range(blocks - 1)), f"block {blocks - 1}: noise"]


def _names_back(count: int) -> list[str]:
    blocks = count - 1
    return [*(f"undoes block {i}" for i in reversed(range(blocks))), "denoised"]


def _curves(history: Sequence[Numbers]) -> str:
    from matplotlib.figure import Figure

    panels = (
        ("flow", "nats_per_dim", "flow: nats per dimension"),
        ("reverse", "alignment", "reverse: distance from the flow's states"),
        ("reverse", "image", "reverse: squared error of the image"),
    )
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    for axes, (stage, key, title) in zip(figure.subplots(1, 3), panels, strict=True):
        lines = [line for line in history if line["stage"] == stage]
        axes.plot([line["step"] for line in lines], [line[key] for line in lines], color=QUIET, linewidth=1.3)
        axes.set_yscale("log" if stage == "reverse" else "linear")
        _style(axes, title, "step")
    return _svg(figure)


def _sweep(sweep: Sequence[Numbers]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.9), layout="constrained")
    panels = (("frechet_distance", "Frechet distance (lower is better)"), ("class_accuracy", "read as their class"))
    for axes, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for method, label, color in (("sequential", "exact", QUIET), ("reverse", "reverse", ACCENT)):
            rows = [row for row in sweep if row["method"] == method]
            axes.plot([row["guidance"] for row in rows], [row[key] for row in rows], "o-", color=color, label=label)
        axes.legend(frameon=False)
        _style(axes, title, "guidance w")
    return _svg(figure)


def _style(axes: Any, title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel(x_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
