"""The user's object: a trained model with its codec, from noise to pictures and back."""

from collections.abc import Sequence
from typing import Any, Unpack

from PIL import Image
from torch import Tensor

from biflow.class_labels import Labels
from biflow.config import Average, ClassifyMethod, ClassifyNoise, ScoreNoise
from biflow.data.images import to_pil, to_pixels
from biflow.editing import Edited, Editor, Redraw, Start, check_count, check_strength, to_mask
from biflow.errors import InputError
from biflow.evaluation.classify import Classification, classify_images
from biflow.evaluation.score import Scores, distance_from_noise, score_images
from biflow.sampling_options import SamplingOptions, SamplingSettings, check_seed
from biflow.sampling_pipeline import Drawn, ImagePipelineOutput, SamplingPipeline

__all__ = ["Drawn", "ImagePipelineOutput", "Images", "Labels", "Pipeline", "SamplingOptions"]

Images = Sequence[Image.Image] | Tensor


class Pipeline(SamplingPipeline):
    """Sample, score, classify, encode and edit with one model folder.

    `guidance` counts from 0, which means none.  Every image has a noise of its own, drawn for
    (seed, place in the list), so the same seed gives the same images whatever the batch size.

    Edits take images as PIL, or uint8 (N, P, H, W), of the model's size, and labels, without which they are of no
    class; what they draw depends on the seed and on the image alone.  guidance and method are of the way back, as in
    `sample`.  docs/editing.md says what they do and what they are worth.
    """

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
        """How likely images are, in nats and in bits per dimension, each (N,); without labels, of no class.

        images: PIL, or uint8 (N, P, H, W), of the model's size.  `biflow.evaluation.score.score_images` says what noise
        and average mean.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> scores = pipe.log_prob(pipe.sample_pixels([3, 1]), [3, 1])
        >>> scores.nats.shape, scores.bits_per_dim.shape
        (torch.Size([2]), torch.Size([2]))
        """
        check_seed(seed)
        pixels = self._of_the_models_size(images)
        labels = self._labels_of(labels, pixels)
        with self.in_precision():
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

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> found = pipe.classify(pipe.sample([3, 1]))
        >>> found.labels.shape, found.probabilities.shape
        (torch.Size([2]), torch.Size([2, 10]))
        """
        check_seed(seed)
        pixels = self._of_the_models_size(images)
        how: Any = {"method": method, "noise": noise, "draws": draws, "seed": seed}
        with self.in_precision():
            return classify_images(self.model, pixels, codec=self.codec, **how)

    def certify(self, images: Images, labels: Labels | None = None, *, seed: int = 0) -> Tensor:
        """How far sampled images lie from what the flow makes of their noise: (N,), the less the better.

        images: all that `sample(labels, seed=seed)` gave, in its order, or uint8 (N, P, H, W).  Each goes through the
        flow once, and is measured by the root mean square distance of where it lands from the noise it was sampled
        from.  A sample that lands far off is likelier to be a bad one: docs/one-pass.md.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> pipe.certify(pipe.sample([3, 1], seed=5), [3, 1], seed=5).shape
        torch.Size([2])
        """
        pixels = self._of_the_models_size(images)
        labels = self._labels_of(labels, pixels)
        z = self.noise(range(len(pixels)), seed)
        with self.in_precision():
            return distance_from_noise(self.model, pixels, labels, z=z, codec=self.codec)

    def encode(self, images: Images, labels: Labels | None = None, *, seed: int = 0) -> Tensor:
        """The noise that the flow carries images to: z (N, T, D), on the pipeline's device, in the prior's units.

        The images get the flow's training noise first, drawn for the seed and their own values.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> pipe.encode(pipe.sample([3, 1]), [3, 1]).shape
        torch.Size([2, 16, 4])
        """
        return self._editor(seed=seed).encode(*self._to_edit(images, labels))

    def decode(self, z: Tensor, labels: Labels, **options: Unpack[SamplingOptions]) -> list[Image.Image]:
        """The images that noise z (N, T, D), in the prior's units, stands for.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> images = pipe.sample([3, 1])
        >>> len(pipe.decode(pipe.encode(images, [3, 1]), [3, 1]))
        2
        """
        labels, shape = self.check_labels(labels), (self.config.num_patches, self.config.patch_dim)
        if tuple(z.shape) != (len(labels), *shape):
            raise InputError(f"Expected noise of shape {(len(labels), *shape)}, for the labels; got {tuple(z.shape)}.")
        return [to_pil(each) for each in self._editor(**options).decode(z.float(), labels)]

    def reconstruct(
        self, images: Images, labels: Labels | None = None, **options: Unpack[SamplingOptions]
    ) -> list[Image.Image]:
        """Images to noise and back: what of them every edit keeps at best.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> [image.size for image in pipe.reconstruct(pipe.sample([3, 1]), [3, 1])]
        [(8, 8), (8, 8)]
        """
        return [to_pil(each) for each in self._editor(**options).reconstruct(*self._to_edit(images, labels))]

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
        """Redraw what the mask says: for each image some proposals, the likeliest first, with their log-densities.

        mask: a PIL image, white where to redraw, or bool (H, W) or (N, H, W).  Known patches keep their noise, every
        patch that the mask touches gets new noise (BiFlow, eq. 6).  rounds: how often the whole is encoded again with
        what was drawn, after a start with a draw from the new noise, or grey.  paste puts the known pixels back.

        >>> import torch
        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> lower_half = torch.arange(8)[:, None].expand(8, 8) >= 4
        >>> found = pipe.inpaint(pipe.sample([3]), lower_half, [3], proposals=3)
        >>> len(found.images()), bool((found.nats.diff() <= 0).all())  # the likeliest first
        (3, True)
        """
        check_count(proposals, "proposals")
        check_count(rounds, "rounds")
        if start not in {"draw", "grey"}:
            raise InputError(f"Expected start 'draw' or 'grey'; got {start!r}.")
        pixels, labels = self._to_edit(images, labels)
        plan = Redraw(to_mask(mask, pixels), proposals, rounds, start, paste)
        return self._editor(**options).inpaint(pixels, labels, plan)

    def reclass(
        self, images: Images, labels: Labels, targets: Labels, **options: Unpack[SamplingOptions]
    ) -> list[Image.Image]:
        """Images of these labels as images of others, one target for each, from the same noise (BiFlow).

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> len(pipe.reclass(pipe.sample([3, 1]), [3, 1], [8, 8]))
        2
        """
        pixels, labels = self._to_edit(images, labels)
        targets = self._labels_of(targets, pixels)
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
        """From each first image to its last, over the arc between their noises; the ends are their reconstructions.

        labels: of the first and of the last images; before the middle the first label holds, from it on the last.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> three, eight = pipe.sample([3]), pipe.sample([8])
        >>> pipe.interpolate(three, eight, labels=([3], [8]), steps=5).pixels.shape
        torch.Size([1, 5, 1, 8, 8])
        """
        (start, start_labels), (end, end_labels) = map(self._to_edit, (first, last), labels or (None, None))
        if len(start) != len(end):
            raise InputError(f"Expected as many last images as first ones; got {len(end)} for {len(start)}.")
        return self._editor(**options).interpolate((start, end), (start_labels, end_labels), steps)

    def vary(
        self,
        images: Images,
        labels: Labels | None = None,
        *,
        strength: float = 0.3,
        num: int = 6,
        **options: Unpack[SamplingOptions],
    ) -> Edited:
        """Images near each of these: strength 0 is the reconstruction, 1 a sample of the class.

        >>> from biflow import Pipeline
        >>> pipe = Pipeline.from_recipe("biflow_digits")
        >>> pipe.vary(pipe.sample([3]), [3], strength=0.5, num=6).pixels.shape
        torch.Size([1, 6, 1, 8, 8])
        """
        check_strength(strength)
        check_count(num, "variations")
        return self._editor(**options).vary(*self._to_edit(images, labels), strength=strength, num=num)

    def _editor(self, **options: Unpack[SamplingOptions]) -> Editor:
        seed = SamplingSettings.of(options).seed
        return Editor(self.model, self.codec, lambda z, labels: self.pixels_from(z, labels, **options), seed)

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
        wanted = self.codec.image_shape(self.config)
        if tuple(pixels.shape[1:]) != wanted:
            raise InputError(
                f"Expected images of shape (N, {', '.join(map(str, wanted))}); got {tuple(pixels.shape)}. "
                "Bring them to the model's channels and size."
            )
        return pixels
