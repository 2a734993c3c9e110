"""One run as a page: self-contained HTML with the pictures, the curves and the numbers."""

from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from biflow.data.datasets import ImageSet
from biflow.data.images import enlarge, make_grid, to_pil
from biflow.evaluation.html import ACCENT, QUIET, html_table, picture, render_page, style, svg

Numbers = Mapping[str, Any]
GRID_ROWS = 8
SIDE_GAP, PICTURE_WIDTH = 8, 1000  # pixels: between two grids of `side_by_side`, and its least width


class Pictures(NamedTuple):
    """What the page shows."""

    real: ImageSet
    exact: Tensor  # uint8 (N, P, H, W)
    reverse: Tensor  # uint8 (N, P, H, W)
    labels: Tensor  # (N,), of both sets of samples
    way_to_noise: Sequence[Tensor]  # images (P, H, W)
    way_back: Sequence[Tensor]  # images (P, H, W)


def quality_rows(report: Numbers) -> list[list[str]]:
    """How good the samples are: a head, then a row for each measure."""
    samples = report["samples"]
    columns = (samples["exact"], samples["reverse"], report["real"])
    measures = {
        "read as their class": ("class_accuracy", ".1%"),
        "Frechet distance": ("frechet_distance", ".2f"),
        "too close to training": ("nearer_than_real_share", ".1%"),
        "spread": ("spread_ratio", ".2f"),
    }
    rows = [[title, *(format(column[key], form) for column in columns)] for title, (key, form) in measures.items()]
    return [
        ["", f"exact, {_guidance(samples['exact'])}", f"one pass, {_guidance(samples['reverse'])}", "real"],
        *rows,
    ]


def speed_rows(report: Numbers) -> list[list[str]]:
    """How long an image takes: a head, then a row for each sampler."""
    batches = report["speed"]["milliseconds_per_image_by_batch_size"]
    names = {
        "exact_guided": "exact, guided",
        "exact": "exact",
        "reverse_guided": "one pass, guided",
        "reverse": "one pass",
    }
    rows = [[title, *(f"{times[name]:.3g} ms" for times in batches.values())] for name, title in names.items()]
    ratios = [f"{times['ratio_guided']:.1f} times" for times in batches.values()]
    return [["", *(f"batch {size}" for size in batches)], *rows, ["guided, one pass is faster by", *ratios]]


def classification_rows(report: Numbers) -> list[list[str]]:
    """How well the flow's likelihood tells the classes of test images apart: a head, then a row for each way."""
    names = {"gradient": "one gradient", "steps": "ten gradients", "bayes": "every class tried"}
    rows = [
        [
            name,
            f"{found['accuracy']:.1%}",
            f"{found['calibration_error']:.1%}",
            f"{found['milliseconds_per_image']:.2g} ms",
        ]
        for name, found in ((names[method], found) for method, found in report["classification"].items())
    ]
    return [["", "right", "calibration error", "time an image"], *rows]


def _guidance(sampler: Numbers) -> str:
    return f"w={sampler['guidance']:g}{' annealed' if sampler['annealed'] else ''}"


def render_report(report: Numbers, history: Sequence[Numbers], pictures: Pictures) -> str:
    """The whole page."""
    template = Template((resources.files("biflow.quickstart") / "report.html").read_text(encoding="utf-8"))
    machine = report["machine"]
    body = template.substitute(
        headline=_headline(report),
        quality=html_table(quality_rows(report)),
        speed=html_table(speed_rows(report)),
        classification=html_table(classification_rows(report)),
        **{f"grid_{name}": picture(grid, name) for name, grid in _grids(pictures).items()},
        way=_way(pictures),
        curves=_curves(history),
        sweep=guidance_chart(report["sweep"]),
        facts="".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in _facts(report).items()),
        machine=f"{machine['system']}, {machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
    )
    return render_page("biflow quickstart", body)


