"""An evaluation as tables for the terminal, and as an HTML page."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from torch import Tensor

from biflow.data.images import enlarge, make_grid
from biflow.evaluation.compare import METRICS, NETWORKS
from biflow.evaluation.html import ACCENT, charts, html_facts, html_table, picture, render_page, significant

Numbers = Mapping[str, Any]
SPLITS = {"train": "training", "test": "test"}
COLUMNS = 10
JUDGE = "The reference classifier is a small network trained on real images only; it never sees samples."
FINISHED = ", trained on"  # a metric in whose features the reverse model was finished
SWEEP_PANELS = {"frechet_distance": "Fréchet distance (lower is better)", "precision": "precision", "recall": "recall"}


def quality_rows(result: Numbers) -> list[list[str]]:
    """The metrics on every network's features, and the likelihood of test images: a header, then a row each."""
    rows = []
    for network, found in result["metrics"].items():
        unsure = "" if found["reliable"] else " (unreliable: fewer images than features)"
        finished = FINISHED if result["samples"].get("finished_in") == network else ""
        for metric in METRICS:
            title = metric.titles.get(network, "")
            rows.append([f"{title}{finished}{unsure if metric is METRICS[0] else ''}", title and metric.format(found)])
    if test := result.get("test"):
        rows += [
            ["bits per dimension, test images", _number(test["bits_per_dim"])],
            ["bits per dimension, with training noise", _number(test["bits_per_dim_of_noisy_data"])],
            ["classification accuracy, one gradient", _share(test["accuracy_by_gradient"])],
        ]
    return [["metric", "value"], *(row for row in rows if row[1])]


def cost_rows(result: Numbers) -> list[list[str]]:
    """The cost of sampling: a header, then a row each."""
    cost = result.get("cost")
    if not cost:
        return [["cost", "value"]]
    rows = [
        [f"{name}, batch {size}", f"{significant(times[key], 3)} ms per image"]
        for size, times in cost["milliseconds_per_image_by_batch_size"].items()
        for key, name in (("networks", "networks only"), ("with_codec", "with codec"), ("whole_call", "whole call"))
    ]
    gflops = cost["gflops_per_image"]
    rows += [
        ["images per second", significant(cost["images_per_second"], 4)],
        ["network calls", f"{cost['network_calls']:,}"],
        ["sequential network calls", f"{cost['calls_one_after_another']:,}"],
        ["GFLOPs per image", _number(gflops) or "depends on the image"],
        ["parameters", f"{cost['parameters']:,}"],
    ]
    return [["cost", "value"], *rows]


def sweep_rows(result: Numbers) -> list[list[str]]:
    """The metrics at every guidance strength of the sweep: a header, then a row each."""
    sweep = result.get("sweep")
    tried = sweep["tried"] if sweep else []
    with_accuracy = any(each["class_accuracy"] is not None for each in tried)
    unsure = " (unreliable)" * any(not each["reliable"] for each in tried)
    head = ["guidance", f"Fréchet distance{unsure}", "precision", "recall", *["accuracy"] * with_accuracy]
    rows = [
        [
            f"{each['guidance']:g}{' (chosen)' if each is best_of(tried) else ''}",
            *(_number(each[key]) for key in SWEEP_PANELS),
            *[_share(each["class_accuracy"])] * with_accuracy,
        ]
        for each in tried
    ]
    return [head, *rows]


