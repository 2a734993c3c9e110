"""The report of a quickstart: a self-contained HTML page with images, curves and metrics."""

from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from biflow.console import counted
from biflow.data.datasets import ImageSet
from biflow.data.images import enlarge, make_grid, to_pil
from biflow.evaluation.html import ACCENT, QUIET, charts, html_facts, html_table, picture, render_page, significant

Numbers = Mapping[str, Any]
GRID_ROWS = 8
SIDE_GAP, PICTURE_WIDTH = 8, 1000  # pixels: between two grids of `side_by_side`, and its minimum width
CURVES = {  # (stage, key of metrics.jsonl) -> title
    ("flow", "nats_per_dim"): "flow: negative log-likelihood (nats/dim)",
    ("reverse", "alignment"): "reverse model: alignment loss",
    ("reverse", "mse"): "reverse model: mean squared error",
}
GUIDANCE_PANELS = {
    "frechet_distance": "Fréchet distance (lower is better)",
    "class_accuracy": "classification accuracy",
}


class ReportImages(NamedTuple):
    """The images on the page."""

    real: ImageSet
    samples: Mapping[str, Tensor]  # "exact" and "reverse": uint8 (N, P, H, W)
    labels: Tensor  # (N,), of both sets of samples
    forward_trace: Sequence[Tensor]  # images (P, H, W)
    reverse_trace: Sequence[Tensor]  # images (P, H, W)


def quality_rows(report: Numbers) -> list[list[str]]:
    """The quality of the samples: a header, then a row for each metric."""
    samples = report["samples"]
    columns = {
        f"exact inverse, {_guidance(samples['exact'])}": samples["exact"],
        f"one-pass, {_guidance(samples['reverse'])}": samples["reverse"],
        "real": report["real"],
    }
    metrics = {
        "classification accuracy": ("class_accuracy", ".1%"),
        "Fréchet distance": ("frechet_distance", ".2f"),
        "near-duplicates of training": ("nearer_than_real_share", ".1%"),
        "spread": ("spread_ratio", ".2f"),
    }
    rows = [[title, *(format(each[key], form) for each in columns.values())] for title, (key, form) in metrics.items()]
    return [["", *columns], *rows]


def speed_rows(report: Numbers) -> list[list[str]]:
    """Time per image: a header, then a row for each method."""
    batches = report["speed"]["milliseconds_per_image_by_batch_size"]
    rows = [
        [name + guided.replace("_", ", "), *(f"{significant(times[key + guided], 3)} ms" for times in batches.values())]
        for key, name in (("exact", "exact inverse"), ("reverse", "one-pass"))
        for guided in ("_guided", "")
    ]
    ratios = [f"{times['ratio_guided']:.1f}x" for times in batches.values()]
    return [["", *(f"batch {size}" for size in batches)], *rows, ["one-pass speed-up, guided", *ratios]]


def classification_rows(report: Numbers) -> list[list[str]]:
    """Classification of test images by the flow's likelihood: a header, then a row for each method."""
    names = {"gradient": "one gradient", "steps": "ten gradients", "bayes": "Bayes' rule, all classes"}
    rows = [
        [
            names[method],
            f"{found['accuracy']:.1%}",
            f"{found['calibration_error']:.1%}",
            f"{significant(found['milliseconds_per_image'], 2)} ms",
        ]
        for method, found in report["classification"].items()
    ]
    return [["", "accuracy", "calibration error", "time per image"], *rows]


def _guidance(sampler: Numbers) -> str:
    return f"w={sampler['guidance']:g}{' annealed' if sampler['annealed'] else ''}"


def render_report(report: Numbers, history: Sequence[Numbers], images: ReportImages) -> str:
    """The whole page."""
    template = Template((resources.files("biflow.quickstart") / "report.html").read_text(encoding="utf-8"))
    body = template.substitute(
        headline=_headline(report),
        quality=html_table(quality_rows(report)),
        speed=html_table(speed_rows(report)),
        classification=html_table(classification_rows(report)),
        **{f"grid_{name}": picture(grid, name) for name, grid in _grids(images).items()},
        trace=_trace(images),
        curves=_curves(history),
        sweep=charts(GUIDANCE_PANELS, "guidance w", lambda axes, key: draw_guidance(axes, report["sweep"], key)),
        facts=html_facts(_facts(report)),
    )
    return render_page("biflow quickstart", body)


def _headline(report: Numbers) -> str:
    size, times = next(iter(report["speed"]["milliseconds_per_image_by_batch_size"].items()))
    samples = report["samples"]
    ratio, right = samples["frechet_ratio_reverse_to_exact"], samples["reverse"]["class_accuracy"]
    return (
        f"One-pass sampling takes {times['reverse_guided']:.1f} ms per image at batch size {size}, "
        f"{times['ratio_guided']:.0f}x faster than the exact inverse, at {ratio:.2f} times its Fréchet distance. "
        f"A reference classifier assigns {right:.1%} of the one-pass samples to the right class."
    )


