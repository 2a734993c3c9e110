"""A trained model with its codec: loading and keeping it, and drawing images from it."""

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from biflow.checkpoint import TRAINING_FILE, Model, load_model, new_model, save_model
from biflow.class_labels import Labels, check_labels
from biflow.config import ModelConfig, load_recipe
from biflow.data.images import to_pil, write_images
from biflow.data.randomness import normal_for
from biflow.errors import InputError, choose
from biflow.files import write_text
from biflow.model_card import read_evaluation, render_card
from biflow.model_hub import CARD_FILE, PICTURE_FILE, check_repository, find_model, upload_folder
from biflow.models.codec import make_codec
from biflow.models.patches import unpatchify
from biflow.samplers import Sampler, find_sampler
from biflow.sampling.guidance import Guidance
from biflow.tarflow import load_tarflow

OutputType = Literal["pil", "np", "pt"]
BATCH_SIZE = 256
SHOWN = 20  # samples on a card
REDRAWS = 4  # at most, of an image that is not finite
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class Way(TypedDict, total=False):
    """How images come from noise; what is left out is 0, "reverse", 0 and 256.

    guidance: its strength, 0 for none, or a `Guidance`.
    method: "reverse" is the learned reverse model, one pass; "sequential" the exact inverse of the flow, patch by
    patch, then one score step against its noise; "jacobi", "gs-jacobi" and "refine" come to the same images, within a
    tolerance, in fewer calls one after another.  An object of `biflow.samplers` sets more: `Jacobi(tolerance=1e-5)`.
    seed: the same gives the same images, whatever the batch size.
    batch_size: images at a time.
    """

    guidance: float | Guidance
    method: str | Sampler
    seed: int
    batch_size: int


class Drawn(NamedTuple):
    """Images, and what went wrong with them."""

    pixels: Tensor  # uint8 (N, P, H, W), on the CPU; values that are no finite numbers are black
    broken: int  # images that held such values
    left: int  # those of them that still do, after they were drawn again if that was asked for


@dataclass(frozen=True)
class ImagePipelineOutput:
    """What calling a pipeline gives."""

    images: list[Image.Image] | npt.NDArray[np.float32] | Tensor


