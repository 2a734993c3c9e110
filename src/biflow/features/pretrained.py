"""Third-party networks: pretrained vision models from transformers, modules by import path, and their input."""

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biflow.errors import InputError
from biflow.extras import require

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load_from_hub(name: str, families: Collection[str]) -> Any:
    """Load a network of one of these families (`model_type` in its config.json) by hub name or local folder.

    Weights are loaded in float32; remote code is never run.
    """
    require("transformers")
    from transformers import AutoConfig, AutoModel

    local = Path(name).is_dir()
    try:
        family = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False).model_type
    except Exception as error:  # hub, disk and file errors of a dozen types
        raise _not_found(name, error) from None
    if family not in families:
        raise InputError(f"Expected a network of type {' or '.join(sorted(families))}; {name!r} is of type {family!r}.")
    try:
        network, report = AutoModel.from_pretrained(
            name, local_files_only=local, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # the same
        raise _not_found(name, error) from None
    if missing := sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]):
        raise InputError(
            f"Expected complete weights in {name!r}; {len(missing)} are missing or of another shape, first "
            f"{missing[0]}. Download or copy it again."
        )
    return network


def _not_found(name: str, error: Exception) -> InputError:
    if Path(name).is_dir():
        return InputError(
            f"Expected config.json and weights in {name}, written by save_pretrained of transformers; "
            f"cannot read them ({type(error).__name__}). Copy the whole folder."
        )
    return InputError(
        f"Expected {name!r} to be a local folder or a reachable name on the Hugging Face hub "
        "(HF_HUB_OFFLINE=1 allows only downloaded ones). Download it, or give its folder."
    )


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
