"""A model: a flow, a reverse model if there is one, and the codec between pixels and what the flow models."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor, nn

from biflow.config import ModelConfig
from biflow.data.augment import add_noise
from biflow.data.images import Images, to_pixels
from biflow.data.labels import Labels, check_labels
from biflow.data.randomness import Key, seeded_weights
from biflow.errors import InputError, choose
from biflow.models.codec import Codec, PixelCodec, make_codec, training_noise
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify, unpatchify
from biflow.models.reverse_model import ReverseModel


class Model:
    """What a model folder holds.  The codec of a latent model is loaded when it is first used, unless it is given."""

    def __init__(
        self,
        config: ModelConfig,
        class_names: tuple[str, ...],
        flow: ForwardFlow,
        reverse: ReverseModel | None = None,
        *,
        codec: Codec | None = None,
    ) -> None:
        self.config, self.class_names, self.flow, self.reverse = config, class_names, flow, reverse
        self._codec = codec

    @property
    def codec(self) -> Codec:
        """Pixels <-> what the flow models, on the model's device."""
        if self._codec is None:
            self._codec = make_codec(self.config.codec).to(self.device)
        return self._codec

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.flow.prior_variance.device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(P, H, W) of the model's images, in pixels."""
        return self.codec.image_shape(self.config)

    @property
    def networks(self) -> nn.ModuleDict:
        """The networks by name, without the codec."""
        found: dict[str, nn.Module] = {"flow": self.flow}
        if self.reverse:
            found["reverse"] = self.reverse
        return nn.ModuleDict(found)

    @torch.inference_mode(False)  # weights that are moved in it could not be differentiated through
    def to(self, device: torch.device) -> Self:
        """Move networks and codec to a device."""
        self.networks.to(device)
        if self._codec is not None:
            self._codec.to(device)
        return self

    def frozen(self) -> Self:
        """The model in eval mode, its weights without gradients."""
        self.networks.eval().requires_grad_(False)
        return self

    def with_networks(self, flow: ForwardFlow, reverse: ReverseModel | None) -> "Model":
        """A model of the same config, classes and codec with other networks."""
        return Model(self.config, self.class_names, flow, reverse, codec=self._codec)

    def noisy_patches(self, pixels: Tensor, indices: Sequence[int], *keys: Key, noise: str = "training") -> Tensor:
        """uint8 (B, P, H, W) -> what the flow reads: patches (B, T, D) with noise drawn for (keys, index).

        noise: "training" is what the flow was trained with, "uniform" dequantises grey levels, "none" adds nothing.
        """
        std, bin_width = noise_scales(self.config, noise)
        noisy = add_noise(self.codec.encode(pixels), indices, std, *keys, bin_width=bin_width)
        return patchify(noisy, self.config.patch_size).to(self.device)

    def check_labels(self, labels: Labels, *, count: int | None = None) -> Tensor:
        """Labels of this model's classes as int64 (N,); raises otherwise.

        count: how many there must be; a single label then is that of all.
        """
        if count is not None and (isinstance(labels, str | Integral) or getattr(labels, "ndim", 1) == 0):
            one: Any = labels.item() if hasattr(labels, "item") else labels
            labels = [one] * count
        found = check_labels(labels, self.config.num_classes, self.class_names)
        if count is not None and len(found) != count:
            raise InputError(f"Expected one label for each of {count} images; got {len(found)}.")
        return found

    def check_images(self, images: Images, labels: Labels | None = None) -> tuple[Tensor, Tensor]:
        """Images as uint8 (N, P, H, W) on the CPU, and labels (N,), or an error; without labels, of no class."""
        pixels, wanted = to_pixels(images), self.image_shape
        if tuple(pixels.shape[1:]) != wanted:
            raise InputError(
                f"Expected images of shape (N, {', '.join(map(str, wanted))}); got {tuple(pixels.shape)}. Convert them."
            )
        if not len(pixels):
            raise InputError("Expected one or more images; got none.")
        given = [self.config.null_label] * len(pixels) if labels is None else labels
        return pixels.cpu(), self.check_labels(given, count=len(pixels))

    def to_latents(self, patches: Tensor) -> Tensor:
        """Patches (B, T, D) -> what the codec decodes, (B, P, H, W)."""
        return unpatchify(patches, self.config.patch_size, self.config.channels)


def new_model(config: ModelConfig, class_names: tuple[str, ...], *, seed: int = 0, codec: Codec | None = None) -> Model:
    """Networks of these sizes with fresh weights; the same for the same seed."""
    with seeded_weights(seed):
        reverse = ReverseModel(config) if config.reverse else None
        return Model(config, class_names, ForwardFlow(config), reverse, codec=codec)


def noise_scales(config: ModelConfig, noise: str = "training") -> tuple[float, float]:
    """Gaussian standard deviation and uniform bin width of "training", "uniform" (dequantisation) or "none" noise."""
    uniform = 0.0, PixelCodec.bin_width
    return choose({"training": training_noise(config), "uniform": uniform, "none": (0.0, 0.0)}, noise, "noise")
