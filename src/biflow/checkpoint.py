"""Save and load model folders.

config.json has the format version, the `ModelConfig` and the class names; model.safetensors the weights of the flow
(`flow.*`) and, if there is one, the reverse model (`reverse.*`).
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from biflow.config import ModelConfig
from biflow.config.base import parse_config
from biflow.config.records import TrainingRecord, read_record
from biflow.errors import InputError
from biflow.files import check_writable, replace_folder
from biflow.models.model import Model, new_model
from biflow.tensors import describe_faults, read_safetensors, shapes

FORMAT_VERSION = 4  # 1 lacked the prior variance, 2 the digest of the reverse model's flow, 3 had other settings
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TRAINING_FILE = "training.json"  # optional record of the training


def save_model(model: Model, folder: Path, training: Mapping[str, Any] | None = None) -> None:
    """Write a model folder, atomically, with a record of the training; keeps other files of a folder it replaces."""
    check_model_output(folder)
    description = {
        "format_version": FORMAT_VERSION,
        "class_names": list(model.class_names),
        "model": model.config.model_dump(mode="json"),
    }
    with replace_folder(folder) as temporary:
        (temporary / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in model.networks.state_dict().items()}
        save_file(tensors, temporary / WEIGHTS_FILE)
        (temporary / WEIGHTS_FILE).chmod(0o644)  # safetensors makes it readable by the owner only
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


def load_model(folder: Path) -> Model:
    """Load a model folder, on the CPU, in eval mode."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"Expected a model folder; {folder} {what}. Train one with biflow quickstart.")
    if not (folder / CONFIG_FILE).exists() and (folder / "model" / CONFIG_FILE).exists():
        raise InputError(f"Expected a model folder; {folder} is a run folder. Use {folder / 'model'}.")
    description = _read_description(folder / CONFIG_FILE)
    config = parse_config(ModelConfig, json.dumps(description["model"]), origin=str(folder / CONFIG_FILE))
    model = new_model(config, tuple(str(name) for name in description["class_names"]))
    tensors, own = read_safetensors(folder / WEIGHTS_FILE, "the model folder"), model.networks.state_dict()
    if faults := describe_faults(shapes(own), shapes(tensors)):
        raise InputError(
            f"Expected weights in {folder / WEIGHTS_FILE} that match its config.json; {faults}. Copy the folder again."
        )
    model.networks.load_state_dict(tensors)
    if model.reverse and not model.reverse.matches_flow(model.flow):
        raise InputError(
            f"Expected the flow that the reverse model was fitted to in {folder / WEIGHTS_FILE}; its flow has other "
            "weights. Fit a reverse model to it: biflow train RECIPE --set stage=reverse --set flow_from=FOLDER."
        )
    return model.frozen()


def load_training(folder: Path) -> dict[str, Any] | None:
    """Load the record of a model's training, if its folder has one."""
    path = folder / TRAINING_FILE
    if not os.path.lexists(path):
        return None
    what = "the record of the model's training"
    record = read_record(path, TrainingRecord, what=what, repair="Remove it to load the model.")
    return record.model_dump(exclude_unset=True)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"Expected {path}; it is missing or unreadable. Check that this is a model folder.") from None
    except ValueError:  # not UTF-8, or not JSON
        raise InputError(f"Expected JSON in {path}; the file is damaged. Save or copy the model again.") from None
    version = description.get("format_version") if isinstance(description, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        repair = "Update biflow to read it" if version > FORMAT_VERSION else "Train the model again with this biflow"
        raise InputError(f"Expected model format {FORMAT_VERSION}; {path} has {version}. {repair}.")
    if (
        not isinstance(version, int)
        or not isinstance(description.get("class_names"), list)
        or "model" not in description
    ):
        raise InputError(
            f"Expected format_version, class_names, model in {path}; this is not a biflow model folder. "
            "Give the folder that training wrote."
        )
    return dict(description)
