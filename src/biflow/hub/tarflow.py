"""Load published ml-tarflow checkpoints; the architecture is inferred from the tensors (TARFlow, arXiv 2412.06329)."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from biflow.config import ModelConfig
from biflow.config.base import check_config
from biflow.errors import InputError
from biflow.models.model import Model, new_model
from biflow.tensors import describe_faults, read_state_dict, shapes

HEAD_WIDTH = 64  # of every published model; cannot be inferred from the tensors
INDEX = r"([0-9]{1,6})\."

# names of a block's parameters here -> in the file
BLOCK = {
    "project_in.weight": "proj_in.weight",
    "project_in.bias": "proj_in.bias",
    "positions.weight": "pos_embed",
    "classes.weight": "class_embed",
    "project_out.weight": "proj_out.weight",
    "project_out.bias": "proj_out.bias",
}
LAYER = {"attention_norm": "attention.norm", "attention.qkv": "attention.qkv", "attention.out": "attention.proj"}
LAYER |= {"mlp_norm": "mlp.norm", "mlp.0": "mlp.main.0", "mlp.2": "mlp.main.2"}


def load_tarflow(
    path: Path,
    *,
    noise_std: float,
    image_size: int | None = None,
    class_names: Sequence[str] | None = None,
    codec: str | None = None,
) -> Model:
    """Load a state dict of ml-tarflow as a model with a flow and no reverse model.

    noise_std: of the Gaussian noise that the flow was trained with; 0 for a flow trained on dequantised images
    (ml-tarflow spaces grey levels 2/256 apart, biflow 2/255, which changes bits per dimension by 0.006).  image_size:
    needed if the tensors fit both large grey images and small four-channel latents.  codec: the autoencoder of such
    latents, "vae:NAME"; without it they cannot be decoded.  The null label gets the mean of the class table, as
    ml-tarflow uses without a label.
    """
    tensors = read_state_dict(path, "an ml-tarflow file")
    config = infer_config(tensors, noise_std=noise_std, image_size=image_size, codec=codec)
    with torch.device("meta"):
        ours = new_model(config, ()).flow.state_dict()
    found = {name: each for name, each in tensors.items() if not re.fullmatch(r"blocks\.\d+\.attn_mask", name)}
    if faults := describe_faults(expected_shapes(ours, config), shapes(found)):
        raise InputError(f"Expected an ml-tarflow state dict in {path}; {faults}. Give a complete published file.")
    names = tuple(class_names) if class_names is not None else tuple(str(i) for i in range(config.num_classes))
    if len(names) != config.num_classes:
        raise InputError(f"Expected {config.num_classes} class names, as in {path}; got {len(names)}.")
    model = new_model(config, names)
    model.flow.load_state_dict({name: _convert(name, tensors, config.flow.width) for name in ours})
    model.flow.eval().requires_grad_(False)
    return model


def infer_config(
    tensors: Mapping[str, Tensor], *, noise_std: float, image_size: int | None, codec: str | None = None
) -> ModelConfig:
    """The model config, inferred from the shapes of the tensors."""
    blocks = _count(tensors, "blocks.")
    layers = tuple(_count(tensors, f"blocks.{i}.attn_blocks.") for i in range(blocks))
    length, patch_dim = _shape(tensors, "var", 2)
    width = _shape(tensors, "blocks.0.proj_in.weight", 2)[0]
    hidden = _shape(tensors, "blocks.0.attn_blocks.0.mlp.main.0.weight", 2)[0]
    outputs = _shape(tensors, "blocks.0.proj_out.weight", 2)[0]
    conditional = "blocks.0.class_embed" in tensors
    if width % HEAD_WIDTH:
        raise InputError(f"Expected a width that is a multiple of {HEAD_WIDTH}, ml-tarflow's head width; got {width}.")
    channels, patch_size = _patch_shape(length, patch_dim, image_size)
    flow = {
        "width": width,
        "head_width": HEAD_WIDTH,
        "mlp_ratio": hidden / width,
        "blocks": blocks,
        "layers": layers[0] if len(set(layers)) == 1 else layers,
        "volume_preserving": outputs == patch_dim,
    }
    values = {
        "codec": codec or ("vae:unknown" if channels == 4 else "pixels"),
        "image_size": math.isqrt(length) * patch_size,
        "channels": channels,
        "patch_size": patch_size,
        "num_classes": _shape(tensors, "blocks.0.class_embed", 3)[0] if conditional else 0,
        "noise_std": noise_std,
        "dequantise": noise_std == 0,
        "flow": flow,
    }
    return check_config(ModelConfig, values, origin="the checkpoint")


def expected_shapes(ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a file, without the attention masks, for the flow's own tensors."""
    expected = {_name_in_file(name): tuple(tensor.shape) for name, tensor in ours.items()}
    for i in range(config.flow.blocks):
        name = f"blocks.{i}.class_embed"
        del expected[name]
        if config.num_classes:
            expected[name] = (config.num_classes, 1, config.flow.width)
    return expected


