"""Codecs: uint8 pixels <-> the latents that the flow models; the only place that knows the data's scale."""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biflow.config import ModelConfig
from biflow.data.randomness import seeded_weights
from biflow.errors import InputError
from biflow.extras import require
from biflow.tensors import hash_tensors


class Codec(nn.Module):
    """A frozen map from pixels to latents and back."""

    def train(self, mode: bool = True) -> "Codec":  # noqa: ARG002
        """Stays in eval mode."""
        return super().train(mode=False)

    @abstractmethod
    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Image shape (P, H, W) -> latent shape (P', H', W')."""

    @abstractmethod
    def image_shape(self, config: ModelConfig) -> tuple[int, int, int]:
        """Image shape (P, H, W) of a model."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> float32 latents (B, P', H', W'), on the codec's device."""

    @abstractmethod
    def to_images(self, latents: Tensor) -> Tensor:
        """Latents -> images (B, P, H, W), about in [-1, 1]; differentiable."""

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> uint8 (B, P, H, W), rounded to the nearest grey level and clipped; NaN becomes black."""
        images = self.to_images(latents).float().nan_to_num(nan=-1.0)
        return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


class PixelCodec(Codec):
    """Pixels scaled to [-1, 1]; `decode(encode(p))` equals `p` exactly."""

    bin_width = 2 / 255  # distance between grey levels, in the flow's units

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same shape."""
        return image_shape

    def image_shape(self, config: ModelConfig) -> tuple[int, int, int]:
        """The model's channels and image size."""
        return config.channels, config.image_size, config.image_size

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> float32 (B, P, H, W) in [-1, 1], on the pixels' device."""
        return (pixels.float() / 127.5).sub_(1)

    def to_images(self, latents: Tensor) -> Tensor:
        """The same tensor."""
        return latents


class VaeCodec(Codec):
    """Latents of a diffusers autoencoder: (posterior mean - shift) * factor, about unit variance.

    As in diffusers: latents_mean and scaling_factor / latents_std, per channel, if the autoencoder's config has them,
    else its shift_factor and scaling_factor.
    """

    shift: Tensor  # (P', 1, 1) or (1, 1, 1)
    factor: Tensor

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        shifts, factors = latent_scaling(autoencoder.config)
        for name, values in (("shift", shifts), ("factor", factors)):
            column = torch.tensor(values, dtype=torch.float32)[:, None, None]
            self.register_buffer(name, column, persistent=False)
        self.scaling = f"{factors} {shifts}" if len(shifts) > 1 else f"{factors[0]} {shifts[0]}"
        self.reduction = 2 ** (len(autoencoder.config.block_out_channels) - 1)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Image shape (P, H, W) -> (latent channels, H / r, W / r), with r the downsampling factor, usually 8."""
        channels, expected = image_shape[0], self.autoencoder.config.in_channels
        if channels != expected or image_shape[1] % self.reduction:
            raise InputError(
                f"Expected images of {expected} channels with a side that is a multiple of {self.reduction}, for the "
                f"autoencoder; got {channels} and {image_shape[1]}. Prepare other images, or set model.codec=pixels."
            )
        return self.autoencoder.config.latent_channels, *(side // self.reduction for side in image_shape[1:])

    def image_shape(self, config: ModelConfig) -> tuple[int, int, int]:
        """The autoencoder's input channels, and r times the model's image size."""
        side = self.reduction * config.image_size
        return int(self.autoencoder.config.in_channels), side, side

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> float32 latents (B, P', H / r, W / r), on the codec's device."""
        mean, _ = self.moments(pixels).chunk(2, dim=1)
        return self.scaled(mean)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> means and log-variances (B, 2P', H / r, W / r) of the posterior."""
        images = pixels.to(self.autoencoder.device).float() / 127.5 - 1
        distribution = self.autoencoder.encode(images).latent_dist
        return torch.cat([distribution.mean, distribution.logvar], dim=1)

    def identity(self) -> str:
        """SHA-256 of the autoencoder's weights and the scaling of its latents."""
        return hash_tensors(self.autoencoder.state_dict(), prefix=self.scaling)

    def draw(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Sample latents from these moments with standard normal noise (B, P', H / r, W / r)."""
        mean, log_variance = moments.chunk(2, dim=1)
        return self.scaled(mean + (0.5 * log_variance).exp() * noise)

    def scaled(self, latents: Tensor) -> Tensor:
        """Scale the autoencoder's latents to about unit variance."""
        return (latents - self.shift) * self.factor

    def to_images(self, latents: Tensor) -> Tensor:
        """Latents (B, P', H / r, W / r) -> images (B, P, H, W), about in [-1, 1]; differentiable."""
        return self.autoencoder.decode(latents / self.factor.to(latents) + self.shift.to(latents)).sample


def latent_scaling(config: Any) -> tuple[list[float], list[float]]:
    """Shift and factor of an autoencoder's latents, of each channel if its config has their statistics, else of all."""
    means, stds = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    count = config.latent_channels
    if means is None or stds is None:
        means, stds, count = [getattr(config, "shift_factor", None) or 0.0], [1.0], 1
    try:
        shifts, factors = [float(each) for each in means], [float(config.scaling_factor) / float(each) for each in stds]
    except (TypeError, ValueError, ZeroDivisionError):
        shifts = factors = []
    valid = all(map(math.isfinite, [*shifts, *factors])) and min(factors, default=0) > 0
    if not valid or (len(shifts), len(factors)) != (count, count):
        raise InputError(
            "Expected scaling_factor and shift_factor of the autoencoder's config.json to be numbers, and latents_mean "
            f"and latents_std, if it has them, lists of {config.latent_channels}; scaling_factor and latents_std above "
            "0. Correct them there."
        )
    return shifts, factors


def make_codec(name: str) -> Codec:
    """Build the codec "pixels", or "vae:NAME" with a hub name or local folder."""
    if name == "pixels":
        return PixelCodec()
    return VaeCodec(load_autoencoder(name.removeprefix("vae:")))


@torch.inference_mode(False)  # weights that are made in it could not be differentiated through
def load_autoencoder(source: str) -> Any:
    """A diffusers autoencoder in float32, from a hub name or a local folder."""
    require("diffusers")
    from diffusers import AutoencoderKL

    options = {"local_files_only": Path(source).is_dir(), "use_safetensors": True, "low_cpu_mem_usage": False}
    try:
        with seeded_weights(0):
            return AutoencoderKL.from_pretrained(source, torch_dtype=torch.float32, **options)
    except Exception as error:  # hub, disk and file errors of a dozen types
        raise InputError(
            f"Expected the autoencoder {source!r} of the codec to be a diffusers folder or a reachable hub name; "
            f"cannot load it ({type(error).__name__}). Download it, or set model.codec=vae:FOLDER."
        ) from None


def training_noise(config: ModelConfig) -> tuple[float, float]:
    """Training noise of a flow: the standard deviation of the Gaussian and the width of the uniform noise."""
    return config.noise_std, PixelCodec.bin_width if config.dequantise else 0.0
