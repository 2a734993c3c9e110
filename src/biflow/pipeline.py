"""The user's object: sample, score, classify, encode and edit with one model folder."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from PIL import Image
from torch import Tensor

from biflow.checkpoint import load_model, load_training, save_model
from biflow.config import Average, ClassifyMethod, ClassifyNoise, ModelConfig, ReadingConfig, ScoreNoise, load_recipe
from biflow.config.records import reading_of
from biflow.data.images import Images, to_pil
from biflow.data.labels import Labels
from biflow.data.mask import to_mask
from biflow.errors import check_number
from biflow.hub.repository import find_model, upload, write_upload
from biflow.hub.tarflow import load_tarflow
from biflow.inference.classify import Classification, classify_images
from biflow.inference.edit import Edited, Editor, Start, label_pair
from biflow.inference.likelihood import Scores, cycle_error, score_images
from biflow.models.model import Model, new_model
from biflow.sampling.diffusers import ImagePipelineOutput, OutputType, as_output, given_labels, given_noise, guidance_of
from biflow.sampling.draw import REDRAWS, Drawn, Engine
from biflow.sampling.options import SamplingOptions, SamplingSettings, check_indices
from biflow.sampling.samplers import Sampler
from biflow.tensors import check_device, check_precision


class Pipeline:
    """A trained model with everything it is used for: sampling, likelihood, classification, encoding and editing.

    `guidance=0` turns guidance off.  Each image has noise of its own, drawn for (seed, index), so the same seed gives
    the same images at any batch size.

    >>> from biflow import Pipeline
    >>> pipe = Pipeline.from_recipe("biflow_digits")  # random weights; see also from_pretrained
    >>> pipe.sample([3, 1, 4], guidance=0.25, seed=0)[0].size
    (8, 8)
    """

    def __init__(self, model: Model, training: Mapping[str, Any] | None = None) -> None:
        self.model, self.training = model, training
        self.model.codec.to(model.device)  # a codec that is missing is missed here
        self.engine = Engine(model)

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
        """Load a model folder, or a Hugging Face repository `owner/name`, onto the CPU.

        revision: branch, tag or commit of a repository.  local_files_only: use files already downloaded.
        torch_dtype: see `to`.
        """
        folder = find_model(name, revision=revision, token=token, local_files_only=local_files_only)
        return cls(load_model(folder), load_training(folder)).to(dtype=torch_dtype)

    @classmethod
    def from_recipe(cls, name: str, overrides: Sequence[str] = (), *, seed: int = 0) -> Self:
        """An untrained model of a recipe's sizes, to check shapes and to time it.

        >>> Pipeline.from_recipe("biflow_digits", ["model.flow.blocks=2"])
        Pipeline(flow and reverse model, 8x8x1, 10 classes, cpu, torch.float32)
        """
        check_number(seed, "seed", whole=True)
        config = load_recipe(name, overrides).model
        return cls(new_model(config, tuple(str(label) for label in range(config.num_classes)), seed=seed).frozen())

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
        """Load a published ml-tarflow checkpoint; see `biflow.hub.tarflow.load_tarflow`."""
        facts: Any = {"noise_std": noise_std, "image_size": image_size, "class_names": class_names, "codec": codec}
        return cls(load_tarflow(Path(file), **facts))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that `from_pretrained` loads."""
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
        """Upload the model with its card to a Hugging Face repository `owner/name`; returns the URL.

        evaluation: an evaluation.json of `biflow evaluate`, for the card.  licence: of the weights, "apache-2.0" say.
        """
        write = partial(self.save_for_hub, repository=repository, evaluation=evaluation, licence=licence)
        return upload(write, repository, private=private, token=token)

    def save_for_hub(
        self, folder: Path, repository: str, *, evaluation: str | Path | None = None, licence: str | None = None
    ) -> None:
        """Write what `push_to_hub` uploads: model folder, card, and samples if there is a reverse model."""
        facts: Any = {"training": self.training, "evaluation": evaluation, "licence": licence}
        write_upload(self.model, folder, repository, samples=self.sample_pixels, **facts)

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the model to a device, and choose the precision it computes in.

        dtype: float32, bfloat16 or float16.  In half precision, images are sampled by half-precision copies of the
        networks; likelihoods, classes and encodings use float32 weights under autocast; affine maps and
        log-determinants stay float32.  The copies are made at the first sample, from the weights at that time.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        dtype = check_precision(dtype or self.dtype)
        self.model.to(check_device(device or self.device))
        self.engine = self.engine.in_precision(dtype)
        return self

    def compile(self, dtype: torch.dtype | None = None, *, layers: bool = True) -> Self:
        """Sample at the speed of the hardware, after one slower call per batch size.

        On a GPU, network calls become CUDA graphs.  layers: also compile the layers of the reverse model with
        torch.compile; gains little on a CPU.  dtype: as in `to`; by default bfloat16 instead of float32 on a GPU.  Not
        thread-safe.

        >>> pipe = pipe.to("cuda").compile()  # doctest: +SKIP
        """
        self.engine.compiled, self.engine.layers = True, layers
        half = self.device.type == "cuda" and self.dtype == torch.float32
        return self.to(dtype=dtype or (torch.bfloat16 if half else self.dtype))

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model and its images."""
        return self.model.config

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.model.class_names

    @property
    def reading(self) -> ReadingConfig:
        """How the training images were read, and how biflow's commands read images for this model by default."""
        return reading_of(self.training)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision it computes in."""
        return self.engine.dtype

    def __repr__(self) -> str:
        """Networks, sizes, device and precision."""
        size, parts = self.config.image_size, "flow and reverse model" if self.model.reverse else "flow"
        where = f"{self.device}, {self.dtype}{', compiled' * self.engine.compiled}"
        classes = f"{self.config.num_classes} classes"
        return f"{type(self).__name__}({parts}, {size}x{size}x{self.config.channels}, {classes}, {where})"

    def __call__(  # noqa: PLR0913  the arguments of diffusers' pipelines
        self,
        class_labels: int | str | Labels | None = None,
        *,
        guidance_scale: float | None = 1.0,
        method: str | Sampler = "reverse",
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample with the arguments of diffusers' class-conditional pipelines; without labels, one image of no class.

        guidance_scale: 1 turns guidance off; 1 + w is our guidance of w.  The noise comes from the seed, from the
        generator, or from `latents` (N, T, D), standard normal.  output_type: "pil", or "np" (N, H, W, P) or "pt"
        (N, P, H, W), float32 in [0, 1].

        >>> pipe([3, "8"], guidance_scale=1.25, output_type="np").images.shape
        (2, 8, 8, 1)
        """
        guidance = guidance_of(guidance_scale, num_inference_steps)
        labels = self.model.check_labels(given_labels(class_labels, self.config.null_label))
        options: SamplingOptions = {"guidance": guidance, "method": method, "seed": seed or 0}
        shape = len(labels), *self.config.noise_shape
        noise = given_noise(shape, seed=seed, generator=generator, latents=latents)
        if noise is None:
            pixels = self.sample_pixels(labels, **options)
        else:
            z = self.model.flow.scale_noise(noise.to(self.device, torch.float32))
            pixels = self.decode_pixels(z, labels, **options)
        images = as_output(pixels, output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def sample(self, labels: Labels, **options: Unpack[SamplingOptions]) -> list[Image.Image]:
        """One image for each label; `SamplingOptions` has the keyword arguments.

        >>> [image.size for image in pipe.sample([3, 1], guidance=0.25, seed=0)]
        [(8, 8), (8, 8)]
        """
        return [to_pil(image) for image in self.sample_pixels(labels, **options)]

    def sample_pixels(self, labels: Labels, *, redraw: bool = False, **options: Unpack[SamplingOptions]) -> Tensor:
        """The images of `sample` as uint8 (N, P, H, W), on the CPU.

        Images that contain NaN or Inf are counted in a warning; with `redraw` they are resampled from other noise.
        """
        drawn = self.draw(labels, redraw=redraw, **options)
        drawn.warn(redraw=redraw)
        return drawn.pixels

    def draw(
        self, labels: Labels, *, start: int = 0, redraw: bool = False, **options: Unpack[SamplingOptions]
    ) -> Drawn:
        """The images at the indices start, start + 1, ... of a longer list that has these labels there."""
        settings = SamplingSettings.of(options)
        return self.engine.sample(self.model.check_labels(labels), settings, start=start, redraws=REDRAWS * redraw)

    def noise(self, indices: Sequence[int], seed: int) -> Tensor:
        """The noise z (N, T, D) that the images at these indices start from, in the prior's units."""
        return self.engine.noise(check_indices(indices), seed)

    def log_prob(
        self,
        images: Images,
        labels: Labels | None = None,
        *,
        noise: ScoreNoise = "uniform",
        draws: int = 1,
        average: Average = "mean",
        seed: int = 0,
    ) -> Scores:
        """Log-likelihood of images in nats and bits per dimension, each (N,); without labels, of no class.

        labels: one for each image, or one for all.  noise, draws, average: see
        `biflow.inference.likelihood.score_images`.

        >>> scores = pipe.log_prob(pipe.sample_pixels([3, 1]), [3, 1])
        >>> scores.nats.shape, scores.bits_per_dim.shape
        (torch.Size([2]), torch.Size([2]))
        """
        pixels, labels = self.model.check_images(images, labels)
        with self._in_precision():
            return score_images(self.model, pixels, labels, noise=noise, draws=draws, average=average, seed=seed)

    def classify(
        self,
        images: Images,
        *,
        method: ClassifyMethod = "gradient",
        noise: ClassifyNoise = "training",
        draws: int = 1,
        seed: int = 0,
    ) -> Classification:
        """Classify images by the flow's likelihood: logits and probabilities (N, K), labels (N,).

        method: "gradient" takes one forward and one backward pass for any number of classes (FlowBack, arXiv
        2511.22345, algorithm 1); "steps" follows the gradient in ten steps; "bayes" evaluates every class.  noise,
        draws: see `biflow.inference.classify.classify_images`.

        >>> found = pipe.classify(pipe.sample([3, 1]))
        >>> found.labels.shape, found.probabilities.shape
        (torch.Size([2]), torch.Size([2, 10]))
        """
        pixels, _ = self.model.check_images(images)
        with self._in_precision():
            return classify_images(self.model, pixels, method=method, noise=noise, draws=draws, seed=seed)

    def certify(self, images: Images, labels: Labels | None = None, *, seed: int = 0) -> Tensor:
        """Cycle error of sampled images: (N,), lower is better.

        images: all that `sample(labels, seed=seed)` gave, in its order.  Each goes through the flow once; the error is
        the root mean square distance between where it lands and the noise it was sampled from.  Samples with a large
        error are more often bad (docs/one-pass.md).

        >>> pipe.certify(pipe.sample([3, 1], seed=5), [3, 1], seed=5).shape
        torch.Size([2])
        """
        pixels, labels = self.model.check_images(images, labels)
        z = self.noise(range(len(pixels)), seed)
        with self._in_precision():
            return cycle_error(self.model, pixels, labels, z=z)

    def encode(self, images: Images, labels: Labels | None = None, *, seed: int = 0) -> Tensor:
        """Map images to noise z (N, T, D), in the prior's units, on the pipeline's device.

        The images first get the flow's training noise, drawn for the seed and their own values.

        >>> pipe.encode(pipe.sample([3, 1]), [3, 1]).shape
        torch.Size([2, 16, 4])
        """
        return self._editor(seed=seed).encode(*self.model.check_images(images, labels))

    def decode(self, z: Tensor, labels: Labels, **options: Unpack[SamplingOptions]) -> list[Image.Image]:
        """Map noise z (N, T, D), in the prior's units, to images.

        >>> len(pipe.decode(pipe.encode(pipe.sample([3, 1]), [3, 1]), [3, 1]))
        2
        """
        return [to_pil(each) for each in self.decode_pixels(z, labels, **options)]

    def decode_pixels(self, z: Tensor, labels: Labels, **options: Unpack[SamplingOptions]) -> Tensor:
        """The images of `decode` as uint8 (N, P, H, W), on the CPU."""
        drawn = self.engine.decode(z, self.model.check_labels(labels), SamplingSettings.of(options))
        drawn.warn()
        return drawn.pixels

    def reconstruct(
        self, images: Images, labels: Labels | None = None, **options: Unpack[SamplingOptions]
    ) -> list[Image.Image]:
        """Encode images and decode them again: the most that an edit can keep of them.

        >>> [image.size for image in pipe.reconstruct(pipe.sample([3, 1]), [3, 1])]
        [(8, 8), (8, 8)]
        """
        return [to_pil(each) for each in self._editor(**options).reconstruct(*self.model.check_images(images, labels))]

    def inpaint(
        self,
        images: Images,
        mask: Image.Image | Tensor,
        labels: Labels | None = None,
        *,
        proposals: int = 4,
        rounds: int = 2,
        start: Start = "draw",
        paste: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> Edited:
        """Resample the masked part of images: some proposals for each, ranked by log-likelihood, most likely first.

        mask: a PIL image, white where to resample, or bool (H, W) or (N, H, W).  Known patches keep their noise, every
        patch that the mask touches gets new noise (BiFlow, eq. 6).  rounds: how often the result is encoded again,
        starting from a decoding of the new noise ("draw") or from grey.  paste: put the known pixels back.

        >>> mask = torch.arange(8)[:, None].expand(8, 8) >= 4  # the lower half
        >>> found = pipe.inpaint(pipe.sample([3]), mask, [3], proposals=3)
        >>> len(found.images()), bool((found.nats.diff() <= 0).all())
        (3, True)
        """
        pixels, labels = self.model.check_images(images, labels)
        return self._editor(**options).inpaint(
            pixels, labels, to_mask(mask, pixels), proposals=proposals, rounds=rounds, start=start, paste=paste
        )

    def reclass(
        self, images: Images, labels: Labels, targets: Labels, **options: Unpack[SamplingOptions]
    ) -> list[Image.Image]:
        """Decode the noise of images under other labels, one target for each (BiFlow).

        >>> len(pipe.reclass(pipe.sample([3, 1]), [3, 1], [8, 8]))
        2
        """
        pixels, labels = self.model.check_images(images, labels)
        targets = self.model.check_labels(targets, count=len(pixels))
        return [to_pil(each) for each in self._editor(**options).reclass(pixels, labels, targets)]

    def interpolate(
        self,
        first: Images,
        last: Images,
        *,
        labels: tuple[Labels, Labels] | None = None,
        steps: int = 7,
        **options: Unpack[SamplingOptions],
    ) -> Edited:
        """Interpolate spherically between the noises of image pairs; both ends are reconstructions.

        labels: of the first and of the last images; the label changes at the midpoint.

        >>> pipe.interpolate(pipe.sample([3]), pipe.sample([8]), labels=([3], [8]), steps=5).pixels.shape
        torch.Size([1, 5, 1, 8, 8])
        """
        given = zip((first, last), label_pair(labels), strict=True)
        (start, start_labels), (end, end_labels) = (self.model.check_images(*each) for each in given)
        return self._editor(**options).interpolate((start, end), (start_labels, end_labels), steps=steps)

    def vary(
        self,
        images: Images,
        labels: Labels | None = None,
        *,
        strength: float = 0.3,
        num: int = 6,
        **options: Unpack[SamplingOptions],
    ) -> Edited:
        """Variations of images: strength 0 is the reconstruction, 1 a new sample of the class.

        >>> pipe.vary(pipe.sample([3]), [3], strength=0.5, num=6).pixels.shape
        torch.Size([1, 6, 1, 8, 8])
        """
        return self._editor(**options).vary(*self.model.check_images(images, labels), strength=strength, num=num)

    def _in_precision(self) -> torch.autocast:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if enabled else torch.bfloat16, enabled=enabled)

    def _editor(self, **options: Unpack[SamplingOptions]) -> Editor:
        seed = SamplingSettings.of(options).seed
        return Editor(self.model, lambda z, labels: self.decode_pixels(z, labels, **options), seed)
