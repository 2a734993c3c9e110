"""Third-party networks: pretrained vision models from transformers, modules by import path, and their input."""

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from biflow.console import say_once
from biflow.errors import InputError
from biflow.extras import require
from biflow.tensors import describe_faults, shapes

M = TypeVar("M", bound=nn.Module)
DEFAULT_INPUT = 224  # the usual input size of ImageNet networks
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load_from_hub(name: str, families: Collection[str]) -> Any:
    """Load a network of one of these families (`model_type` in its config.json) by hub name or local folder.

    Weights are loaded in float32; remote code is never run.
    """
    require("transformers")
    from transformers import AutoConfig, AutoModel

    local = Path(name).is_dir()
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    try:
        family = AutoConfig.from_pretrained(name, **options).model_type
        if family in families:
            options |= {"dtype": torch.float32, "output_loading_info": True}
            network, report = AutoModel.from_pretrained(name, **options)
    except Exception as error:  # hub, disk and file errors of a dozen types
        if local:
            what = f"config.json and weights in {name}, written by save_pretrained"
            raise InputError(f"Expected {what}; got {type(error).__name__}. Copy the whole folder.") from None
        raise InputError(
            f"Expected {name!r} to be a local folder or a reachable name on the Hugging Face hub "
            "(HF_HUB_OFFLINE=1 allows only downloaded ones). Download it, or give its folder."
        ) from None
    if family not in families:
        raise InputError(f"Expected a network of type {' or '.join(sorted(families))}; {name!r} is of type {family!r}.")
    if missing := sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]):
        raise InputError(
            f"Expected complete weights in {name!r}; {len(missing)} are missing or of another shape, first "
            f"{missing[0]}. Download or copy it again."
        )
    return network


def freeze(network: M, weights: Mapping[str, Tensor], *, origin: str, hint: str = "") -> M:
    """Assign float32 weights to a network on the meta device, freeze it and set eval mode; raise if any do not fit."""
    if faults := describe_faults(shapes(network.state_dict()), shapes(weights)):
        raise InputError(f"Expected {origin}; {faults}. {hint}".rstrip())
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return network.eval().requires_grad_(False)


def note_grey(name: str, channels: int) -> None:
    """Say that grey images are repeated for a network of RGB images."""
    if channels == 1:
        say_once(f"Note: grey images are repeated to three channels for {name}, which was trained on RGB images.")


class Frozen(nn.Module):
    """A network that stays in eval mode."""

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stays in eval mode."""
        return super().train(mode=False)


def load_module(name: str) -> nn.Module:
    """Import a module by "package.module:name", or call the class or function of that name to create it."""
    path, colon, attribute = name.partition(":")
    try:
        target = getattr(importlib.import_module(path), attribute) if colon else None
    except Exception as error:  # third-party code
        raise InputError(
            f"Expected {name!r} to be importable as 'package.module:name'; {_one_line(error)}. Check the name, and add "
            "the folder of your module to PYTHONPATH."
        ) from None
    try:
        module = target if isinstance(target, nn.Module) or not callable(target) else target()
    except Exception as error:  # third-party code
        raise InputError(f"Expected {name!r} to create a torch module without arguments; {_one_line(error)}.") from None
    if not isinstance(module, nn.Module):
        raise InputError(f"Expected 'package.module:name' of a torch module or its factory; got {name!r}.")
    return module


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ")


class ImageNetInput(nn.Module):
    """Normalises images in [-1, 1] for ImageNet networks: three channels, ImageNet mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 1 or 3, H, W) in [-1, 1] -> (B, 3, H, W); grey images are repeated."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return ((images + 1) / 2 - self.mean) / self.std
