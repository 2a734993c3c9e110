"""The user's object: a trained model with its codec, from noise to pictures and back."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self, TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor

from biflow.checkpoint import Model, load_model, save_model
from biflow.config import Average, ClassifyMethod, ClassifyNoise, ModelConfig, ScoreNoise
from biflow.data.images import to_pil, to_pixels
from biflow.data.randomness import normal_for
from biflow.editing import Edited, Editor, Redraw, Start, check_count, check_strength, to_mask
from biflow.errors import InputError
from biflow.evaluation.classify import Classification, classify_images
from biflow.evaluation.score import Scores, distance_from_noise, score_images
from biflow.models.codec import make_codec
from biflow.models.patches import unpatchify
from biflow.samplers import Sampler, find_sampler
from biflow.sampling.guidance import Guidance
from biflow.tarflow import load_tarflow

Images = Sequence[Image.Image] | Tensor
Labels = Sequence[int] | Tensor
BATCH_SIZE = 256  # of edits
REDRAWS = 4  # at most, of an image that is not finite


class Way(TypedDict, total=False):
    """How edits come back from noise; what is left out is as in `Pipeline.sample`."""

    guidance: float | Guidance
    method: str | Sampler
    seed: int


class Drawn(NamedTuple):
    """Images, and what went wrong with them."""

    pixels: Tensor  # uint8 (N, P, H, W), on the CPU; values that are no finite numbers are black
    broken: int  # images that held such values
    left: int  # those of them that still do, after they were drawn again if that was asked for


class Pipeline:
    """Sample, score, classify, encode and edit with one model folder.

    `guidance` counts from 0, which means none.  Every image has a noise of its own, drawn for
    (seed, place in the list), so the same seed gives the same images whatever the batch size.

    Edits take images as PIL, or uint8 (N, P, H, W), of the model's size, and labels, without which they are of no
    class; what they draw depends on the seed and on the image alone.  guidance and method are of the way back, as in
    `sample`.  docs/editing.md says what they do and what they are worth.

    >>> from biflow.checkpoint import new_model
    >>> from biflow.config import load_recipe
    >>> pipe = Pipeline(new_model(load_recipe("biflow_digits", small=True).model, tuple("0123456789")))
    >>> images, labels = pipe.sample([3, 8], seed=1), [3, 8]
    >>> z = pipe.encode(images, labels)
    >>> pipe.decode(z, labels) == pipe.reconstruct(images, labels) == pipe.reclass(images, labels, labels)
    True
    >>> lower_half = torch.arange(8)[:, None].expand(8, 8) >= 4
    >>> len(pipe.inpaint(images, lower_half, labels, proposals=3).images())  # of the first image, the likeliest first
    3
    >>> pipe.interpolate(images[:1], images[1:], labels=([3], [8]), steps=5).pixels.shape
    torch.Size([1, 5, 1, 8, 8])
    >>> pipe.vary(images, labels, strength=0.5, num=6).pixels.shape
    torch.Size([2, 6, 1, 8, 8])
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.codec = make_codec(model.config.codec)
        self.device = torch.device("cpu")
        self._prepared: dict[tuple[Sampler, Guidance], Sampler] = {}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a model folder, onto the CPU."""
        return cls(load_model(Path(folder)))

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
        """Write the model folder that `from_pretrained` reads."""
        save_model(self.model, Path(folder))

    def to(self, device: str | torch.device) -> Self:
        """Move the networks to a device."""
        self.device = torch.device(device)
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

    def sample(
        self,
        labels: Labels,
        *,
        guidance: float | Guidance = 0.0,
        method: str | Sampler = "reverse",
        seed: int = 0,
        batch_size: int = 256,
    ) -> list[Image.Image]:
        """Draw one image for each label.

        method "reverse" is the learned reverse model, one pass; "sequential" the exact inverse of the flow, patch
        by patch, then one score step against its noise; "jacobi", "gs-jacobi" and "refine" come to the same images,
        within a tolerance, in fewer calls one after another.  An object from `biflow.samplers` sets more, as
        `Jacobi(tolerance=1e-5)` does.  Bad arguments raise `InputError`.
        """
        pixels = self.sample_pixels(labels, guidance=guidance, method=method, seed=seed, batch_size=batch_size)
        return [to_pil(image) for image in pixels]

    def sample_pixels(
        self,
        labels: Labels,
        *,
        guidance: float | Guidance = 0.0,
        method: str | Sampler = "reverse",
        seed: int = 0,
        batch_size: int = 256,
        redraw: bool = False,
    ) -> Tensor:
        """The same images as `sample`, as uint8 (N, P, H, W) on the CPU.

        Images with values that are not finite numbers are counted in a warning; with `redraw` they are drawn again
        from other noise, a few times at most.
        """
        drawn = self.draw(
            labels, guidance=guidance, method=method, seed=seed, batch_size=batch_size, redraw=redraw, start=0
        )
        if drawn.broken:
            after = f" and were drawn again; {drawn.left} of them still do" if redraw else ""
            message = f"{drawn.broken} of {len(labels)} images hold values that are not finite numbers{after}."
            warnings.warn(message, stacklevel=2)
        return drawn.pixels

    def draw(
        self,
        labels: Labels,
        *,
        guidance: float | Guidance,
        method: str | Sampler,
        seed: int,
        batch_size: int,
        redraw: bool,
        start: int,
    ) -> Drawn:
        """The images at the places start, start + 1, ... of a longer list, which has these labels there."""
        labels = self.check_labels(labels)
        guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        sampler = self._prepare(find_sampler(method), guidance)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"Expected a batch size of 1 or more; got {batch_size}.")

        def latents_at(places: Tensor, attempt: int) -> Tensor:
            z = self.noise((start + places).tolist(), seed, attempt)
            return self.to_latents(sampler(self.model, z, labels[places].to(self.device), guidance).x)

        chunks, broken, left = [], 0, 0
        for places in torch.arange(len(labels)).split(batch_size):
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

    def log_prob(
        self,
        pixels: Tensor,
        labels: Labels | None = None,
        *,
        noise: ScoreNoise = "uniform",
        draws: int = 1,
        average: Average = "mean",
        seed: int = 0,
    ) -> Scores:
        """How likely images are, in nats and in bits per dimension, each (N,); without labels, of no class.

        pixels uint8 (N, P, H, W).  `biflow.evaluation.score.score_images` says what noise and average mean.
        """
        size, channels = self.config.image_size, self.config.channels
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (channels, size, size) or pixels.dtype != torch.uint8:
            raise InputError(
                f"Expected uint8 images of shape (N, {channels}, {size}, {size}); "
                f"got {tuple(pixels.shape)} {pixels.dtype}."
            )
        labels = self._labels_of(labels, pixels)
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
        """Which class each image is of, by the likelihood of the flow: logits and probabilities (N, K), labels (N,).

        images: PIL, or uint8 (N, P, H, W), of the model's size.  method "gradient" is one forward and one backward pass
        for any number of classes (FlowBack, arXiv 2511.22345, algorithm 1); "steps" follows the gradient in ten steps;
        "bayes" tries every class, one pass for each.  `biflow.evaluation.classify` says what noise and draws mean.
        """
        pixels = self._of_the_models_size(images)
        return classify_images(self.model, pixels, codec=self.codec, method=method, noise=noise, draws=draws, seed=seed)

    def certify(self, images: Images, labels: Labels, *, seed: int = 0) -> Tensor:
        """How far sampled images lie from what the flow makes of their noise: (N,), the less the better.

        images: all that `sample(labels, seed=seed)` gave, in its order, or uint8 (N, P, H, W).  Each goes through the
        flow once, and is measured by the root mean square distance of where it lands from the noise it was sampled
        from.  A sample that lands far off is likelier to be a bad one: docs/one-pass.md.
        """
        pixels = self._of_the_models_size(images)
        labels = self._labels_of(labels, pixels)
        z = self.noise(range(len(pixels)), seed)
        return distance_from_noise(self.model, pixels, labels, z=z, codec=self.codec)

    def encode(self, images: Images, labels: Labels | None = None, *, seed: int = 0) -> Tensor:
        """The noise that the flow carries images to: z (N, T, D), on the pipeline's device, in the prior's units.

        The images get the flow's training noise first, drawn for the seed and their own values.
        """
        return self._editor(seed=seed).encode(*self._to_edit(images, labels))

    def decode(self, z: Tensor, labels: Labels, **way: Unpack[Way]) -> list[Image.Image]:
        """The images that noise z (N, T, D), in the prior's units, stands for."""
        labels, shape = self.check_labels(labels), (self.config.num_patches, self.config.patch_dim)
        if tuple(z.shape) != (len(labels), *shape):
            raise InputError(f"Expected noise of shape {(len(labels), *shape)}, for the labels; got {tuple(z.shape)}.")
        return [to_pil(each) for each in self._editor(**way).decode(z, labels)]

    def reconstruct(self, images: Images, labels: Labels | None = None, **way: Unpack[Way]) -> list[Image.Image]:
        """Images to noise and back: what of them every edit keeps at best."""
        return [to_pil(each) for each in self._editor(**way).reconstruct(*self._to_edit(images, labels))]

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
        **way: Unpack[Way],
    ) -> Edited:
        """Redraw what the mask says: for each image some proposals, the likeliest first, with their log-densities.

        mask: a PIL image, white where to redraw, or bool (H, W) or (N, H, W).  Known patches keep their noise, every
        patch that the mask touches gets new noise (BiFlow, eq. 6).  rounds: how often the whole is encoded again with
        what was drawn, after a start with a draw from the new noise, or grey.  paste puts the known pixels back.
        """
        check_count(proposals, "proposals")
        check_count(rounds, "rounds")
        if start not in {"draw", "grey"}:
            raise InputError(f"Expected start 'draw' or 'grey'; got {start!r}.")
        pixels, labels = self._to_edit(images, labels)
        plan = Redraw(to_mask(mask, pixels), proposals, rounds, start, paste)
        return self._editor(**way).inpaint(pixels, labels, plan)

    def reclass(self, images: Images, labels: Labels, targets: Labels, **way: Unpack[Way]) -> list[Image.Image]:
        """Images of these labels as images of others, one target for each, from the same noise (BiFlow)."""
        pixels, labels = self._to_edit(images, labels)
        targets = self._labels_of(targets, pixels)
        return [to_pil(each) for each in self._editor(**way).reclass(pixels, labels, targets)]

    def interpolate(
        self,
        first: Images,
        last: Images,
        *,
        labels: tuple[Labels, Labels] | None = None,
        steps: int = 7,
        **way: Unpack[Way],
    ) -> Edited:
        """From each first image to its last, over the arc between their noises; the ends are their reconstructions.

        labels: of the first and of the last images; before the middle the first label holds, from it on the last.
        """
        (start, start_labels), (end, end_labels) = map(self._to_edit, (first, last), labels or (None, None))
        if len(start) != len(end):
            raise InputError(f"Expected as many last images as first ones; got {len(end)} for {len(start)}.")
        return self._editor(**way).interpolate((start, end), (start_labels, end_labels), steps)

    def vary(
        self, images: Images, labels: Labels | None = None, *, strength: float = 0.3, num: int = 6, **way: Unpack[Way]
    ) -> Edited:
        """Images near each of these: strength 0 is the reconstruction, 1 a sample of the class."""
        check_strength(strength)
        check_count(num, "variations")
        return self._editor(**way).vary(*self._to_edit(images, labels), strength=strength, num=num)

    def noise(self, places: Sequence[int], seed: int, attempt: int = 0) -> Tensor:
        """The noise that images at these places start from: (len(places), T, D), on the pipeline's device.

        attempt: above 0 where the images of the attempts before were not finite.
        """
        check_seed(seed)
        shape, keys = (self.config.num_patches, self.config.patch_dim), [attempt] if attempt else []
        return self.model.flow.scale_noise(normal_for(places, shape, "sample", seed, *keys).to(self.device))

    def to_latents(self, patches: Tensor) -> Tensor:
        """Patches (B, T, D) -> what the codec decodes, (B, P, H, W)."""
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
            if not last:
                raise InputError(
                    f"Expected label 0 only, for no class: this model is unconditional; got {wrong[0].item()}."
                )
            raise InputError(f"Expected labels from 0 to {last - 1}, or {last} for no class; got {wrong[0].item()}.")
        return checked.long()

    def _editor(self, guidance: float | Guidance = 0.0, method: str | Sampler = "reverse", seed: int = 0) -> Editor:
        check_seed(seed)
        strength = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        sampler = find_sampler(method)

        def decode(z: Tensor, labels: Tensor) -> Tensor:
            way, chunks, broken = self._prepare(sampler, strength), [], 0
            for part, given in zip(z.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
                latents = self.to_latents(way(self.model, part.to(self.device), given.to(self.device), strength).x)
                broken += int(not_finite(latents).sum())
                chunks.append(self.codec.decode(latents).cpu())
            if broken:
                warnings.warn(f"{broken} of {len(z)} images hold values that are not finite numbers.", stacklevel=2)
            return torch.cat(chunks)

        return Editor(self.model, self.codec, decode, seed)

    def _to_edit(self, images: Images, labels: Labels | None) -> tuple[Tensor, Tensor]:
        pixels = self._of_the_models_size(images)
        return pixels.cpu(), self._labels_of(labels, pixels)

    def _labels_of(self, labels: Labels | None, pixels: Tensor) -> Tensor:
        """One label for each image; without any, of no class."""
        labels = self.check_labels([self.config.null_label] * len(pixels) if labels is None else labels)
        if len(labels) != len(pixels):
            raise InputError(f"Expected one label for each of {len(pixels)} images; got {len(labels)}.")
        return labels

    def _of_the_models_size(self, images: Images) -> Tensor:
        """Images as uint8 (N, P, H, W), or an error that says which the model takes."""
        pixels = to_pixels(images)
        found = self.codec.latent_shape(tuple(pixels.shape[1:]))
        wanted = (self.config.channels, self.config.image_size, self.config.image_size)
        if found != wanted:
            raise InputError(
                f"Expected images whose codec gives {wanted}; got {found}. Bring them to the model's channels and size."
            )
        return pixels

    def _prepare(self, sampler: Sampler, guidance: Guidance) -> Sampler:
        """What a sampler learns of this model is kept for the next call."""
        if (sampler, guidance) not in self._prepared:
            self._prepared[sampler, guidance] = sampler.prepare(self.model, guidance)
        return self._prepared[sampler, guidance]


def check_seed(seed: int) -> None:
    """Raise unless this is a whole number."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"Expected a whole number as seed; got {seed!r}.")


def not_finite(images: Tensor) -> Tensor:
    """Which images (B, P, H, W) hold a value that is no finite number: (B,)."""
    return ~images.isfinite().flatten(1).all(dim=1)
