"""An evaluation as tables for the terminal, and as one page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from torch import Tensor

from biflow.data.images import enlarge, make_grid
from biflow.evaluation.compare import METRICS, NETWORKS
from biflow.evaluation.html import ACCENT, html_table, picture, render_page, style, svg

Numbers = Mapping[str, Any]
SPLITS = {"train": "training", "test": "test"}
COLUMNS = 10


def quality_rows(result: Numbers) -> list[list[str]]:
    """How good the samples are, by every network's features, and what the likelihood knows; a head first."""
    rows = []
    for network, found in result["metrics"].items():
        unsure = "" if found["reliable"] else " (unreliable: fewer images than features)"
        for metric in METRICS:
            title = metric.titles.get(network, "")
            rows.append([f"{title}{unsure if metric is METRICS[0] else ''}", title and metric.shown(found)])
    if test := result.get("test"):
        rows += [
            ["bits per dimension, test images", _number(test["bits_per_dim"])],
            ["the same with the training noise", _number(test["bits_per_dim_of_noisy_data"])],
            ["test images classified by one gradient", _share(test["accuracy_by_gradient"])],
        ]
    return [["metric", "value"], *(row for row in rows if row[1])]


def cost_rows(result: Numbers) -> list[list[str]]:
    """What an image takes; a head first."""
    cost = result.get("cost")
    if not cost:
        return [["cost", "value"]]
    rows = []
    for size, times in cost["milliseconds_per_image_by_batch_size"].items():
        rows += [
            [f"networks alone, batch {size}", f"{times['networks']:.3g} ms"],
            [f"with the codec, batch {size}", f"{times['with_codec']:.3g} ms"],
            [f"whole call, batch {size}", f"{times['whole_call']:.3g} ms"],
        ]
    gflops = cost["gflops_per_image"]
    rows += [
        ["images a second", f"{cost['images_per_second']:,.4g}"],
        ["network calls", f"{cost['network_calls']:,}"],
        ["of them one after another", f"{cost['calls_one_after_another']:,}"],
        ["operations an image", f"{gflops:.4g} GFLOPs" if gflops is not None else "depends on the image"],
        ["parameters", f"{cost['parameters']:,}"],
    ]
    return [["cost", "value"], *rows]


def sweep_rows(result: Numbers) -> list[list[str]]:
    """Every strength of guidance that was tried; a head first."""
    sweep = result.get("sweep")
    tried = sweep["tried"] if sweep else []
    chosen = min(tried, key=lambda each: each["frechet_distance"]) if tried else None
    with_accuracy = any(each["class_accuracy"] is not None for each in tried)
    unsure = " (unreliable)" * any(not each["reliable"] for each in tried)
    head = ["guidance", f"Frechet distance{unsure}", "precision", "recall", *["read as their class"] * with_accuracy]
    rows = [
        [
            f"{each['guidance']:g}{' (chosen)' if each is chosen else ''}",
            *(_number(each[key]) for key in ("frechet_distance", "precision", "recall")),
            *[_share(each["class_accuracy"])] * with_accuracy,
        ]
        for each in tried
    ]
    return [head, *rows]


def render_evaluation(result: Numbers, pixels: Tensor) -> str:
    """The page; pixels uint8 (N, P, H, W) are the first of the images that were measured."""
    parts = [
        "<h1>How good the samples are</h1>",
        f'<p class="lead">{escape(_lead(result))}</p>',
        "<h2>Samples</h2>",
        "<p>The first by number; none is picked.</p>",
        f"<figure>{picture(enlarge(make_grid(pixels, columns=COLUMNS)), 'samples')}</figure>",
        "<h2>Quality</h2>",
        f'<div class="scroll quality">{html_table(quality_rows(result))}</div>',
    ]
    if len(cost_rows(result)) > 1:
        parts += ["<h2>Cost</h2>", f'<div class="scroll">{html_table(cost_rows(result))}</div>']
    if len(rows := sweep_rows(result)) > 1:
        sweep = result["sweep"]
        parts += [
            "<h2>Guidance</h2>",
            f"<p>Ringed is what was chosen, by the lowest Frechet distance of {sweep['num']:,} images of seed "
            f"{sweep['seed']} to the {SPLITS[sweep['split']]} images; the numbers above are of other images, of seed "
            f"{result['samples']['seed']}.</p>",
            f'<div class="scroll">{_sweep_chart(sweep["tried"])}</div>',
            f'<div class="scroll">{html_table(rows)}</div>',
        ]
    facts = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in _facts(result).items())
    parts += ["<h2>How it was measured</h2>", f"<dl>{facts}</dl>"]
    return render_page("biflow evaluate", "\n".join(parts))


def _lead(result: Numbers) -> str:
    network, found = next(iter(result["metrics"].items()))
    samples, data = result["samples"], result["data"]
    unsure = "" if found["reliable"] else " There are fewer images than features: no number to compare."
    return (
        f"{METRICS[0].titles[network]} {_number(found['frechet_distance'])} of {samples['num']:,} samples to the "
        f"{data['images']:,} {SPLITS[data['split']]} images of {data['name']}.{unsure}"
    )


def _facts(result: Numbers) -> dict[str, str]:
    samples, reading, machine = result["samples"], result["data"]["reading"], result["machine"]
    facts = {}
    if model := result.get("model"):
        facts["model"] = f"{model['folder']}, weights {model['weights'][:12]}"
        facts["drawn"] = (
            f"{samples['num']:,} images, {samples['labels']} labels, method {samples['method']}, guidance "
            f"{samples['guidance']}, seed {samples['seed']}; {samples['redrawn']} drawn again"
        )
        facts["grey levels"] = samples["quantiser"]
    else:
        facts["samples"] = f"{samples['num']:,} of {samples['file']}"
    facts["real images"] = f"{result['data']['name']}, {result['data']['split']} split, crop {reading['crop']}"
    for network, reference in result["references"].items():
        weights, how = str(reference["weights"])[:12], reference.get("preprocessing", "as in the file")
        facts[NETWORKS[network]] = f"weights {weights}; {how}; statistics of {reference['data']}"
    if test := result.get("test"):
        share = reading["test_share"]
        where = f"held out by test_share={share:g}" if share else "the data's own"
        facts["test images"] = f"{test['images']:,}, {where}"
    facts["machine"] = f"{machine['device']}, {machine['system']}, torch {machine['torch']}"
    return facts


def _sweep_chart(tried: Sequence[Numbers]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.9), layout="constrained")
    strengths = [each["guidance"] for each in tried]
    panels = {"frechet_distance": "Frechet distance (lower is better)", "precision": "precision", "recall": "recall"}
    for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.plot(strengths, [each[key] for each in tried], marker="o", markersize=4, color=ACCENT)
        best = min(tried, key=lambda each: each["frechet_distance"])
        axes.plot(best["guidance"], best[key], marker="o", markersize=9, fillstyle="none", color=ACCENT)
        style(axes, title, "guidance w")
    return svg(figure)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
