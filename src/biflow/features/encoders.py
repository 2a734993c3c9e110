"""Frozen vision encoders for feature alignment: images -> a grid of patch features."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.config import AlignConfig
from biflow.errors import InputError
from biflow.features.classifier import Classifier
from biflow.features.efficientnet import INPUT_SIZE, STRIDES, EfficientNetLite0, load_efficientnet
from biflow.features.pretrained import (
    CLIP_MEAN,
    CLIP_STD,
    DEFAULT_INPUT,
    Frozen,
    ImageNetInput,
    load_from_hub,
    load_module,
)

FAMILIES = {
    "dinov2": {"dinov2", "dinov2_with_registers"},
    "dinov3": {"dinov3_vit"},
    "clip": {"clip", "clip_vision_model"},
    "mae": {"vit_mae"},
}


class Encoder(Frozen):
    """A frozen network with features on a patch grid; resizes images to its input size."""

    def __init__(self, network: nn.Module, input_size: int | None = None) -> None:
        super().__init__()
        self.network, self.input_size = network, input_size

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """images (B, P, H, W) in [-1, 1] -> features (B, F, h, w)."""
        if self.input_size and images.shape[-1] != self.input_size:
            size = (self.input_size, self.input_size)
            images = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
        features = self.network(images)
        return on_grid(features) if isinstance(features, Tensor) and features.ndim == 3 else features


def on_grid(tokens: Tensor) -> Tensor:
    """Tokens in raster order (B, h * h, F) -> a square grid (B, F, h, h)."""
    side = math.isqrt(tokens.shape[1])
    if side**2 != tokens.shape[1]:
        raise InputError(
            f"Expected an encoder whose patches form a square; got {tokens.shape[1]} tokens. Drop tokens that are not "
            "patches, set input_size to a multiple of the patch size, or return features (B, F, h, w)."
        )
    return tokens.transpose(1, 2).unflatten(2, (side, side))


class HubTokens(nn.Module):
    """Patch tokens of a vision transformer from transformers, without class and register tokens."""

    def __init__(self, network: Any, kind: str) -> None:
        super().__init__()
        self.normalise = ImageNetInput(CLIP_MEAN, CLIP_STD) if kind == "clip" else ImageNetInput()
        self.network = network.vision_model if hasattr(network, "vision_model") else network
        self.kind = kind
        self.leading = 1 + int(getattr(network.config, "num_register_tokens", 0) or 0)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 1 or 3, H, W) in [-1, 1] -> tokens (B, patches, F), in raster order."""
        options = {}
        if self.kind == "mae":  # it shuffles its patches by this noise before masking: sorted noise keeps their order
            patches = (images.shape[-1] // self.network.config.patch_size) ** 2
            options["noise"] = torch.arange(patches, device=images.device).expand(len(images), -1)
        output = self.network(pixel_values=self.normalise(images), **options)
        return output.last_hidden_state[:, self.leading :]


class EfficientNetGrid(nn.Module):
    """EfficientNet-Lite0's feature map at stride 16."""

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 1 or 3, H, W) in [-1, 1] -> features (B, 112, H / 16, W / 16)."""
        return self.network.maps(images)[STRIDES.index(16)]


def make_encoder(config: AlignConfig, *, classifier: Classifier | None = None) -> Encoder:
    """Build the encoder of a config, with frozen pretrained weights."""
    if config.encoder == "classifier":
        assert classifier is not None
        encoder = Encoder(nn.Sequential(classifier.fine, classifier.coarse))
    elif config.encoder == "efficientnet":
        encoder = Encoder(EfficientNetGrid(load_efficientnet()), config.input_size or INPUT_SIZE)
    elif config.encoder == "module":
        assert config.network is not None
        encoder = Encoder(load_module(config.network), config.input_size)
    else:
        assert config.network is not None
        network = load_from_hub(config.network, FAMILIES[config.encoder])
        if config.encoder == "mae":
            network.config.mask_ratio = 0.0
        sizes = getattr(network.config, "vision_config", network.config)
        default = min(int(sizes.image_size), DEFAULT_INPUT)
        encoder = Encoder(HubTokens(network, config.encoder), config.input_size or default)
    return encoder.eval().requires_grad_(False)
