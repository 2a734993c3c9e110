"""What the tabs compute, without Gradio: class names and files in, images and text out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn

from biflow.config import ClassifyMethod
from biflow.console import counted
from biflow.data.images import to_pixels
from biflow.data.pictures import Picture, Pictures, read_pictures
from biflow.data.sheet import painted
from biflow.errors import InputError, check_number, choose
from biflow.pipeline import Pipeline
from biflow.sampling.options import SamplingOptions
from biflow.sampling.samplers import SAMPLERS

MAX_IMAGES = 100
MAX_PIXELS = 64_000_000  # of an upload, by its header
MAX_COMPARED = 16  # images per sampling method
MAX_RESULTS = 12  # of an edit
MAX_BAYES_CLASSES = 50  # with more classes, the default classification method is one gradient
TOP_K, MIN_PROBABILITY = 3, 0.001  # classes listed for an image
BATCH_SIZE = 64
DEFAULT_MAX_GUIDANCE = 3.0  # for models that were not trained up to a given guidance
NO_CLASS = "no class"
STRENGTH_INFO = "0 reconstructs the image; 1 samples new images of its class."


class Figure(NamedTuple):
    """An image with its caption."""

    pixels: Tensor  # uint8 (P, H, W)
    title: str = ""
    lines: Sequence[str] = ()


class Section(NamedTuple):
    """Figures under a heading."""

    heading: str
    figures: Sequence[Figure]
    details: str = ""  # beside the heading


class TabResult(NamedTuple):
    """The result of a tab."""

    summary: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Backend:
    """Runs a model for the tabs; invalid input raises `InputError`."""

    pipe: Pipeline
    max_images: int = MAX_IMAGES  # per request

    @cached_property
    def class_names(self) -> list[str]:
        """Unique names by label, "no class" last; empty for an unconditional model."""
        count = self.pipe.config.num_classes
        if not count:
            return []
        names = [*(self.pipe.class_names or map(str, range(count))), NO_CLASS]
        return [f"{name} ({i})" if names.count(name) > 1 and i < count else name for i, name in enumerate(names)]

    @property
    def methods(self) -> dict[str, str]:
        """Title -> name of the samplers that this model supports."""
        networks = self.pipe.model.networks
        return {each.title: name for name, each in SAMPLERS.items() if set(each.uses) <= set(networks)}

    @property
    def max_guidance(self) -> float:
        """The upper end of the guidance slider: what the reverse model was trained up to, if it was; 0 hides it."""
        reverse = self.pipe.config.reverse
        if not self.class_names:
            return 0.0
        return reverse.max_guidance if reverse and reverse.guidance == "trained" else DEFAULT_MAX_GUIDANCE

    @property
    def has_likelihood(self) -> bool:
        """Whether the model gives the likelihood of images: true in pixel space, false for latents."""
        return self.pipe.config.codec == "pixels"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(P, H, W), in pixels."""
        return self.pipe.model.image_shape

    @property
    def classify_method(self) -> ClassifyMethod:
        """The most accurate classification method that is fast enough to wait for."""
        return "bayes" if self.pipe.config.num_classes <= MAX_BAYES_CLASSES else "gradient"

    def model_summary(self) -> str:
        """The model in one line."""
        channels, size, _ = self.image_shape
        count, flow, reverse = self.pipe.config.num_classes, self.pipe.model.flow, self.pipe.model.reverse
        colour = "greyscale" if channels == 1 else "colour"
        return ", ".join(
            [
                f"{size}x{size} {colour} images",
                f"{count} classes" if count else "unconditional",
                f"{counted(self.pipe.config.flow.blocks, 'flow block')} ({parameter_count(flow)} parameters)",
                f"reverse model ({parameter_count(reverse)} parameters)" if reverse else "no reverse model",
            ]
        )

    def labels(self, names: Sequence[str]) -> list[int]:
        """Labels of class names."""
        if not self.class_names:
            return [self.pipe.config.null_label for _ in names]
        known = {name: label for label, name in enumerate(self.class_names)}
        return [choose(known, name, "class") for name in names]

    def cycle_labels(self, names: Sequence[str], count: int, max_count: int) -> Tensor:
        """Labels (count,) that cycle through the given classes, by default through all."""
        check_number(count, "the number of images", least=1, most=max_count, whole=True)
        labels = torch.tensor(self.labels(names) or list(range(max(1, self.pipe.config.num_classes))))
        return labels[torch.arange(count) % len(labels)]

    def sample(self, classes: Sequence[str], count: int, **options: Unpack[SamplingOptions]) -> TabResult:
        """Sample images, cycling through the given classes."""
        labels = self.cycle_labels(classes, count, self.max_images)
        pixels, seconds, notes = self._sample(labels, options)
        summary = f"{counted(count, 'image')} in {format_seconds(seconds)} (seed {options.get('seed', 0)})"
        return TabResult(summary, [Section("", self._figures(pixels, labels))], notes)

    def sample_one(self, name: str, **options: Unpack[SamplingOptions]) -> Picture:
        """Sample one image to edit."""
        pixels, _, _ = self._sample(self.cycle_labels([name] if self.class_names else [], 1, 1), options)
        what = f"sample of {name}" if self.class_names else "sample"
        return Picture(f"{what}, seed {options.get('seed', 0)}", pixels[0])

    def compare(self, classes: Sequence[str], count: int, **options: Unpack[SamplingOptions]) -> TabResult:
        """Sample with every method from the same noise and labels, and time each after a warm-up of one image."""
        labels = self.cycle_labels(classes, count, min(self.max_images, MAX_COMPARED))
        results: dict[str, tuple[Tensor, float]] = {}
        notes = []
        for title, method in self.methods.items():
            method_options: SamplingOptions = {**options, "method": method}
            self._sample(labels[:1], method_options)
            pixels, seconds, method_notes = self._sample(labels, method_options)
            results[title] = pixels, seconds
            notes += [f"{title}: {note}" for note in method_notes]
        baseline = SAMPLERS["sequential"].title
        exact, _ = results[baseline]
        sections = [
            Section(title, self._figures(pixels, labels), format_seconds(seconds) + difference(pixels, exact))
            for title, (pixels, seconds) in results.items()
        ]
        notes.append(f'Difference: mean absolute pixel difference (0-255) from "{baseline}".')
        noise = f"the same noise (seed {options.get('seed', 0)})"
        return TabResult(f"{counted(count, 'image')} per method, from {noise} and classes", sections, notes)

    def open(self, file: str | None) -> tuple[Picture, list[str]]:
        """Read one upload: the image and notes on it."""
        found = self.read([file] if file else [])
        return found.all[0], found.notes()

    def read(self, files: Sequence[str] | None) -> Pictures:
        """Read uploads at the model's size."""
        if not files:
            raise InputError("Expected one or more images; got none. Select files first.")
        if len(files) > self.max_images:
            raise InputError(
                f"Expected at most {counted(self.max_images, 'image')} at once; got {len(files)}. "
                "Select fewer, start the app with a larger --max-images, or rank a folder with `biflow score`."
            )
        channels, size, _ = self.image_shape
        paths, reading = [Path(file) for file in files], self.pipe.reading
        return read_pictures(paths, size, channels, reading=reading, max_pixels=MAX_PIXELS)

    def predict_class(self, picture: Picture) -> str:
        """The most likely class; empty for an unconditional model."""
        if not self.class_names:
            return ""
        found = self.pipe.classify(picture.pixels[None], method=self.classify_method)
        return self.class_names[int(found.labels[0])]

    def classify(self, files: Sequence[str] | None, method: ClassifyMethod | None = None) -> TabResult:
        """The most likely classes of uploads and, in pixel space, their bits per dimension."""
        if not self.class_names:
            raise InputError("Expected a model with classes to classify images; got an unconditional one. Use Rank.")
        uploads = self.read(files)
        pictures, pixels, notes = uploads.all, uploads.pixels, uploads.notes()
        start = time.perf_counter()
        found = self.pipe.classify(pixels, method=method or self.classify_method)
        seconds = time.perf_counter() - start
        lines = [[each.name] for each in pictures]
        if self.has_likelihood:
            bits = self.pipe.log_prob(pixels).bits_per_dim.tolist()
            lines = [[f"{format_fixed(each, 2)} bits/dim", *line] for each, line in zip(bits, lines, strict=True)]
        else:
            notes.append("This model works on latents and gives no image likelihood, so bits/dim are not shown.")
        figures = [
            Figure(each.pixels, classes[0], [*classes[1:], *line])
            for each, classes, line in zip(pictures, self._top_classes(found.probabilities), lines, strict=True)
        ]
        summary = f"{counted(len(pictures), 'image')} classified in {format_seconds(seconds)}"
        return TabResult(summary, [Section("", figures)], notes)

    def rank(self, files: Sequence[str] | None, name: str | None = None) -> TabResult:
        """Rank uploads by likelihood given a class, by default unconditionally; the least likely first."""
        if not self.has_likelihood:
            raise InputError("Expected a pixel-space model to rank images; this one models latents. Use another model.")
        label = self.labels([name])[0] if name else self.pipe.config.null_label
        uploads = self.read(files)
        pictures, pixels, notes = uploads.all, uploads.pixels, uploads.notes()
        scores = self.pipe.log_prob(pixels, [label] * len(pixels))
        figures = []
        for ranked in scores.rank([str(i) for i in range(len(pictures))]):
            picture = pictures[int(ranked.image)]
            bits = f"{format_fixed(ranked.bits_per_dim, 2)} bits/dim"
            figures.append(Figure(picture.pixels, f"{ranked.rank}", [bits, picture.name]))
        mean = format_fixed(float(scores.bits_per_dim.mean()), 2)
        summary = f"{counted(len(pictures), 'image')}, least likely first; mean {mean} bits/dim"
        return TabResult(summary, [Section("", figures)], [*notes, "Higher bits/dim means less likely."])

    def inpaint(
        self,
        picture: Picture | None,
        mask: Tensor,
        name: str | None,
        *,
        proposals: int,
        **options: Unpack[SamplingOptions],
    ) -> TabResult:
        """Resample where the mask, bool (H, W), is true; the most likely proposal first."""
        pixels, labels = self._check_edit(picture, name)
        check_results(proposals)
        if not mask.any():
            raise InputError("Expected a region to inpaint; nothing is painted. Paint over it, or choose a region.")
        notes = ["Log-likelihood in nats; higher is more likely."]
        notes += ["The mask covers the whole image: the proposals are unconstrained samples."] if mask.all() else []
        edited = self.pipe.inpaint(pixels, mask, labels, proposals=proposals, **options)
        assert edited.nats is not None
        inputs = [Figure(pixels[0], "input"), Figure(painted(pixels[0], mask[None]), "mask")]
        ranked = zip(edited.pixels[0], edited.nats[0].tolist(), strict=True)
        results = [Figure(each, f"{i}", [f"{format_fixed(nats, 1)} nats"]) for i, (each, nats) in enumerate(ranked, 1)]
        summary = f"{counted(proposals, 'proposal')}, most likely first (seed {options.get('seed', 0)})"
        return TabResult(summary, [Section("", [*inputs, *results])], notes)

    def reclass(
        self, picture: Picture | None, name: str | None, targets: Sequence[str], **options: Unpack[SamplingOptions]
    ) -> TabResult:
        """Decode the noise of the image with the labels of other classes."""
        if not self.class_names:
            raise InputError("Expected a model with classes to change; got an unconditional one. Use Variations.")
        pixels, labels = self._check_edit(picture, name)
        if not targets:
            raise InputError("Expected one or more target classes; got none. Select some.")
        check_results(len(targets))
        decoded = [to_pixels(self.pipe.reclass(pixels, labels, [k], **options))[0] for k in self.labels(targets)]
        results = [Figure(each, target) for each, target in zip(decoded, targets, strict=True)]
        summary = f"The noise of the image, decoded as {counted(len(targets), 'class')}"
        return TabResult(summary, [Section("", [Figure(pixels[0], f"input: {name}"), *results])])

    def vary(
        self,
        picture: Picture | None,
        name: str | None,
        *,
        strength: float,
        num: int,
        **options: Unpack[SamplingOptions],
    ) -> TabResult:
        """Variations of an image."""
        pixels, labels = self._check_edit(picture, name)
        check_results(num)
        edited = self.pipe.vary(pixels, labels, strength=strength, num=num, **options)
        results = [Figure(each, f"{i}") for i, each in enumerate(edited.pixels[0], 1)]
        summary = f"{counted(num, 'variation')} at strength {strength:g} (seed {options.get('seed', 0)})"
        return TabResult(summary, [Section("", [Figure(pixels[0], "input"), *results])], [STRENGTH_INFO])

    def _sample(self, labels: Tensor, options: SamplingOptions) -> tuple[Tensor, float, list[str]]:
        """Images (N, P, H, W), the seconds it took, and a note if any contained NaN or Inf."""
        start = time.perf_counter()
        batched: SamplingOptions = {**options, "batch_size": BATCH_SIZE}
        drawn = self.pipe.draw(labels, redraw=True, **batched)
        seconds = time.perf_counter() - start
        broken = f"{drawn.broken} of {len(labels)} images contained NaN or Inf and were resampled"
        return drawn.pixels, seconds, [f"{broken}; {drawn.left} still do."] * (drawn.broken > 0)

    def _figures(self, pixels: Tensor, labels: Tensor) -> list[Figure]:
        """Images (N, P, H, W) with their class names."""
        names = [self.class_names[label] if self.class_names else "" for label in labels.tolist()]
        return [Figure(*each) for each in zip(pixels, names, strict=True)]

    def _check_edit(self, picture: Picture | None, name: str | None) -> tuple[Tensor, list[int]]:
        """The image to edit (1, P, H, W) and its label."""
        if picture is None:
            raise InputError("Expected an image to edit; got none. Upload or sample one.")
        if self.class_names and not name:
            raise InputError("Expected the class of the image; got none. Select it.")
        return picture.pixels[None], self.labels([name or ""])

    def _top_classes(self, probabilities: Tensor) -> list[list[str]]:
        """Probabilities (N, K) -> the most likely classes of each image, as caption lines."""
        top = probabilities.topk(min(TOP_K, probabilities.shape[1]), dim=1)
        return [
            [
                f"{self.class_names[label]}: {value:.1%}"
                for i, (label, value) in enumerate(zip(labels, values, strict=True))
                if not i or value >= MIN_PROBABILITY
            ]
            for labels, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]


def check_results(count: int) -> None:
    """Raise if an edit asks for too many results."""
    check_number(count, "the number of results", least=1, most=MAX_RESULTS, whole=True)


def difference(pixels: Tensor, exact: Tensor) -> str:
    """The mean absolute difference from the exact inverse, as text; empty for the exact inverse itself."""
    if pixels is exact:
        return ""
    return f", difference {float((pixels.float() - exact.float()).abs().mean()):.1f}"


def format_seconds(seconds: float) -> str:
    """Milliseconds below one second, else seconds.

    >>> format_seconds(0.0321), format_seconds(2.345)
    ('32 ms', '2.3 s')
    """
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def format_fixed(value: float, digits: int) -> str:
    """A number with fixed decimals and no negative zero.

    >>> format_fixed(-0.04, 1), format_fixed(-0.06, 1)
    ('0.0', '-0.1')
    """
    return f"{value:z.{digits}f}"


def parameter_count(network: nn.Module) -> str:
    """Number of parameters, in millions.

    >>> parameter_count(nn.Linear(1000, 1000))
    '1.00 M'
    """
    return f"{sum(each.numel() for each in network.parameters()) / 1e6:.2f} M"
