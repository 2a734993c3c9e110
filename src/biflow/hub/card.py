"""A model card: what a model is, how it was trained and what was measured of it, from the run's own numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from biflow._version import __version__
from biflow.console import counted
from biflow.errors import InputError
from biflow.models.model import Model

Numbers = Mapping[str, Any]
PAPERS = {
    "BiFlow": "https://arxiv.org/abs/2512.10953",
    "TARFlow": "https://arxiv.org/abs/2412.06329",
    "FlowBack": "https://arxiv.org/abs/2511.22345",
}
CLASSES_SHOWN = 20


def render_card(
    model: Model,
    name: str,
    training: Numbers | None = None,
    evaluation: Numbers | None = None,
    *,
    licence: str | None = None,
    picture: str | None = None,
) -> str:
    """The card as Markdown with a head for the hub; what was not recorded is left out, never guessed.

    training: what `training_facts` recorded; evaluation: an evaluation.json; licence: of the weights, as the hub names
    it, "apache-2.0"; picture: the file of a grid of samples beside the card.
    """
    config = model.config
    head: dict[str, Any] = {"library_name": "biflow", "tags": ["biflow", "normalizing-flow", "image-generation"]}
    head["pipeline_tag"] = "unconditional-image-generation"
    if licence:
        head["license"] = licence
    if evaluation:
        head["model-index"] = [_index(name, evaluation)]
    size = f"{config.image_size}x{config.image_size}"
    what = f"latents of {config.codec.removeprefix('vae:')}, {size}" if config.codec != "pixels" else f"{size} images"
    labels = list(range(min(4, max(1, config.num_classes))))
    way = "" if model.reverse else ", method='sequential'"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {name.rpartition('/')[2]}\n",
        f"A transformer normalizing flow of {what} with {config.channels} channel{'s' * (config.channels > 1)}"
        + (", and a reverse model that samples in one pass.\n" if model.reverse else ".\n"),
        f"![Samples, the classes in turn]({picture})\n" if picture else "",
        f"```python\nfrom biflow import Pipeline\n\npipe = Pipeline.from_pretrained({name!r})\n"
        f"images = pipe.sample({labels}{way}, seed=0)\n```\n",
        _table([["part", "size"], *_sizes(model)]),
    ]
    if model.class_names:
        names = ", ".join(model.class_names[:CLASSES_SHOWN])
        more = f" and {len(model.class_names) - CLASSES_SHOWN} more" * (len(model.class_names) > CLASSES_SHOWN)
        parts.append(f"{len(model.class_names)} classes: {names}{more}.\n")
    if training:
        parts += ["## Training\n", _table(_training_rows(training))]
    if evaluation:
        parts += _evaluation(evaluation)
    papers = ", ".join(f"[{paper}]({address})" for paper, address in PAPERS.items())
    parts.append(f"Written by biflow {__version__}. Papers: {papers}.\n")
    return "\n".join(filter(None, parts))


def read_evaluation(path: Path) -> dict[str, Any]:
    """What `biflow evaluate` wrote."""
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        _evaluation(found)
        _index("", found)
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"Expected an evaluation.json of biflow evaluate; cannot read {path}. Give the one in its --out."
        ) from None
    return found


def _sizes(model: Model) -> list[list[str]]:
    flow = model.config.flow
    count = sum(parameter.numel() for parameter in model.flow.parameters())
    patch = model.config.patch_size
    rows = [["flow", f"{count:,} parameters, {flow.blocks} blocks, width {flow.width}, patches of {patch}x{patch}"]]
    if model.reverse:
        rows.append(["reverse model", f"{sum(p.numel() for p in model.reverse.parameters()):,} parameters"])
    return [*rows, ["noise it was trained with", f"standard deviation {model.config.noise_std:g}"]]


def _training_rows(training: Numbers) -> list[list[str]]:
    rows = [[key, str(training[key])] for key in ("data", "seed") if key in training]
    for stage, facts in training.get("stages", {}).items():
        last = ", ".join(f"{key} {value:.4g}" for key, value in facts["last"].items())
        size = f" of {facts['batch_size']:,}" if facts["batch_size"] else ""
        steps = f"{facts['steps']:,} steps{size}, " if facts["steps"] else ""
        rows.append([stage, f"{steps}{facts['seconds']:,.0f} s{'; ' if last else ''}{last}"])
    if "device" in training:
        rows.append(["machine", f"{training['device']}, {counted(training['processes'], 'process')}"])
    if "biflow" in training:
        rows.append(["biflow", f"{training['biflow']} {training.get('git') or ''}"])
    return [["", "value"], *rows]


def _evaluation(evaluation: Numbers) -> list[str]:
    data, samples = evaluation["data"], evaluation["samples"]
    how = f"{samples['num']:,} samples, method {samples.get('method')}, guidance {samples.get('guidance')}"
    parts = [
        "## Evaluation\n",
        f"{how}; compared with the {data['images']:,} images of {data['name']}, {data['split']} split.\n",
        _table(evaluation["tables"]["quality"]),
    ]
    if len(rows := evaluation["tables"]["cost"]) > 1:
        parts += [f"On {evaluation['machine']['device']}:\n", _table(rows)]
    return parts


def _index(name: str, evaluation: Numbers) -> dict[str, Any]:
    """The hub's form of results."""
    metrics = []
    for network, found in evaluation["metrics"].items():
        kind = {"frechet_distance": "fid"} if network == "inception" else {}
        metrics += [
            {"type": kind.get(key, key), "name": titles[network], "value": round(found[key], 4)}
            for key, titles in evaluation["metric_titles"].items()
            if network in titles and found.get(key) is not None
        ]
    data = {"type": "image", "name": evaluation["data"]["name"]}
    task = {"type": "unconditional-image-generation"}
    return {"name": name, "results": [{"task": task, "dataset": data, "metrics": metrics}]}


def _table(rows: list[list[str]]) -> str:
    head, *body = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    rule = " | ".join("---" for _ in rows[0])
    return "\n".join(f"| {line} |" for line in (head, rule, *body)) + "\n"
