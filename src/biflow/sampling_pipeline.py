"""A trained model with its codec: loading and keeping it, and drawing images from it."""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, Unpack

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from biflow.checkpoint import Model, load_model, load_training, new_model, save_model
from biflow.class_labels import Labels, check_labels
from biflow.config import ModelConfig, load_recipe
from biflow.data.images import to_pil, write_images
from biflow.data.randomness import normal_for
from biflow.errors import InputError, choose
from biflow.files import write_text
from biflow.model_card import read_evaluation, render_card
from biflow.model_hub import (
    CARD_FILE,
    PICTURE_FILE,
    check_codec_can_be_shared,
    check_repository,
    find_model,
    upload_folder,
)
from biflow.models.codec import make_codec
from biflow.models.patches import unpatchify
from biflow.nn.compilation import compile_layers
from biflow.samplers import Sampler
from biflow.sampling.captured import CapturedFlow, CapturedReverse
from biflow.sampling.guidance import Guidance
from biflow.sampling_options import SamplingOptions, SamplingSettings, check_seed
from biflow.tarflow import load_tarflow

OutputType = Literal["pil", "np", "pt"]
SHOWN = 20  # samples on a card
KEPT = 16  # samplers that were prepared for a guidance
REDRAWS = 4  # at most, of an image that is not finite
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class Drawn(NamedTuple):
    """Images, and what went wrong with them."""

    pixels: Tensor  # uint8 (N, P, H, W), on the CPU; values that are no finite numbers are black
    broken: int  # images that held such values
    left: int  # those of them that still do, after they were drawn again if that was asked for

    def warn(self, *, redraw: bool = False) -> None:
        """Say how many images were not finite, if any."""
        if self.broken:
            after = f" and were drawn again; {self.left} of them still do" if redraw else ""
            message = f"{self.broken} of {len(self.pixels)} images hold values that are not finite numbers{after}."
            warnings.warn(message, stacklevel=3)


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
        self.compiled = self._layers = False
        self._networks: Model | None = None  # that draw, once they were needed
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
        return cls(load_model(folder), load_training(folder)).to(dtype=torch_dtype)

    @classmethod
    def from_recipe(cls, name: str, overrides: Sequence[str] = (), *, seed: int = 0) -> Self:
        """A new model of a recipe's sizes, not trained: to see shapes and to time it.

        >>> from biflow import Pipeline
        >>> Pipeline.from_recipe("biflow_digits", ["model.flow.blocks=2"])
        Pipeline(flow and reverse model, 8x8x1, 10 classes, cpu, torch.float32)
        """
        config = load_recipe(name, overrides).model
        model = new_model(config, tuple(str(label) for label in range(config.num_classes)), seed=seed)
        for network in filter(None, (model.flow, model.reverse)):
            network.eval().requires_grad_(False)
        return cls(model)

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
        save_model(self.model, Path(folder), self.training)

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
        check_codec_can_be_shared(self.config.codec)
        measured = read_evaluation(Path(evaluation)) if evaluation else None
        picture = PICTURE_FILE if self.model.reverse else None
        card = render_card(self.model, repository, self.training, measured, licence=licence, picture=picture)
        self.save_pretrained(folder)
        if picture:
            labels = torch.arange(SHOWN) % max(1, self.config.num_classes)
            write_images(folder / picture, self.sample_pixels(labels), labels)
        write_text(folder / CARD_FILE, card)

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the networks to a device, and choose the precision that they compute in.

        dtype: float32, bfloat16 or float16.  In half precision images are drawn by copies of the networks with weights
        in it, likelihoods and classes come from float32 weights by autocast, and affine maps, log-determinants and the
        way of edits to noise stay float32.  The copies are made when images are drawn first, from the weights of then.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None and dtype not in PRECISIONS:
            raise InputError(f"Expected float32, bfloat16 or float16; got {dtype}.")
        self.device, self.dtype = check_device(device or self.device), dtype or self.dtype
        self._networks = None
        self.codec.to(self.device)
        self.model.flow.to(self.device)
        if self.model.reverse:
            self.model.reverse.to(self.device)
        return self

    def compile(self, dtype: torch.dtype | None = None, *, layers: bool = True) -> Self:
        """Draw images at the speed of the hardware, once each batch size has been drawn a first time.

        On a GPU the networks' calls become CUDA graphs.  layers: compile the layers of the reverse model too, where
        there is a compiler, which delays the first batch; on a CPU that gains little.  dtype: as in `to`; none is
        bfloat16 in the place of float32 on a GPU.  One thread at a time may draw.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits").to("cuda").compile()  # doctest: +SKIP
        >>> images = pipe.sample([3, 1, 4, 1, 5])  # doctest: +SKIP
        """
        self.compiled, self._layers = True, layers
        half = self.device.type == "cuda" and self.dtype == torch.float32
        return self.to(dtype=dtype or (torch.bfloat16 if half else self.dtype))

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
        check_one_source(seed=seed, generator=generator, latents=latents)
        options: SamplingOptions = {"guidance": guidance_scale - 1, "method": method, "seed": seed or 0}
        z = self._given_noise(len(labels), generator, latents)
        pixels = self.sample_pixels(labels, **options) if z is None else self.pixels_from(z, labels, **options)
        images = as_output(pixels, output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def sample(self, labels: Labels, **options: Unpack[SamplingOptions]) -> list[Image.Image]:
        """Draw one image for each label; `SamplingOptions` says how.  Bad arguments raise `InputError`.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> [image.size for image in pipe.sample([3, 1], guidance=0.25, seed=0)]
        [(8, 8), (8, 8)]
        """
        return [to_pil(image) for image in self.sample_pixels(labels, **options)]

    def sample_pixels(self, labels: Labels, *, redraw: bool = False, **options: Unpack[SamplingOptions]) -> Tensor:
        """The same images as `sample`, as uint8 (N, P, H, W) on the CPU.

        Images with values that are not finite numbers are counted in a warning; with `redraw` they are drawn again
        from other noise, a few times at most.
        """
        drawn = self.draw(labels, redraw=redraw, **options)
        drawn.warn(redraw=redraw)
        return drawn.pixels

    def draw(
        self, labels: Labels, *, start: int = 0, redraw: bool = False, **options: Unpack[SamplingOptions]
    ) -> Drawn:
        """The images at the places start, start + 1, ... of a longer list, which has these labels there."""
        labels, settings = self.check_labels(labels), SamplingSettings.of(options)

        def latents_at(places: Tensor, attempt: int) -> Tensor:
            z = self.noise((start + places).tolist(), settings.seed, attempt)
            return self._latents(z, labels[places], settings)

        return self._in_batches(len(labels), settings.batch_size, latents_at, redraws=REDRAWS * redraw)

    def pixels_from(self, z: Tensor, labels: Tensor, **options: Unpack[SamplingOptions]) -> Tensor:
        """The images that noise z (N, T, D), in the prior's units, stands for: uint8 (N, P, H, W) on the CPU."""
        settings = SamplingSettings.of(options)

        def latents_at(places: Tensor, _: int) -> Tensor:
            return self._latents(z[places.to(z.device)], labels[places.to(labels.device)], settings)

        drawn = self._in_batches(len(z), settings.batch_size, latents_at)
        drawn.warn()
        return drawn.pixels

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
        where = f"{self.device}, {self.dtype}{', compiled' * self.compiled}"
        return f"{type(self).__name__}({parts}, {of}, {self.config.num_classes} classes, {where})"

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

    def _in_batches(
        self, count: int, batch_size: int, latents_at: Callable[[Tensor, int], Tensor], *, redraws: int = 0
    ) -> Drawn:
        """Latents of places, and of so many more attempts where they are not finite -> images."""
        chunks, broken, left = [], 0, 0
        for places in torch.arange(count).split(batch_size):
            latents = latents_at(places, 0)
            bad = not_finite(latents)
            broken += int(bad.sum())
            for attempt in range(1, 1 + redraws):
                if bad.any():
                    latents[bad] = latents_at(places[bad.cpu()], attempt)
                    bad = not_finite(latents)
            left += int(bad.sum())
            chunks.append(self.codec.decode(latents).cpu())
        return Drawn(torch.cat(chunks), broken, left)

    def _latents(self, z: Tensor, labels: Tensor, settings: SamplingSettings) -> Tensor:
        sampler = self._prepare(settings.sampler, settings.strength)
        count, size = len(z), self._size_to_draw(len(z), settings.batch_size)
        z, labels = (F.pad(part.to(self.device), (0, 0) * (part.ndim - 1) + (0, size - count)) for part in (z, labels))
        drawn = sampler(self._drawing_networks(), z, labels, settings.strength)
        return self.to_latents(drawn.x[:count].float())

    def _size_to_draw(self, count: int, batch_size: int) -> int:
        """The batch size to draw so many images in: where each has graphs of its own, one of few."""
        if not self.compiled or self.device.type != "cuda":
            return count
        return min(batch_size, 1 << (count - 1).bit_length())

    @torch.inference_mode(False)  # copies that are made in it could not be differentiated later
    def _drawing_networks(self) -> Model:
        """The networks that draw: in the pipeline's precision, and captured if it is compiled."""
        if self._networks is None:
            changed = self.dtype != torch.float32 or self._layers
            self._networks = copied(self.model, self.dtype) if changed else self.model
            if self.compiled:
                self._networks = captured(self._networks, layers=self._layers)
        return self._networks

    def _given_noise(self, count: int, generator: torch.Generator | None, latents: Tensor | None) -> Tensor | None:
        """Noise in the prior's units, if it does not come from the seed."""
        shape = (count, *self.noise_shape)
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                raise InputError("Expected one torch.Generator; give a seed for noise of each image's own.")
            latents = torch.randn(shape, generator=generator, device=generator.device)
        if latents is None:
            return None
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape or not latents.isfinite().all():
            found = tuple(latents.shape) if hasattr(latents, "shape") else type(latents).__name__
            raise InputError(f"Expected latents as a tensor of shape {shape}, finite numbers; got {found}.")
        return self.model.flow.scale_noise(latents.to(self.device, torch.float32))

    def _prepare(self, sampler: Sampler, guidance: Guidance) -> Sampler:
        """What a sampler learns of this model is kept for the next call."""
        if (sampler, guidance) not in self._prepared:
            if len(self._prepared) >= KEPT:
                self._prepared.pop(next(iter(self._prepared)))  # the oldest
            self._prepared[sampler, guidance] = sampler.prepare(self.model, guidance)
        return self._prepared[sampler, guidance]


def copied(model: Model, dtype: torch.dtype) -> Model:
    """A model with copies of the networks, their weights in this precision."""
    reverse = deepcopy(model.reverse).to(dtype) if model.reverse else None
    return model._replace(flow=deepcopy(model.flow).to(dtype), reverse=reverse)


def captured(model: Model, *, layers: bool) -> Model:
    """A model whose networks are captured; with layers of the reverse model that are compiled, where that works."""
    if model.reverse and layers:
        compile_layers(model.reverse, model.flow.prior_variance.device)
    reverse = CapturedReverse(model.reverse) if model.reverse else None
    return model._replace(flow=CapturedFlow(model.flow), reverse=reverse)


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


def check_one_source(**sources: object) -> None:
    """Raise if noise would come from more than one source."""
    given = [name for name, source in sources.items() if source is not None]
    if len(given) > 1:
        raise InputError(f"Expected noise from one source; got {' and '.join(given)}. Give one of them.")


def not_finite(images: Tensor) -> Tensor:
    """Which images (B, P, H, W) hold a value that is no finite number: (B,)."""
    return ~images.isfinite().flatten(1).all(dim=1)