class SamplingPipeline:
    """A model that images are drawn from."""

    def __init__(self, model: Model, training: Mapping[str, Any] | None = None) -> None:
        self.model, self.training = model, training
        self.codec = make_codec(model.config.codec)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._prepared: dict[tuple[Sampler, Guidance], Sampler] = {}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        torch_dtype: torch.dtype | None = None,
    ) -> Self:
        """Load a model folder, or a repository `owner/name` of the Hugging Face hub, onto the CPU.

        revision: of a repository, a branch, tag or commit; local_files_only: take what was downloaded before;
        torch_dtype: as the dtype of `to`.
        """
        folder = find_model(name, revision=revision, token=token, local_files_only=local_files_only)
        training = folder / TRAINING_FILE
        facts = json.loads(training.read_text(encoding="utf-8")) if training.is_file() else None
        return cls(load_model(folder), facts).to(dtype=torch_dtype)

    @classmethod
    def from_recipe(cls, name: str, overrides: Sequence[str] = (), *, seed: int = 0) -> Self:
        """A new model of a recipe's sizes, not trained: to see shapes and to time it.

        >>> from biflow import Pipeline
        >>> Pipeline.from_recipe("biflow_digits", ["model.flow.blocks=2"])
        Pipeline(flow and reverse model, 8x8x1, 10 classes, cpu, torch.float32)
        """
        config = load_recipe(name, overrides).model
        return cls(new_model(config, tuple(str(label) for label in range(config.num_classes)), seed=seed))

    @classmethod
    def from_tarflow(
        cls,
        file: str | Path,
        *,
        noise_std: float,
        image_size: int | None = None,
        class_names: Sequence[str] | None = None,
        codec: str | None = None,
    ) -> Self:
        """Load a published ml-tarflow checkpoint; `biflow.tarflow.load_tarflow` says what the arguments are for."""
        return cls(
            load_tarflow(Path(file), noise_std=noise_std, image_size=image_size, class_names=class_names, codec=codec)
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder that `from_pretrained` reads, with what is known of its training."""
        save_model(self.model, Path(folder))
        if self.training:
            write_text(Path(folder) / TRAINING_FILE, json.dumps(self.training, indent=1) + "\n")

    def push_to_hub(
        self,
        repository: str,
        *,
        evaluation: str | Path | None = None,
        licence: str | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the model with its card to `owner/name` on the Hugging Face hub; returns the address.

        evaluation: an evaluation.json of `biflow evaluate`, whose numbers the card then shows; licence: of the weights,
        as the hub names it, "apache-2.0".
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_for_hub(Path(folder) / "model", repository, evaluation=evaluation, licence=licence)
            return upload_folder(Path(folder) / "model", repository, private=private, token=token)

    def save_for_hub(
        self, folder: Path, repository: str, *, evaluation: str | Path | None = None, licence: str | None = None
    ) -> None:
        """Write what `push_to_hub` uploads: model folder, card, and samples if the model draws them in one pass."""
        check_repository(repository)
        measured = read_evaluation(Path(evaluation)) if evaluation else None
        self.save_pretrained(folder)
        if self.model.reverse:
            labels = torch.arange(SHOWN) % max(1, self.config.num_classes)
            write_images(folder / PICTURE_FILE, self.sample_pixels(labels), labels)
        picture = PICTURE_FILE if self.model.reverse else None
        write_text(
            folder / CARD_FILE,
            render_card(self.model, repository, self.training, measured, licence=licence, picture=picture),
        )

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the networks to a device, and choose the precision of their products.

        dtype: float32; bfloat16 or float16 by autocast, as in training: weights, affine maps and log-determinants stay
        float32, and so does the way of edits to noise.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None and dtype not in PRECISIONS:
            raise InputError(f"Expected float32, bfloat16 or float16; got {dtype}.")
        self.device, self.dtype = check_device(device or self.device), dtype or self.dtype
        self.codec.to(self.device)
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

    def __call__(  # noqa: PLR0913  the arguments of diffusers' pipelines
        self,
        class_labels: int | str | Labels | None = None,
        *,
        guidance_scale: float = 1.0,
        method: str | Sampler = "reverse",
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images as diffusers' class-conditional pipelines do; without labels, one of no class.

        guidance_scale counts as theirs does: 1 is none, and 1 + w our guidance of w.  The noise is that of the seed, or
        drawn by the generator, or `latents` (N, T, D), standard normal.  num_inference_steps: one pass has one.
        output_type: "pil", or "np" (N, H, W, P) or "pt" (N, P, H, W), float32 in [0, 1].

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> pipe([3, "8"], guidance_scale=1.25, output_type="np").images.shape
        (2, 8, 8, 1)
        """
        if num_inference_steps != 1:
            raise InputError(
                f"Expected num_inference_steps=1, of one pass; got {num_inference_steps}. For the exact inverse give "
                "method='sequential'."
            )
        asked = [self.config.null_label] if class_labels is None else class_labels
        labels = self.check_labels([asked] if isinstance(asked, int | str) else asked)
        if guidance_scale < 1:
            raise InputError(f"Expected a guidance_scale of 1 (none) or more; got {guidance_scale:g}.")
        way: Way = {"guidance": guidance_scale - 1, "method": method, "seed": 0 if seed is None else seed}
        if generator is not None and (seed is not None or not isinstance(generator, torch.Generator)):
            raise InputError("Expected one torch.Generator, or else a seed; give a seed for noise of each image's own.")
        z = self._given_noise(len(labels), generator, latents)
        pixels = self.sample_pixels(labels, **way) if z is None else self.pixels_from(z, labels, **way)
        images = as_output(pixels, output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def sample(self, labels: Labels, **way: Unpack[Way]) -> list[Image.Image]:
        """Draw one image for each label; `Way` says how.  Bad arguments raise `InputError`.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> [image.size for image in pipe.sample([3, 1], guidance=0.25, seed=0)]
        [(8, 8), (8, 8)]
        """
        return [to_pil(image) for image in self.sample_pixels(labels, **way)]

    def sample_pixels(self, labels: Labels, *, redraw: bool = False, **way: Unpack[Way]) -> Tensor:
        """The same images as `sample`, as uint8 (N, P, H, W) on the CPU.

        Images with values that are not finite numbers are counted in a warning; with `redraw` they are drawn again
        from other noise, a few times at most.
        """
        drawn = self.draw(labels, redraw=redraw, **way)
        if drawn.broken:
            after = f" and were drawn again; {drawn.left} of them still do" if redraw else ""
            message = f"{drawn.broken} of {len(labels)} images hold values that are not finite numbers{after}."
            warnings.warn(message, stacklevel=2)
        return drawn.pixels

    def draw(self, labels: Labels, *, start: int = 0, redraw: bool = False, **way: Unpack[Way]) -> Drawn:
        """The images at the places start, start + 1, ... of a longer list, which has these labels there."""
        labels, seed = self.check_labels(labels), way.get("seed", 0)

        def latents_at(places: Tensor, attempt: int) -> Tensor:
            return self._latents(self.noise((start + places).tolist(), seed, attempt), labels[places], way)

        chunks, broken, left = [], 0, 0
        for places in torch.arange(len(labels)).split(check_batch_size(way.get("batch_size", BATCH_SIZE))):
            latents = latents_at(places, 0)
            bad = not_finite(latents)
            broken += int(bad.sum())
            for attempt in range(1, 1 + REDRAWS * redraw):
                if bad.any():
                    latents[bad] = latents_at(places[bad.cpu()], attempt)
                    bad = not_finite(latents)
            left += int(bad.sum())
            chunks.append(self.codec.decode(latents).cpu())
        return Drawn(torch.cat(chunks), broken, left)

    def pixels_from(self, z: Tensor, labels: Tensor, **way: Unpack[Way]) -> Tensor:
        """The images that noise z (N, T, D), in the prior's units, stands for: uint8 (N, P, H, W) on the CPU."""
        size, chunks, broken = check_batch_size(way.get("batch_size", BATCH_SIZE)), [], 0
        for part, given in zip(z.split(size), labels.split(size), strict=True):
            latents = self._latents(part, given, way)
            broken += int(not_finite(latents).sum())
            chunks.append(self.codec.decode(latents).cpu())
        if broken:
            warnings.warn(f"{broken} of {len(z)} images hold values that are not finite numbers.", stacklevel=2)
        return torch.cat(chunks)

    def noise(self, places: Sequence[int], seed: int, attempt: int = 0) -> Tensor:
        """The noise that images at these places start from: (len(places), T, D), on the pipeline's device.

        attempt: above 0 where the images of the attempts before were not finite.
        """
        check_seed(seed)
        keys = [attempt] if attempt else []
        return self.model.flow.scale_noise(normal_for(places, self.noise_shape, "sample", seed, *keys).to(self.device))

    def __repr__(self) -> str:
        """What the model is, and where."""
        size, parts = self.config.image_size, "flow and reverse model" if self.model.reverse else "flow"
        of = f"{size}x{size}x{self.config.channels}"
        return f"{type(self).__name__}({parts}, {of}, {self.config.num_classes} classes, {self.device}, {self.dtype})"

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(T, D), patches and values in each."""
        return self.config.num_patches, self.config.patch_dim

    def to_latents(self, patches: Tensor) -> Tensor:
        """Patches (B, T, D) -> what the codec decodes, (B, P, H, W)."""
        return unpatchify(patches, self.config.patch_size, self.config.channels)

    def check_labels(self, labels: Labels) -> Tensor:
        """Labels of this model's classes as int64 (N,), or an error that says which are allowed."""
        return check_labels(labels, self.config.num_classes, self.class_names)

    def in_precision(self) -> torch.autocast:
        """A block in which the networks compute in the pipeline's precision."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if enabled else torch.bfloat16, enabled=enabled)

    def _latents(self, z: Tensor, labels: Tensor, way: Way) -> Tensor:
        guidance = way.get("guidance", 0.0)
        strength = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        sampler = self._prepare(find_sampler(way.get("method", "reverse")), strength)
        with self.in_precision():
            drawn = sampler(self.model, z.to(self.device), labels.to(self.device), strength)
        return self.to_latents(drawn.x.float())

    def _given_noise(self, count: int, generator: torch.Generator | None, latents: Tensor | None) -> Tensor | None:
        """Noise in the prior's units, if it does not come from the seed."""
        if latents is None and generator is None:
            return None
        if latents is None:
            assert generator is not None
            latents = torch.randn((count, *self.noise_shape), generator=generator, device=generator.device)
        if tuple(latents.shape) != (count, *self.noise_shape) or not latents.isfinite().all():
            raise InputError(
                f"Expected latents of shape {(count, *self.noise_shape)}, finite numbers; got {tuple(latents.shape)}."
            )
        return self.model.flow.scale_noise(latents.to(self.device, torch.float32))

    def _prepare(self, sampler: Sampler, guidance: Guidance) -> Sampler:
        """What a sampler learns of this model is kept for the next call."""
        if (sampler, guidance) not in self._prepared:
            self._prepared[sampler, guidance] = sampler.prepare(self.model, guidance)
        return self._prepared[sampler, guidance]


def as_output(pixels: Tensor, output_type: OutputType) -> list[Image.Image] | npt.NDArray[np.float32] | Tensor:
    """uint8 (N, P, H, W) as diffusers' pipelines give images."""
    kinds: dict[OutputType, Callable[[], Any]] = {
        "pil": lambda: [to_pil(image) for image in pixels],
        "np": lambda: (pixels.float() / 255).permute(0, 2, 3, 1).numpy(),
        "pt": lambda: pixels.float() / 255,
    }
    images: list[Image.Image] | npt.NDArray[np.float32] | Tensor = choose(kinds, output_type, "output_type")()
    return images


def check_device(device: str | torch.device) -> torch.device:
    """The device, or an error if there is none of this kind here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"Expected a device that torch can use here; cannot use {str(device)!r}. Give 'cpu', or see biflow doctor."
        ) from None


def check_batch_size(batch_size: int) -> int:
    """The same, or an error."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"Expected a batch size of 1 or more; got {batch_size}.")
    return batch_size


def check_seed(seed: int) -> None:
    """Raise unless this is a whole number, not below 0."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"Expected a whole number as seed, 0 or more; got {seed!r}.")


def not_finite(images: Tensor) -> Tensor:
    """Which images (B, P, H, W) hold a value that is no finite number: (B,)."""
    return ~images.isfinite().flatten(1).all(dim=1)
