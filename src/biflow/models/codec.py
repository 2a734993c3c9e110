"""Pixels <-> what the flow models.  The scale of the data is known here and nowhere else."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biflow.config import ModelConfig
from biflow.errors import InputError
from biflow.extras import require
from biflow.tensors import hash_tensors


class Codec(nn.Module):
    """A frozen way from pixels to what the flow models, and back."""

    def train(self, mode: bool = True) -> "Codec":  # noqa: ARG002
        """A codec stays in eval mode."""
        return super().train(mode=False)

    @abstractmethod
    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape (P, H, W) of images of pixels -> that of what the flow models."""

    @abstractmethod
    def image_shape(self, config: ModelConfig) -> tuple[int, int, int]:
        """The shape (P, H, W) of the images whose latents a model is made for."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> float32 latents (B, P', H', W'), on the codec's device."""

    @abstractmethod
    def to_images(self, latents: Tensor) -> Tensor:
        """Latents -> images (B, P, H, W), about in [-1, 1]; gradients flow through."""

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> uint8 (B, P, H, W), rounded to the nearest level and clipped; not-a-number is black."""
        images = self.to_images(latents).float().nan_to_num(nan=-1.0)
        return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


class PixelCodec(Codec):
    """The flow models the pixels themselves, scaled to [-1, 1]; `decode(encode(p))` is `p` exactly."""

    bin_width = 2 / 255  # distance between two neighbouring grey levels, in the flow's units

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same shape."""
        return image_shape

    def image_shape(self, config: ModelConfig) -> tuple[int, int, int]:
        """The model's own."""
        return config.channels, config.image_size, config.image_size

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> float32 (B, P, H, W) in [-1, 1], where the pixels are."""
        return (pixels.float() / 127.5).sub_(1)

    def to_images(self, latents: Tensor) -> Tensor:
        """The same tensor."""
        return latents


class VaeCodec(Codec):
    """The flow models the latents of a variational autoencoder of diffusers, scaled to about unit variance.

    A latent is the mean of the encoder's distribution, less the autoencoder's shift, times its scaling factor.
    """

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.scale = float(autoencoder.config.scaling_factor)
        self.shift = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)
        self.reduction = 2 ** (len(autoencoder.config.block_out_channels) - 1)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(P, H, W) of images -> (latent channels, H / r, W / r), with r the reduction, usually 8."""
        channels, wanted = image_shape[0], self.autoencoder.config.in_channels
        if channels != wanted or image_shape[1] % self.reduction:
            raise InputError(
                f"Expected images of {wanted} channels with a side that is a multiple of {self.reduction}, for the "
                f"autoencoder; got {channels} channels and a side of {image_shape[1]}. Prepare other images, or set "
                "model.codec=pixels."
            )
        return self.autoencoder.config.latent_channels, *(side // self.reduction for side in image_shape[1:])

    def image_shape(self, config: ModelConfig) -> tuple[int, int, int]:
        """The channels that the autoencoder takes, and r times the model's sides."""
        side = self.reduction * config.image_size
        return int(self.autoencoder.config.in_channels), side, side

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> float32 latents (B, P', H / r, W / r), on the codec's device."""
        mean, _ = self.moments(pixels).chunk(2, dim=1)
        return self.scaled(mean)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> means and log-variances (B, 2P', H / r, W / r) of the encoder's distribution."""
        images = pixels.to(self.autoencoder.device).float() / 127.5 - 1
        distribution = self.autoencoder.encode(images).latent_dist
        return torch.cat([distribution.mean, distribution.logvar], dim=1)

    def identity(self) -> str:
        """SHA-256 of the autoencoder's weights, and of the scale that its latents are brought to."""
        return hash_tensors(self.autoencoder.state_dict(), prefix=f"{self.scale} {self.shift}")

    def draw(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Latents drawn by this standard normal noise (B, P', H / r, W / r) from the distribution of these moments."""
        mean, log_variance = moments.chunk(2, dim=1)
        return self.scaled(mean + (0.5 * log_variance).exp() * noise)

    def scaled(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents, brought to about unit variance."""
        return (latents - self.shift) * self.scale

    def to_images(self, latents: Tensor) -> Tensor:
        """Latents (B, P', H / r, W / r) -> images (B, P, H, W), about in [-1, 1]; gradients flow through."""
        return self.autoencoder.decode(latents / self.scale + self.shift).sample


def make_codec(name: str) -> Codec:
    """The codec that a model config names: "pixels", or "vae:NAME" with a hub name or a local folder."""
    if name == "pixels":
        return PixelCodec()
    source = name.removeprefix("vae:")
    require("diffusers")
    from diffusers import AutoencoderKL

    try:
        local = Path(source).is_dir()
        return VaeCodec(
            AutoencoderKL.from_pretrained(source, local_files_only=local, use_safetensors=True, low_cpu_mem_usage=False)
        )
    except Exception as error:  # of the hub, the disk or the file, of a dozen types
        raise InputError(
            f"Expected the autoencoder {source!r} of the codec to be a folder that save_pretrained of diffusers wrote, "
            f"or a name on the Hugging Face hub that can be reached; cannot load it ({type(error).__name__}). "
            "Download it, or set model.codec=vae:FOLDER."
        ) from None


def training_noise(config: ModelConfig) -> tuple[float, float]:
    """What is added to the images that a flow learns: Gaussian noise's standard deviation, uniform noise's width."""
    return config.noise_std, PixelCodec.bin_width if config.dequantise else 0.0
