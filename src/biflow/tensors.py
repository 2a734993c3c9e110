"""Files of named tensors: read safely, without unpickling code, and checked against the expected shapes."""

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
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


def read_state_dict(path: Path, what: str) -> dict[str, Tensor]:
    """Load a state dict saved by torch.save, refusing anything but tensors; `what` names the file in errors."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise a dozen types
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):  # torch.save's format
            raise InputError(
                f"Expected only tensors in {path}; its pickle contains other objects, which are refused. "
                "Save only model.state_dict()."
            ) from None
        why = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise InputError(f"Expected {what}; cannot read {path} ({why}). Copy it again, or give another.") from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(each, Tensor) for each in state.values()):
        raise InputError(f"Expected names and tensors in {path}; got something else. Save only model.state_dict().")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def read_safetensors(path: Path, folder: str) -> dict[str, Tensor]:
    """Load a safetensors file; `folder` names the folder it belongs to, in errors."""
    try:
        return load_file(path)
    except OSError:
        raise InputError(f"Expected {path}; it is missing or cannot be read. Copy {folder} again.") from None
    except SafetensorError as error:
        raise InputError(f"Expected intact weights in {path}; the file is damaged ({error}). Copy it again.") from None


def hash_tensors(tensors: Mapping[str, Tensor], prefix: str = "") -> str:
    """SHA-256 of a text and the tensors' names, shapes and float32 values, independent of their order."""
    digest = hashlib.sha256(prefix.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes of the tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def describe_faults(expected: Shapes, actual: Shapes) -> str:
    """Describe the first missing, unexpected or wrongly shaped tensors; empty if all match."""
    faults = [f"{name} is missing" for name in expected.keys() - actual.keys()]
    faults += [f"{name} is not expected" for name in actual.keys() - expected.keys()]
    both = [name for name in expected if name in actual and actual[name] != expected[name]]
    faults += [f"{name} has shape {actual[name]}, not {expected[name]}" for name in both]
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return ", ".join(sorted(faults)[:3]) + more


def is_real_tensor(given: object, shape: tuple[int, ...]) -> bool:
    """Whether this is a dense tensor of real numbers, of this shape."""
    if not isinstance(given, Tensor) or given.layout != torch.strided or given.is_meta:
        return False
    return tuple(given.shape) == shape and not given.is_complex()


def check_device(device: str | torch.device) -> torch.device:
    """Return the device; raise if torch cannot use it on this machine."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"Expected a device that torch can use here; cannot use {str(device)!r}. Pass 'cpu', or run biflow doctor."
        ) from None


def check_precision(dtype: torch.dtype) -> torch.dtype:
    """Return the precision; raise unless networks can compute in it."""
    if dtype not in PRECISIONS:
        raise InputError(f"Expected float32, bfloat16 or float16; got {dtype}.")
    return dtype