def _headline(report: Numbers) -> str:
    size, times = next(iter(report["speed"]["milliseconds_per_image_by_batch_size"].items()))
    samples = report["samples"]
    return (
        f"{samples['reverse']['class_accuracy']:.1%} of the one-pass samples read as their class. One takes "
        f"{times['reverse_guided']:.1f} ms at batch {size}, {times['ratio_guided']:.0f} times less than the exact "
        f"inverse, at {samples['frechet_ratio_reverse_to_exact']:.2f} times its Frechet distance."
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
        "judge": f"{judge['what']}; reads {report['real']['class_accuracy']:.1%} of the test images",
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


def side_by_side(pictures: Pictures) -> Image.Image:
    """Real images, exact samples and one-pass samples in one picture, from left to right, enlarged."""
    grids = list(_grids(pictures).values())
    gap = torch.full((*grids[0].shape[:2], SIDE_GAP), 255, dtype=torch.uint8)
    picture = torch.cat([grids[0], gap, grids[1], gap, grids[2]], dim=2)
    return to_pil(enlarge(picture, PICTURE_WIDTH))


def _by_class(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    columns = [images[labels == label][:GRID_ROWS] for label in range(classes)]
    rows = min(len(column) for column in columns)
    return make_grid(torch.stack([column[:rows] for column in columns], dim=1).flatten(0, 1), columns=classes)


def _way(pictures: Pictures) -> str:
    """Two rows, level by level: to noise from left to right, and back from right to left."""
    there, back = pictures.way_to_noise, pictures.way_back[::-1]
    blocks = len(there) - 2
    names = ["image", "with noise", *(f"after block {i}" for i in range(1, blocks + 1))]
    first = [_tile(image, name) for image, name in zip(there, names, strict=True)]
    names = ["denoised", *(f"block {i} undone" for i in range(1, blocks + 1))]
    second = [_tile(image, name) for image, name in zip(back, names, strict=True)]
    turn = '<figure class="turn">&#8617;<figcaption>the noise goes in</figcaption></figure>'
    return f'<div class="way" style="--columns: {len(there)}">{"".join(first)}{"".join(second)}{turn}</div>'


def _tile(image: Tensor, name: str) -> str:
    return f"<figure>{picture(_visible(image), name)}<figcaption>{name}</figcaption></figure>"


def _visible(image: Tensor) -> Tensor:
    """Stretch an image of any range to grey levels, with zero in the middle."""
    reach = image.abs().flatten().quantile(0.98).clamp(min=1e-6)
    return ((image / reach).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def _curves(history: Sequence[Numbers]) -> str:
    from matplotlib.figure import Figure

    panels = (
        ("flow", "nats_per_dim", "flow: nats per dimension"),
        ("reverse", "alignment", "reverse: distance from the flow's states"),
        ("reverse", "mse", "reverse: squared error of the image"),
    )
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    for axes, (stage, key, title) in zip(figure.subplots(1, 3), panels, strict=True):
        lines = [line for line in history if line["stage"] == stage and line.get(key) is not None]
        axes.plot([line["step"] for line in lines], [line[key] for line in lines], color=QUIET, linewidth=1.3)
        axes.set_yscale("log" if stage == "reverse" else "linear")
        style(axes, title, "step")
    return svg(figure)


GUIDANCE_PANELS = {
    "frechet_distance": "Frechet distance (lower is better)",
    "class_accuracy": "read as their class",
}


def guidance_chart(sweep: Mapping[str, Sequence[Numbers]]) -> str:
    """Frechet distance and accuracy of both ways of sampling over the strength of guidance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.9), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2), GUIDANCE_PANELS.items(), strict=True):
        draw_guidance(axes, sweep, key)
        style(axes, title, "guidance w")
    return svg(figure)


def draw_guidance(axes: Any, sweep: Mapping[str, Sequence[Numbers]], key: str) -> None:
    """One measure of both ways of sampling over the strength of guidance."""
    lines = (
        ("exact", [row for row in sweep["exact"] if not row["annealed"]], QUIET, "-"),
        ("exact, annealed", [row for row in sweep["exact"] if row["annealed"] or not row["guidance"]], QUIET, "--"),
        ("one pass", sweep["reverse"], ACCENT, "-"),
    )
    for label, rows, color, dash in lines:
        strengths, values = [row["guidance"] for row in rows], [row[key] for row in rows]
        axes.plot(strengths, values, dash, marker="o", markersize=4, color=color, label=label)
    axes.legend(frameon=False, fontsize=8)
