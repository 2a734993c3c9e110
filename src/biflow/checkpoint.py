"""Save and load model folders.

config.json has the format version, the `ModelConfig`, the class names and checksums; model.safetensors the weights of
the flow (`flow.*`) and, if there is one, the reverse model (`reverse.*`).
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biflow.config import ModelConfig
from biflow.config.base import check_config
from biflow.config.records import TrainingRecord, read_record
from biflow.console import printable
from biflow.errors import InputError
from biflow.files import check_writable, replace_folder
from biflow.inputs import read_json
from biflow.models.model import Model, new_model
from biflow.tensors import (
    Shapes,
    describe_faults,
    hash_tensors,
    read_safetensors,
    read_shapes,
    shapes,
    without_wrappers,
    write_safetensors,
)

FORMAT_VERSION = 6  # 1 lacked the prior variance, 2 the digest of the reverse model's flow, 3 had other settings
OF_FLOWS = {4, 5}  # still read, for flows alone: reverse models had norms in their heads; 4 lacked the checksums
UNCHECKED_VERSION = 4
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TRAINING_FILE = "training.json"  # optional record of the training
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions that the weights may be rounded to in the file, for which config.json has a checksum."""
REFIT = "Fit a reverse model to it: biflow train RECIPE --set stage=reverse --set flow_from=FOLDER."


