"""Pixels <-> what the flow models.  The scale of the data is known here and nowhere else."""

import torch
from torch import Tensor

from biflow.config import ModelConfig
from biflow.errors import InputError


class PixelCodec:
    """The flow models the pixels themselves, scaled to [-1, 1]; `decode(encode(p))` is `p` exactly."""

    bin_width = 2 / 255  # distance between two neighbouring grey levels, in the flow's units

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> float32 (B, P, H, W) in [-1, 1]."""
        return pixels.float() / 127.5 - 1

    def to_images(self, latents: Tensor) -> Tensor:
        """What the flow models (B, P, H, W) -> images in [-1, 1]; here they are the same."""
        return latents

    def decode(self, images: Tensor) -> Tensor:
        """Float (B, P, H, W) -> uint8 (B, P, H, W), rounded to the nearest level and clipped; not-a-number is black."""
        return (images.float().nan_to_num(nan=-1.0) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def make_codec(name: str) -> PixelCodec:
    """The codec that a model config names."""
    if name != "pixels":
        raise InputError(
            f"Expected a model of pixels; got one of {name!r} latents, which this version can describe but not decode. "
            "Set model.codec=pixels."
        )
    return PixelCodec()


def training_noise(config: ModelConfig) -> tuple[float, float]:
    """What is added to the images that a flow learns: Gaussian noise's standard deviation, uniform noise's width."""
    return config.noise_std, make_codec(config.codec).bin_width if config.dequantise else 0.0
