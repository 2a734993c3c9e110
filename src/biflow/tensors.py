"""Files of named tensors: read without running anything in them, and compared with what is expected."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from biflow.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]


def read_state_dict(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a file of torch.save that holds tensors and nothing else; `what` names such files in errors."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"Expected {what}; cannot read {path} ({error.strerror}). Give the path of one.") from None
    except Exception as error:  # a damaged file shows itself as any of a dozen types
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):  # as torch.save writes it
            raise InputError(
                f"Expected tensors and nothing else in {path}; its pickle needs more, which is refused. "
                "Save model.state_dict() alone with torch.save."
            ) from None
        raise InputError(
            f"Expected {what}, a file of torch.save; cannot read {path} ({type(error).__name__}). Copy it again."
        ) from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(each, Tensor) for each in state.values()):
        raise InputError(f"Expected names and tensors in {path}; got something else. Save model.state_dict() alone.")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def read_safetensors(path: Path, whole: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `whole` names what it is a part of, in errors."""
    try:
        return load_file(path)
    except OSError:
        raise InputError(f"Expected {path}; it is missing or cannot be read. Copy {whole} whole.") from None
    except SafetensorError as error:
        raise InputError(f"Expected whole weights in {path}; the file is damaged ({error}). Copy it again.") from None


def hash_tensors(tensors: Mapping[str, Tensor], first: str = "") -> str:
    """SHA-256 of these tensors' names, shapes and values in float32, behind a text; their order does not matter."""
    digest = hashlib.sha256(first.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def describe_faults(expected: Shapes, found: Shapes) -> str:
    """The first of the tensors that are missing, not expected or wrongly shaped; empty if there are none."""
    faults = [f"{name} is missing" for name in expected.keys() - found.keys()]
    faults += [f"{name} is not expected" for name in found.keys() - expected.keys()]
    faults += [
        f"{name} has shape {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return ", ".join(sorted(faults)[:3]) + more


def check_device(device: str | torch.device) -> torch.device:
    """The device, or an error if torch cannot use it here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"Expected a device that torch can use here; cannot use {str(device)!r}. Pass 'cpu', or run biflow doctor."
        ) from None