def _convert(name: str, tensors: Mapping[str, Tensor], width: int) -> Tensor:
    """The file's tensor of this name here; positions in reading order, class tables with the null row."""
    tensor = tensors.get(_name_in_file(name))
    if name.endswith("classes.weight"):
        classes = torch.zeros(1, width) if tensor is None else tensor.flatten(1)  # (num_classes, C)
        null = classes.double().mean(dim=0, keepdim=True).to(classes.dtype)
        return null if tensor is None else torch.cat([classes, null])
    assert tensor is not None
    if name.endswith("positions.weight") and int(name.split(".")[1]) % 2:
        return tensor.flip(0)  # stored in image order; every second block reads the patches in reverse
    return tensor


def _name_in_file(name: str) -> str:
    if name == "prior_variance":
        return "var"
    blocks, i, part = name.split(".", 2)
    if part in BLOCK:
        return f"{blocks}.{i}.{BLOCK[part]}"
    _, _, j, inner = part.split(".", 3)  # transformer.layers.j.
    module, _, parameter = inner.rpartition(".")
    return f"{blocks}.{i}.attn_blocks.{j}.{LAYER[module]}.{parameter}"


def _patch_shape(length: int, patch_dim: int, image_size: int | None) -> tuple[int, int]:
    """Number of channels and patch size."""
    side = math.isqrt(length)
    if side**2 != length:
        raise InputError(f"Expected patches of a square image; got {length}, which is not a square number.")
    possible = [(c, math.isqrt(patch_dim // c)) for c in (1, 3, 4) if c * math.isqrt(patch_dim // c) ** 2 == patch_dim]
    if not possible:
        raise InputError(f"Expected patches of 1, 3 or 4 channels; got patches of {patch_dim} values.")
    fitting = [(c, p) for c, p in possible if image_size in {None, side * p}]
    if len(fitting) != 1:
        choices = " or ".join(f"{side * p} ({c} channel{'s'[: c > 1]}, patches of {p}x{p})" for c, p in possible)
        raise InputError(f"Expected image size {choices} for these tensors; got {image_size or 'none'}.")
    return fitting[0]


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of different indices after this prefix in the names; they must be 0, 1, 2, ..."""
    numbers = {int(match[1]): match[0] for name in tensors if (match := re.match(re.escape(prefix) + INDEX, name))}
    for i in range(len(numbers) or 1):
        if i not in numbers:
            more = f", though there is {numbers[max(numbers)]}*" if numbers else ""
            raise InputError(
                f"Expected an ml-tarflow state dict; {prefix}{i}.* is missing{more}. Give a complete file."
            )
    return len(numbers)


def _shape(tensors: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    if name not in tensors:
        raise InputError(f"Expected an ml-tarflow state dict; {name} is missing. Give a complete published file.")
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim or 0 in shape:
        raise InputError(f"Expected {name} with {ndim} dimensions; got shape {shape}. Give a complete published file.")
    return shape
