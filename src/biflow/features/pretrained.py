"""Networks of others: pretrained vision networks through transformers, modules by import path, and their input."""

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
    """A network by its hub name or local folder, of one of these families (`model_type` in its config.json).

    Only weights and sizes are read, the weights in float32; code that a repository brings is never run.
    """
    require("transformers")
    from transformers import AutoConfig, AutoModel

    local = Path(name).is_dir()
    try:
        family = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False).model_type
    except Exception as error:  # of the hub, the disk or the file, of a dozen types
        raise _not_found(name, error) from None
    if family not in families:
        raise InputError(f"Expected a network of type {' or '.join(sorted(families))}; {name!r} is of type {family!r}.")
    try:
        network, found = AutoModel.from_pretrained(
            name, local_files_only=local, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # the same
        raise _not_found(name, error) from None
    if missing := sorted([*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])]):
        raise InputError(
            f"Expected whole weights in {name!r}; {len(missing)} are missing or of another shape, the first of them "
            f"{missing[0]}. Download or copy it again."
        )
    return network


def _not_found(name: str, error: Exception) -> InputError:
    if Path(name).is_dir():
        return InputError(
            f"Expected config.json and whole weights in {name}, as save_pretrained of transformers writes them; "
            f"cannot read them ({type(error).__name__}). Copy the folder whole."
        )
    return InputError(
        f"Expected {name!r} to be a local folder or a name on the Hugging Face hub that can be reached "
        "(HF_HUB_OFFLINE=1 forbids it, or lets only downloaded ones be used). Download it, or give its folder."
    )


def load_module(name: str) -> nn.Module:
    """The module that "package.module:name" gives: itself a module, or a class or function that makes one."""
    place, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(place), attribute) if colon else None
    except Exception as error:  # of somebody's code
        raise InputError(
            f"Expected {name!r} to be importable as 'package.module:name'; {_one_line(error)}. Check the name, and put "
            "the folder of a module of your own on PYTHONPATH."
        ) from None
    try:
        module = found if isinstance(found, nn.Module) or not callable(found) else found()
    except Exception as error:  # of somebody's code
        raise InputError(f"Expected {name!r} to make a torch module without arguments; {_one_line(error)}.") from None
    if not isinstance(module, nn.Module):
        raise InputError(f"Expected 'package.module:name' of a torch module, or of what makes one; got {name!r}.")
    return module


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ")


class ImageNetInput(nn.Module):
    """Images in [-1, 1] as networks of ImageNet want them: three channels, less their mean, over their deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 1 or 3, H, W) in [-1, 1] -> (B, 3, H, W); grey ones are repeated."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return ((images + 1) / 2 - self.mean) / self.std