def save_model(model: Model, folder: Path, training: Mapping[str, Any] | None = None) -> None:
    """Write a model folder, atomically, with a record of the training; keeps other files of a folder it replaces."""
    check_model_output(folder)
    tensors = {without_wrappers(name): tensor for name, tensor in model.networks.state_dict().items()}
    check_complete(model, tensors)
    described = _describe(model.config, model.class_names)
    digests = {name: _digest(_rounded(tensors, dtype), described) for name, dtype in PRECISIONS.items()}
    description = {"format_version": FORMAT_VERSION, **described, "digests": digests}
    with replace_folder(folder) as temporary:
        (temporary / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        write_safetensors(tensors, temporary / WEIGHTS_FILE)
        if training:
            (temporary / TRAINING_FILE).write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
        for other in folder.iterdir() if folder.is_dir() else ():
            if other.name == TRAINING_FILE:
                continue  # of the replaced model
            if other.is_dir():
                shutil.copytree(other, temporary / other.name, symlinks=True)
            elif not (temporary / other.name).exists():
                shutil.copy2(other, temporary / other.name, follow_symlinks=False)


def check_model_output(folder: Path) -> None:
    """Raise unless the folder is new, empty, or a model folder, and is writable."""
    check_writable(folder.parent)
    if folder.is_dir() and any(folder.iterdir()):
        try:
            _read_description(folder / CONFIG_FILE)
        except InputError:
            raise InputError(
                f"Expected a new, empty or model folder; {folder} has other files. Choose another output path."
            ) from None


def check_complete(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless the model's parts belong together, with these weights: what is written can be loaded."""
    if model.class_names and len(model.class_names) != model.config.num_classes:
        raise InputError(
            f"Expected {model.config.num_classes} class names to save; got {len(model.class_names)}. "
            "Name every class, or none."
        )
    if faults := describe_faults(_shapes_of(model.config), shapes(tensors)):
        raise InputError(f"Expected weights to save that match the model's config; {faults}. Leave its networks whole.")
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise InputError(f"Expected finite weights to save; {broken[0]} has NaN or Inf. Use an earlier checkpoint.")
    if model.reverse is not None and not model.reverse.matches_flow(model.flow):
        raise InputError(
            "Expected the flow that the reverse model was fitted to; this flow has other weights, so that the folder "
            f"could not be loaded. Save the flow alone, with_networks(flow, None). {REFIT}"
        )


def load_model(folder: Path) -> Model:
    """Load a model folder, on the CPU, in eval mode."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"Expected a model folder; {folder} {what}. Train one with biflow quickstart.")
    if not (folder / CONFIG_FILE).exists() and (folder / "model" / CONFIG_FILE).exists():
        raise InputError(f"Expected a model folder; {folder} is a run folder. Use {folder / 'model'}.")
    description, weights = _read_description(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    config = check_config(ModelConfig, description["model"], origin=str(folder / CONFIG_FILE))
    names = _class_names(description, config, folder / CONFIG_FILE)
    _check_shapes(config, read_shapes(weights, "the model folder"), weights)
    tensors = read_safetensors(weights, "the model folder")
    digests = description.get("digests")
    if digests is not None:
        _check_digests(tensors, _describe(config, names), digests, folder)
    model = new_model(config, names)
    model.networks.load_state_dict(tensors)
    if model.reverse and not model.reverse.matches_flow(model.flow):
        if digests is None:
            raise InputError(
                f"Expected the flow that the reverse model was fitted to in {weights}; its flow has other weights. "
                f"{REFIT}"
            )
        model.reverse.record_flow(model.flow)  # the same pair, rounded in the file
    return model.frozen()


def load_training(folder: Path) -> dict[str, Any] | None:
    """Load the record of a model's training, if its folder has one."""
    path = folder / TRAINING_FILE
    if not os.path.lexists(path):
        return None
    what = "the record of the model's training"
    record = read_record(path, TrainingRecord, what=what, repair="Remove it to load the model.")
    return record.model_dump(exclude_unset=True)


def _describe(config: ModelConfig, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What config.json says of a model."""
    return {"class_names": [*map(printable, class_names)], "model": config.model_dump(mode="json")}


def _digest(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> str:
    """SHA-256 of the description and the values of the weights.

    The codec is left out: its name may change, when it is uploaded.
    """
    settings = {**described, "model": {**described["model"], "codec": ""}}
    return hash_tensors(tensors, json.dumps(settings, sort_keys=True))


def _rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in tensors.items()}


def _check_digests(tensors: Mapping[str, Tensor], described: Mapping[str, Any], digests: Any, folder: Path) -> None:
    """Raise unless weights and settings are those that were saved, or the weights rounded to half precision."""
    given = digests if isinstance(digests, dict) else {}
    if _digest(tensors, described) not in given.values():
        raise InputError(
            f"Expected the settings and weights that were saved in {folder}; they have changed since. Copy the folder "
            f"again, or set digests to null in {CONFIG_FILE} if you changed them on purpose."
        )


def _check_shapes(config: ModelConfig, held: Shapes, path: Path) -> None:
    """Raise unless a file's tensors are those of the config; nothing is built that the file could not fill."""
    values = sum(map(math.prod, held.values()))
    if _least_tensors(config) > len(held) or _largest_size(config) > values:
        faults = f"it holds {len(held):,} tensors of {values:,} values, fewer than those settings need"
    else:
        faults = describe_faults(_shapes_of(config), held)
    if faults:
        raise InputError(f"Expected weights in {path} that match its config.json; {faults}. Copy the folder again.")


def _shapes_of(config: ModelConfig) -> Shapes:
    """The shapes of a model's weights, which are not made."""
    with torch.device("meta"):
        return shapes(new_model(config, ()).networks.state_dict())


def _least_tensors(config: ModelConfig) -> int:
    """Fewer tensors than the networks have, without building them."""
    flow, reverse = config.flow, config.reverse
    layers = flow.layers * flow.blocks if isinstance(flow.layers, int) else sum(flow.layers)
    return layers + (flow.blocks * reverse.layers if reverse else 0)


def _largest_size(config: ModelConfig) -> float:
    """The largest of the sizes that tensors of the networks have."""
    networks = [config.flow, *([config.reverse] if config.reverse else [])]
    widths = [network.width * max(1, network.mlp_ratio) for network in networks]
    tokens = config.reverse.width * config.reverse.class_tokens if config.reverse else 1
    return max(config.num_patches * config.patch_dim, config.num_classes, tokens, *widths)


def _class_names(description: Mapping[str, Any], config: ModelConfig, path: Path) -> tuple[str, ...]:
    names = tuple(printable(str(name)) for name in description["class_names"])
    if names and len(names) != config.num_classes:
        raise InputError(
            f"Expected {config.num_classes} class names in {path}, as its num_classes says; got {len(names)}. "
            "Name every class, or none."
        )
    return names


def _read_description(path: Path) -> dict[str, Any]:
    description = read_json(path, "Check that this is a whole model folder, or copy it again.")
    version = description.get("format_version") if isinstance(description, dict) else None
    if type(version) is int and version not in {*OF_FLOWS, FORMAT_VERSION}:
        repair = "Update biflow to read it" if version > FORMAT_VERSION else "Train the model again with this biflow"
        raise InputError(f"Expected model format {FORMAT_VERSION}; {path} has {version}. {repair}.")
    if (
        type(version) is not int
        or not isinstance(description.get("class_names"), list)
        or not isinstance(description.get("model"), dict)
        or (version > UNCHECKED_VERSION and "digests" not in description)
    ):
        raise InputError(
            f"Expected format_version, class_names, model, digests in {path}; this is not a biflow model folder. "
            "Give the folder that training wrote."
        )
    if version in OF_FLOWS and description["model"].get("reverse") is not None:
        raise InputError(
            f"Expected a reverse model of format {FORMAT_VERSION}; that in {path} has {version}. "
            "Train it again with this biflow."
        )
    return dict(description)