def render_evaluation(result: Numbers, pixels: Tensor) -> str:
    """The page; pixels uint8 (N, P, H, W) are the first of the evaluated samples."""
    parts = [
        "<h1>Evaluation</h1>",
        f'<p class="lead">{escape(_lead(result))}</p>',
        "<h2>Samples</h2>",
        "<p>The first samples by index, uncurated.</p>",
        f"<figure>{picture(enlarge(make_grid(pixels, columns=COLUMNS)), 'samples')}</figure>",
        "<h2>Quality</h2>",
        f"<p>{JUDGE}</p>" if "judge" in result["metrics"] else "",
        f'<div class="scroll">{html_table(quality_rows(result))}</div>',
    ]
    if len(rows := cost_rows(result)) > 1:
        parts += ["<h2>Cost</h2>", f'<div class="scroll">{html_table(rows)}</div>']
    if len(rows := sweep_rows(result)) > 1:
        sweep = result["sweep"]
        parts += [
            "<h2>Guidance</h2>",
            f"<p>The ring marks the chosen strength: the lowest Fréchet distance of {sweep['num']:,} samples of seed "
            f"{sweep['seed']} to the {SPLITS[sweep['split']]} images. The metrics above are of other samples, of seed "
            f"{result['samples']['seed']}.</p>",
            f'<div class="scroll">{_sweep_chart(sweep["tried"])}</div>',
            f'<div class="scroll">{html_table(rows)}</div>',
        ]
    parts += ["<h2>Details</h2>", html_facts(_facts(result))]
    return render_page("biflow evaluate", "\n".join(parts))


def _lead(result: Numbers) -> str:
    network, found = next(iter(result["metrics"].items()))
    samples, data = result["samples"], result["data"]
    unsure = "" if found["reliable"] else " Not reliable: there are fewer images than features."
    if samples.get("finished_in") == network:
        unsure += " The training lowered this very distance: judge by other features."
    return (
        f"{METRICS[0].titles[network]}: {_number(found['frechet_distance'])}, for {samples['num']:,} samples and the "
        f"{data['images']:,} {SPLITS[data['split']]} images of {data['name']}.{unsure}"
    )


def _facts(result: Numbers) -> dict[str, str]:
    samples, reading, machine = result["samples"], result["data"]["reading"], result["machine"]
    facts = {}
    if model := result.get("model"):
        facts["model"] = f"{model['folder']}, weights {model['weights'][:12]}"
        facts["samples"] = (
            f"{samples['num']:,}, {samples['labels']} labels, method {samples['method']}, guidance "
            f"{samples['guidance']}, seed {samples['seed']}; {samples['redrawn']:,} resampled"
        )
        facts["quantisation"] = samples["quantiser"]
    else:
        facts["samples"] = f"{samples['num']:,} of {samples['file']}"
    facts["real images"] = f"{result['data']['name']}, {result['data']['split']} split, crop {reading['crop']}"
    for network, reference in result["references"].items():
        weights, how = str(reference["weights"])[:12], reference.get("preprocessing", "preprocessing of the file")
        facts[NETWORKS[network]] = f"weights {weights}; {how}; statistics of {reference['data']}"
    if test := result.get("test"):
        share = reading["test_share"]
        split = f"held out with test_share={share:g}" if share else "the test split of the data"
        facts["test images"] = f"{test['images']:,}, {split}"
    facts["machine"] = f"{machine['device']}, {machine['system']}, torch {machine['torch']}"
    return facts


def best_of(tried: Sequence[Numbers]) -> Numbers:
    """The results at the chosen strength of a sweep: the lowest Fréchet distance."""
    return min(tried, key=lambda each: each["frechet_distance"])


def _sweep_chart(tried: Sequence[Numbers]) -> str:
    strengths, best = [each["guidance"] for each in tried], best_of(tried)

    def draw(axes: Any, key: str) -> None:
        axes.plot(strengths, [each[key] for each in tried], marker="o", markersize=4, color=ACCENT)
        axes.plot(best["guidance"], best[key], marker="o", markersize=9, fillstyle="none", color=ACCENT)

    return charts(SWEEP_PANELS, "guidance w", draw)


def _number(value: float | None) -> str:
    return "" if value is None else significant(value, 4)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def map_numbers(value: Any, change: Callable[[float], float | None]) -> Any:
    """The same JSON with every float changed, at any depth."""
    if isinstance(value, float):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_numbers(inner, change) for key, inner in value.items()}
    return [map_numbers(inner, change) for inner in value] if isinstance(value, list | tuple) else value
