"""Files of named tensors: read safely, without unpickling code, and checked against the expected shapes."""

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from biflow.errors import InputError
from biflow.inputs import brief, check_regular, open_regular

Shapes = Mapping[str, tuple[int, ...]]
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = ("num_batches_tracked", "flow_digest")  # the last part of the names of tensors that are no weights
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # vgg16-397923af.pth: how SHA-256 begins


def read_state_dict(path: Path, what: str) -> dict[str, Tensor]:
    """Load a state dict saved by torch.save, refusing anything but intact weights; `what` names the file in errors.

    Prefixes of wrappers are removed: `module.` of data-parallel and averaged models, `_orig_mod.` of compiled ones.
    """
    check_regular(path, f"Give {what}.")
    _check_intact(path)
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
    plain = {without_wrappers(str(name)): tensor for name, tensor in state.items()}
    if len(plain) < len(state):
        raise InputError(f"Expected the tensors of one model in {path}; some are repeated. Save only one state dict.")
    plain.pop("n_averaged", None)  # the counter of an averaged model
    check_tensors(plain, path)
    return plain


def without_wrappers(name: str) -> str:
    """A tensor's name in the model itself.

    >>> without_wrappers("module._orig_mod.blocks.0._orig_mod.var")
    'blocks.0.var'
    """
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _check_intact(path: Path) -> None:
    """Raise if the checksums of a zip archive, or the hash in the name of an older file, show that it is damaged."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
                intact = unpacked <= path.stat().st_size and not archive.testzip()
        else:
            named = HASH_IN_NAME.search(path.name)
            intact = not named or not path.exists() or file_checksum(path).startswith(named[1])
    except Exception:  # damaged archives raise a dozen types
        intact = False
    if not intact:
        raise InputError(f"Expected an intact file; the checksums of {path} differ. Download or copy it again.")


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless these are weights: dense, real, finite, and no more of them than the file has bytes for."""
    for name, tensor in tensors.items():
        if kind := _unusable(name, tensor):
            raise InputError(
                f"Expected dense tensors of floating-point weights in {path}; {brief(name)} is {kind}. "
                "Save the weights of a model in float32."
            )
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > path.stat().st_size:
        raise InputError(
            f"Expected all values of the tensors in {path}; some repeat or share theirs. Save contiguous tensors."
        )
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise InputError(
                f"Expected finite weights in {path}; {brief(name)} has NaN or Inf. Use an earlier checkpoint."
            )


def _unusable(name: str, tensor: Tensor) -> str:
    """What a tensor is instead of dense weights; empty if it is usable."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.device.type == "meta":
        return "a shape without values"
    if tensor.dtype in FLOATS or (name.rpartition(".")[2] in INTEGERS and not tensor.is_complex()):
        return ""
    return f"of type {str(tensor.dtype).removeprefix('torch.')}"


def read_safetensors(path: Path, folder: str) -> dict[str, Tensor]:
    """Load the weights of a safetensors file; `folder` names the folder it belongs to, in errors."""
    tensors: dict[str, Tensor] = _open_safetensors(load_file, path, folder)
    check_tensors(tensors, path)
    return tensors


def read_shapes(path: Path, folder: str) -> Shapes:
    """The shapes of the tensors in a safetensors file, from its header alone."""

    def read(file: Path) -> Shapes:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118

    shapes: Shapes = _open_safetensors(read, path, folder)
    return shapes


def _open_safetensors(read: Any, path: Path, folder: str) -> Any:
    check_regular(path, f"Copy {folder} again.")
    try:
        return read(path)
    except OSError:
        raise InputError(f"Expected {path}; it is missing or cannot be read. Copy {folder} again.") from None
    except (SafetensorError, ValueError, RuntimeError, KeyError, AttributeError) as error:  # dtypes torch lacks
        why = brief(str(error).partition("\n")[0])
        raise InputError(f"Expected intact weights in {path}; the file is damaged ({why}). Copy it again.") from None


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that others can read too; faults of the disk are `OSError`."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
        raise
    path.chmod(0o644)  # safetensors makes it readable by the owner only


def file_checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor], prefix: str = "") -> str:
    """SHA-256 of a text and the tensors' names, shapes and values, in float32 or as integers, whatever their order."""
    digest = hashlib.sha256(prefix.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu()
        digest.update((values.float() if values.is_floating_point() else values).contiguous().numpy().tobytes())
    return digest.hexdigest()


def shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes of the tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def describe_faults(expected: Shapes, actual: Shapes) -> str:
    """Describe the first missing, unexpected or wrongly shaped tensors; empty if all match."""
    faults = [f"{name} is missing" for name in expected.keys() - actual.keys()]
    faults += [f"{brief(name)} is not expected" for name in actual.keys() - expected.keys()]
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
