"""What the tabs of the app do, without the page: names and files in, pictures and sentences out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn

from biflow.app.uploads import Picture, notes_on, read_pictures
from biflow.config import ClassifyMethod
from biflow.console import counted
from biflow.data.images import to_pixels
from biflow.data.sheet import painted
from biflow.errors import InputError, check_number, nearest
from biflow.pipeline import Pipeline
from biflow.sampling.options import SamplingOptions
from biflow.sampling.samplers import SAMPLERS

MOST_IMAGES = 100
MOST_COMPARED = 16  # images by each sampler
MOST_RESULTS = 12  # of an edit
FEW_CLASSES = 50  # so many are classified by trying every one of them
TOP, LEAST = 3, 0.001  # classes named for an image, and how probable they are at least
BATCH_SIZE = 64
FREE_GUIDANCE = 3.0  # the most that is offered where training set no limit
NO_CLASS = "no class"
VARY_ENDS = "0 is the image as the model redraws it from its own noise; 1 changes all but the class."


class Figure(NamedTuple):
    """A picture, and what is written below it."""

    pixels: Tensor  # uint8 (P, H, W)
    title: str = ""
    lines: Sequence[str] = ()


class Part(NamedTuple):
    """Figures under one heading."""

    heading: str
    figures: Sequence[Figure]
    facts: str = ""  # beside the heading


class Shown(NamedTuple):
    """What a tab answers."""

    said: str
    parts: Sequence[Part]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Studio:
    """A model, and what its page does with it; bad input raises `InputError`."""

    pipe: Pipeline
    most: int = MOST_IMAGES  # images at once

    @cached_property
    def names(self) -> list[str]:
        """Of the classes by label, each once, and of no class last; none if the model is unconditional."""
        count = self.pipe.config.num_classes
        if not count:
            return []
        given = [*(self.pipe.class_names or map(str, range(count))), NO_CLASS]
        return [f"{name} ({i})" if given.count(name) > 1 and i < count else name for i, name in enumerate(given)]

    @property
    def methods(self) -> dict[str, str]:
        """The samplers that this model can be used with, in words -> their names."""
        networks = self.pipe.model.networks
        return {each.title: name for name, each in SAMPLERS.items() if set(each.uses) <= set(networks)}

    @property
    def most_guidance(self) -> float:
        """The strength up to which guidance is offered: what the reverse model was trained for, if it was."""
        reverse = self.pipe.config.reverse
        if not self.names:
            return 0.0
        return reverse.max_guidance if reverse and reverse.guidance == "trained" else FREE_GUIDANCE

    @property
    def scores(self) -> bool:
        """Whether the model can tell how likely images are; one of latents cannot."""
        return self.pipe.config.codec == "pixels"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of the images of pixels: (P, H, W)."""
        return self.pipe.model.image_shape

    @property
    def classify_method(self) -> ClassifyMethod:
        """What tells the classes best, in a time that a person waits: every class tried, where there are few."""
        return "bayes" if self.pipe.config.num_classes <= FEW_CLASSES else "gradient"

    def facts(self) -> str:
        """The model in one line."""
        channels, size, _ = self.image_shape
        count, flow, reverse = self.pipe.config.num_classes, self.pipe.model.flow, self.pipe.model.reverse
        kind = "grey" if channels == 1 else "colour"
        return ", ".join(
            [
                f"{size}x{size} {kind} images",
                f"{count} classes" if count else "no classes",
                f"a flow of {self.pipe.config.flow.blocks} blocks with {millions(flow)} parameters",
                f"a reverse model with {millions(reverse)}" if reverse else "no reverse model",
            ]
        )

    def labels(self, names: Sequence[str]) -> list[int]:
        """Labels of classes by name."""
        if not self.names:
            return [self.pipe.config.null_label for _ in names]
        for name in names:
            if name not in self.names:
                raise InputError(f"Unknown class {name!r}; {nearest(str(name), self.names)}")
        return [self.names.index(name) for name in names]

    def in_turn(self, names: Sequence[str], count: int, most: int) -> Tensor:
        """Labels (count,) for which these classes take turns; all classes, where none is named."""
        check_number(count, "the number of images", least=1, most=most, whole=True)
        labels = torch.tensor(self.labels(names) or list(range(max(1, self.pipe.config.num_classes))))
        return labels[torch.arange(count) % len(labels)]

    def name_of(self, label: int) -> str:
        """A class as it is written below a picture; nothing if the model has none."""
        return self.names[label] if self.names else ""

    def sample(self, classes: Sequence[str], count: int, **options: Unpack[SamplingOptions]) -> Shown:
        """Images of these classes in turn."""
        labels = self.in_turn(classes, count, self.most)
        started = time.perf_counter()
        pixels, broken = self._draw(labels, options)
        seconds = time.perf_counter() - started
        figures = [Figure(each, self.name_of(k)) for each, k in zip(pixels, labels.tolist(), strict=True)]
        said = f"{counted(count, 'image')}, seed {options.get('seed', 0)}, in {duration(seconds)}."
        return Shown(said, [Part("", figures)], broken)

    def sample_one(self, name: str, **options: Unpack[SamplingOptions]) -> Picture:
        """One image to edit."""
        pixels, _ = self._draw(self.in_turn([name] if self.names else [], 1, 1), options)
        what = f"a sample of {name}" if self.names else "a sample"
        return Picture(f"{what}, seed {options.get('seed', 0)}", pixels[0])

    def compare(self, classes: Sequence[str], count: int, **options: Unpack[SamplingOptions]) -> Shown:
        """The same noise and labels by every sampler, each with its time; one image by each before, not counted."""
        labels = self.in_turn(classes, count, min(self.most, MOST_COMPARED))
        drawn: dict[str, tuple[Tensor, float]] = {}
        notes = []
        for words, method in self.methods.items():
            mine: SamplingOptions = {**options, "method": method}
            self._draw(labels[:1], mine)
            started = time.perf_counter()
            pixels, broken = self._draw(labels, mine)
            drawn[words] = pixels, time.perf_counter() - started
            notes += [f"{words}: {note}" for note in broken]
        exact = drawn[SAMPLERS["sequential"].title][0]
        parts = []
        for words, (pixels, seconds) in drawn.items():
            figures = [Figure(each, self.name_of(k)) for each, k in zip(pixels, labels.tolist(), strict=True)]
            parts.append(Part(words, figures, duration(seconds) + away(pixels, exact)))
        notes.append("How far images are from those drawn patch by patch is in grey levels of 255, on average.")
        said = f"The same noise (seed {options.get('seed', 0)}) and classes, {counted(count, 'image')} each way."
        return Shown(said, parts, notes)

    def open(self, file: str | None) -> tuple[Picture, list[str]]:
        """One uploaded image, and what is to be said of it."""
        pictures, notes = self.read([file] if file else [])
        return pictures[0], notes

    def read(self, files: Sequence[str] | None) -> tuple[list[Picture], list[str]]:
        """Uploaded images at the model's size, and what is to be said of them."""
        if not files:
            raise InputError("Expected one or more images; got none. Choose files first.")
        if len(files) > self.most:
            raise InputError(
                f"Expected at most {counted(self.most, 'image')} at once; got {len(files)}. "
                "Choose fewer, start the app with a larger --max-images, or rank a folder with `biflow score`."
            )
        channels, size, _ = self.image_shape
        pictures, notes = read_pictures(files, size, channels)
        return pictures, [*notes, *notes_on(pictures)]

    def guess(self, picture: Picture) -> str:
        """The class that suits an image best, where the model has classes."""
        if not self.names:
            return ""
        found = self.pipe.classify(picture.pixels[None], method=self.classify_method)
        return self.names[int(found.labels[0])]

    def classify(self, files: Sequence[str] | None, method: ClassifyMethod | None = None) -> Shown:
        """The likeliest classes of each upload, and how likely the image is."""
        if not self.names:
            raise InputError("Expected a model with classes to classify with; this one has none. Use Rank.")
        pictures, notes = self.read(files)
        pixels = torch.stack([each.pixels for each in pictures])
        started = time.perf_counter()
        found = self.pipe.classify(pixels, method=method or self.classify_method)
        seconds = time.perf_counter() - started
        bits = self._bits(pixels) if self.scores else [[]] * len(pictures)
        best = self._best(found.probabilities)
        figures = [
            Figure(each.pixels, named[0], [*named[1:], *its_bits, each.name])
            for each, named, its_bits in zip(pictures, best, bits, strict=True)
        ]
        said = f"{counted(len(pictures), 'image')} classified in {duration(seconds)}."
        if not self.scores:
            notes.append("A model of latents cannot tell how likely images are, so no bits are given.")
        return Shown(said, [Part("", figures)], notes)

    def rank(self, files: Sequence[str] | None, name: str | None = None) -> Shown:
        """Uploads by likelihood, the least likely first; as images of a class, or of none."""
        if not self.scores:
            raise InputError("Expected a model of pixels to rank with; this one models latents, not images.")
        label = self.labels([name])[0] if name else self.pipe.config.null_label
        pictures, notes = self.read(files)
        pixels = torch.stack([each.pixels for each in pictures])
        scores = self.pipe.log_prob(pixels, [label] * len(pixels))
        figures = []
        for ranked in scores.rank([str(place) for place in range(len(pictures))]):
            picture = pictures[int(ranked.image)]
            bits = f"{decimals(ranked.bits_per_dim, 2)} bits/dim"
            figures.append(Figure(picture.pixels, f"{ranked.rank}. {bits}", [picture.name]))
        mean = float(scores.bits_per_dim.mean())
        said = f"{counted(len(pictures), 'image')}, the least likely first; {decimals(mean, 2)} bits/dim on average."
        return Shown(said, [Part("", figures)], [*notes, "More bits a dimension: less likely."])

    def inpaint(
        self,
        picture: Picture | None,
        mask: Tensor,
        name: str | None,
        *,
        proposals: int,
        **options: Unpack[SamplingOptions],
    ) -> Shown:
        """What the mask, bool (H, W), says is drawn anew; the likeliest first."""
        pixels, labels = self._to_edit(picture, name)
        check_results(proposals)
        if not mask.any():
            raise InputError("Nothing is painted yet. Paint over what is to be redrawn, or choose a part.")
        notes = ["Nats: higher is likelier."]
        notes += ["Nothing of the image is kept: these are plain samples."] if mask.all() else []
        edited = self.pipe.inpaint(pixels, mask, labels, proposals=proposals, **options)
        assert edited.nats is not None
        first = [Figure(pixels[0], "image"), Figure(painted(pixels[0], mask[None]), "to redraw")]
        drawn = zip(edited.pixels[0], edited.nats[0].tolist(), strict=True)
        results = [Figure(each, f"{i}", [f"{decimals(nats, 1)} nats"]) for i, (each, nats) in enumerate(drawn, 1)]
        said = f"{counted(proposals, 'proposal')}, seed {options.get('seed', 0)}, the most likely first."
        return Shown(said, [Part("", [*first, *results])], notes)

    def reclass(
        self, picture: Picture | None, name: str | None, targets: Sequence[str], **options: Unpack[SamplingOptions]
    ) -> Shown:
        """The image as images of other classes, from the same noise."""
        if not self.names:
            raise InputError("Expected a model with classes to change them; this one has none. Use variations.")
        pixels, labels = self._to_edit(picture, name)
        if not targets:
            raise InputError("Expected one or more classes that the image becomes; got none. Choose some.")
        check_results(len(targets))
        drawn = [to_pixels(self.pipe.reclass(pixels, labels, [k], **options))[0] for k in self.labels(targets)]
        results = [Figure(each, f"as {target}") for each, target in zip(drawn, targets, strict=True)]
        said = f"The image's own noise, redrawn as {counted(len(targets), 'class')}."
        return Shown(said, [Part("", [Figure(pixels[0], f"image, {name}"), *results])])

    def vary(
        self,
        picture: Picture | None,
        name: str | None,
        *,
        strength: float,
        num: int,
        **options: Unpack[SamplingOptions],
    ) -> Shown:
        """Images near this one."""
        pixels, labels = self._to_edit(picture, name)
        check_results(num)
        edited = self.pipe.vary(pixels, labels, strength=strength, num=num, **options)
        results = [Figure(each, f"{i}") for i, each in enumerate(edited.pixels[0], 1)]
        said = f"{counted(num, 'variation')} of strength {strength:g}, seed {options.get('seed', 0)}."
        return Shown(said, [Part("", [Figure(pixels[0], "image"), *results])], [VARY_ENDS])

    def _draw(self, labels: Tensor, options: SamplingOptions) -> tuple[Tensor, list[str]]:
        """Images (N, P, H, W), and what is to be said of those that are not finite."""
        way: SamplingOptions = {**options, "batch_size": BATCH_SIZE}
        drawn = self.pipe.draw(labels, redraw=True, **way)
        if not drawn.broken:
            return drawn.pixels, []
        broken = f"{drawn.broken} of {len(labels)} images held values that are no finite numbers"
        return drawn.pixels, [f"{broken} and were drawn again; {drawn.left} still do."]

    def _to_edit(self, picture: Picture | None, name: str | None) -> tuple[Tensor, list[int]]:
        if picture is None:
            raise InputError("Expected an image to edit; got none. Upload one, or sample one.")
        if self.names and not name:
            raise InputError("Expected the class of the image; got none. Choose it.")
        return picture.pixels[None], self.labels([name or ""])

    def _bits(self, pixels: Tensor) -> list[list[str]]:
        """Bits per dimension of images of no class, in words."""
        return [[f"{decimals(bits, 2)} bits/dim"] for bits in self.pipe.log_prob(pixels).bits_per_dim.tolist()]

    def _best(self, probabilities: Tensor) -> list[list[str]]:
        """The likeliest classes of each image (N, K), in words."""
        best = probabilities.topk(min(TOP, probabilities.shape[1]), dim=1)
        return [
            [
                f"{self.names[label]}: {share:.1%}"
                for place, (label, share) in enumerate(zip(labels, shares, strict=True))
                if not place or share >= LEAST
            ]
            for labels, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def check_results(count: int) -> None:
    """Raise for too many results of an edit."""
    check_number(count, "the number of results", least=1, most=MOST_RESULTS, whole=True)


def away(pixels: Tensor, exact: Tensor) -> str:
    """How far images are from those of the exact inverse, patch by patch; nothing of these themselves."""
    if pixels is exact:
        return ""
    distance = float((pixels.float() - exact.float()).abs().mean())
    return f", {distance:.1f} away"


def duration(seconds: float) -> str:
    """A time, in the unit that suits.

    >>> duration(0.0321), duration(2.345)
    ('32 ms', '2.3 s')
    """
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def decimals(value: float, places: int) -> str:
    """A number with so many decimals; one that is rounded to nothing has no sign.

    >>> decimals(-0.04, 1), decimals(-0.06, 1)
    ('0.0', '-0.1')
    """
    return f"{value:z.{places}f}"


def millions(network: nn.Module) -> str:
    """How many parameters a network has.

    >>> millions(nn.Linear(1000, 1000))
    '1.00 M'
    """
    return f"{sum(each.numel() for each in network.parameters()) / 1e6:.2f} M"