def _facts(report: Numbers) -> dict[str, str]:
    data, flow, reverse, judge, machine = (report[key] for key in ("data", "flow", "reverse", "judge", "machine"))
    noise = f"the training noise (std {report['recipe']['model']['noise_std']:g}) added"
    errors = ", ".join(f"{flow[f'round_trip_error_{bits}']:.1e} in {bits}" for bits in ("float32", "float64"))
    return {
        "data": f"{data['name']}: {data['train_images']:,} training and {data['test_images']:,} test images",
        "flow": _training(flow),
        "bits per dimension": f"{flow['test_bits_per_dim_of_noisy_data']:.3f} on 8-bit test images with {noise}",
        "reconstruction": f"largest error of the exact inverse {errors}",
        "reverse model": f"{_training(reverse)}; mean squared error on test images "
        f"{reverse['test_reconstruction_mse']:.4f}",
        "reference classifier": f"{judge['what']}; accuracy {report['real']['class_accuracy']:.1%} on the test images",
        "total time": f"{report['total_seconds']:.0f} s",
        "machine": f"{machine['system']}, {machine['device']}, {counted(machine['threads'], 'thread')}, "
        f"torch {machine['torch']}",
    }


def _training(network: Numbers) -> str:
    parameters, steps = f"{network['parameters']:,} parameters", f"{network['steps']:,} steps"
    return f"{parameters}, {steps} in {network['train_seconds']:.0f} s"


def _grids(images: ReportImages) -> dict[str, Tensor]:
    """Grids with one column per class: real images, samples of the exact inverse, one-pass samples."""
    samples = {name: (pixels, images.labels) for name, pixels in images.samples.items()}
    sets = {"real": (images.real.images, images.real.labels), **samples}
    return {name: _by_class(pixels, labels, len(images.real.class_names)) for name, (pixels, labels) in sets.items()}


def side_by_side(images: ReportImages) -> Image.Image:
    """Real images, samples of the exact inverse and one-pass samples, from left to right in one enlarged image."""
    real, exact, reverse = _grids(images).values()
    gap = torch.full((*real.shape[:2], SIDE_GAP), 255, dtype=torch.uint8)
    return to_pil(enlarge(torch.cat([real, gap, exact, gap, reverse], dim=2), PICTURE_WIDTH))


def _by_class(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    columns = [images[labels == label][:GRID_ROWS] for label in range(classes)]
    rows = min(len(column) for column in columns)
    return make_grid(torch.stack([column[:rows] for column in columns], dim=1).flatten(0, 1), columns=classes)


def _trace(images: ReportImages) -> str:
    """Two rows with a column for each state: forward from left to right, reverse from right to left."""
    forward, reverse = images.forward_trace, images.reverse_trace[::-1]
    blocks = range(1, len(forward) - 1)
    names = ["image", "noisy image", *(f"after block {i}" for i in blocks)]
    first = [_tile(image, name) for image, name in zip(forward, names, strict=True)]
    names = ["denoised", *(f"block {i} inverted" for i in blocks)]
    second = [_tile(image, name) for image, name in zip(reverse, names, strict=True)]
    turn = '<figure class="turn">&#8617;<figcaption>same noise</figcaption></figure>'
    rows = ["<h3>Forward: image to noise &rarr;</h3>", *first, "<h3>&larr; Reverse: noise to image</h3>", *second, turn]
    return f'<div class="trace" style="--columns: {len(forward)}">{"".join(rows)}</div>'


def _tile(image: Tensor, name: str) -> str:
    return f"<figure>{picture(_visible(image), name)}<figcaption>{name}</figcaption></figure>"


def _visible(image: Tensor) -> Tensor:
    """Scale an image of any range to grey levels, with zero in the middle."""
    scale = image.abs().flatten().quantile(0.98).clamp(min=1e-6)
    return ((image / scale).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def _curves(history: Sequence[Numbers]) -> str:
    def draw(axes: Any, panel: tuple[str, str]) -> None:
        stage, key = panel
        lines = [line for line in history if line["stage"] == stage and line.get(key) is not None]
        axes.plot([line["step"] for line in lines], [line[key] for line in lines], color=QUIET, linewidth=1.3)
        axes.set_yscale("log" if stage == "reverse" else "linear")

    return charts(CURVES, "step", draw)


def draw_guidance(axes: Any, sweep: Mapping[str, Sequence[Numbers]], key: str) -> None:
    """One metric of both methods over the guidance strength."""
    constant = [row for row in sweep["exact"] if not row["annealed"]]
    annealed = [row for row in sweep["exact"] if row["annealed"] or not row["guidance"]]
    lines = (
        ("exact inverse", constant, QUIET, "-"),
        ("exact inverse, annealed", annealed, QUIET, "--"),
        ("one-pass", sweep["reverse"], ACCENT, "-"),
    )
    for label, rows, color, dash in lines:
        strengths, values = [row["guidance"] for row in rows], [row[key] for row in rows]
        axes.plot(strengths, values, dash, marker="o", markersize=4, color=color, label=label)
    axes.legend(frameon=False, fontsize=8, handlelength=3)
