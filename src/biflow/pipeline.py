"""The user's object: a trained model with its codec, from noise to pictures and back."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from biflow.checkpoint import Model, load_model, save_model
from biflow.config import ModelConfig
from biflow.data.images import to_pil
from biflow.data.randomness import normal_for
from biflow.errors import InputError, nearest
from biflow.models.codec import PixelCodec
from biflow.models.patches import unpatchify
from biflow.sampling.denoise import score_denoise
from biflow.sampling.guidance import Guidance
from biflow.sampling.one_pass import sample_in_one_pass
from biflow.sampling.sequential import invert_sequentially

Labels = Sequence[int] | Tensor
Sampler = Callable[[Model, Tensor, Tensor, Guidance], Tensor]
"""(model, noise (B, T, D), labels (B,), guidance) -> patches of clean images (B, T, D)."""


def _reverse(model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> Tensor:
    assert model.reverse is not None
    return sample_in_one_pass(model.reverse, z, labels, guidance=guidance).x


def _sequential(model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> Tensor:
    noisy = invert_sequentially(model.flow, z, labels, guidance=guidance).x
    return score_denoise(model.flow, noisy, labels)


SAMPLERS: Mapping[str, Sampler] = {"reverse": _reverse, "sequential": _sequential}


class Pipeline:
    """Sample, and later score, classify, encode and edit, with one model folder.

    `guidance` counts from 0, which means none.  Every image has a noise of its own, drawn for
    (seed, place in the list), so the same seed gives the same images whatever the batch size.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.codec = PixelCodec()
        self.device = torch.device("cpu")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a model folder, onto the CPU."""
        return cls(load_model(Path(folder)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder that `from_pretrained` reads."""
        save_model(self.model, Path(folder))

    def to(self, device: str | torch.device) -> Self:
        """Move the networks to a device."""
        self.device = torch.device(device)
        self.model.flow.to(self.device)
        if self.model.reverse:
            self.model.reverse.to(self.device)
        return self

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model and its images."""
        return self.model.config

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self.model.class_names

    def sample(
        self,
        labels: Labels,
        *,
        guidance: float | Guidance = 0.0,
        method: str = "reverse",
        seed: int = 0,
        batch_size: int = 256,
    ) -> list[Image.Image]:
        """Draw one image for each label.

        method "reverse" is the learned reverse model, one pass; "sequential" the exact inverse of the flow,
        patch by patch, then one score step against its noise.  Bad arguments raise `InputError`.
        """
        pixels = self.sample_pixels(labels, guidance=guidance, method=method, seed=seed, batch_size=batch_size)
        return [to_pil(image) for image in pixels]

    def sample_pixels(
        self,
        labels: Labels,
        *,
        guidance: float | Guidance = 0.0,
        method: str = "reverse",
        seed: int = 0,
        batch_size: int = 256,
    ) -> Tensor:
        """The same images as `sample`, as uint8 (N, P, H, W) on the CPU."""
        labels = self.check_labels(labels)
        sampler = self.check_method(method)
        guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        if not isinstance(seed, int):
            raise InputError(f"Expected a whole number as seed; got {seed!r}.")
        if batch_size < 1:
            raise InputError(f"Expected a batch size of 1 or more; got {batch_size}.")
        chunks = []
        for places in torch.arange(len(labels)).split(batch_size):
            z = self.noise(places.tolist(), seed)
            chunks.append(sampler(self.model, z, labels[places].to(self.device), guidance).cpu())
        images = self.to_images(torch.cat(chunks))
        broken = int((~images.isfinite()).flatten(1).any(dim=1).sum())
        if broken:
            warnings.warn(f"{broken} of {len(images)} images hold values that are not finite numbers.", stacklevel=2)
        return self.codec.decode(images)

    def noise(self, places: Sequence[int], seed: int) -> Tensor:
        """The noise that images at these places start from: (len(places), T, D), on the pipeline's device."""
        shape = (self.config.num_patches, self.config.patch_dim)
        return normal_for(places, shape, "sample", seed).to(self.device)

    def to_images(self, patches: Tensor) -> Tensor:
        """Patches (B, T, D) -> images (B, P, H, W) in the codec's units."""
        return unpatchify(patches, self.config.patch_size, self.config.channels)

    def check_labels(self, labels: Labels) -> Tensor:
        """Labels as int64 (N,), or an error that says which are allowed."""
        try:
            checked = torch.as_tensor(labels)
        except (TypeError, ValueError):
            checked = torch.empty(0)
        if checked.ndim != 1 or not len(checked) or checked.is_floating_point() or checked.dtype == torch.bool:
            raise InputError(f"Expected a list of one or more whole-number labels; got {labels!r}.")
        last = self.config.num_classes
        wrong = checked[(checked < 0) | (checked > last)]
        if len(wrong):
            classes = f"labels from 0 to {last - 1}, or {last} for no class" if last else "label 0, for no class"
            raise InputError(f"Expected {classes}; got {wrong[0].item()}.")
        return checked.long()

    def check_method(self, method: str) -> Sampler:
        """The sampler of this name; an error if there is none or this model lacks what it needs."""
        if method not in SAMPLERS:
            raise InputError(f"Unknown method {method!r}; {nearest(method, SAMPLERS)}")
        if method == "reverse" and self.model.reverse is None:
            raise InputError(
                "Expected a model with a reverse model; this one has only a flow. Use method 'sequential'."
            )
        return SAMPLERS[method]
