"""A model measured as the field measures: images drawn by number, compared with real ones, and what they cost."""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from biflow._version import __version__
from biflow.checkpoint import WEIGHTS_FILE
from biflow.config import LabelSchedule, ReadingConfig, SplitName
from biflow.console import counting
from biflow.data.datasets import ImageSource
from biflow.data.images import read_samples, write_npz
from biflow.data.open import check_apart, open_images
from biflow.distributed import World, join_world
from biflow.errors import InputError
from biflow.evaluation.compare import METRICS, compare
from biflow.evaluation.cost import measure_cost
from biflow.evaluation.real_images import EvaluationContext, NetworkReference, RealImages, open_references
from biflow.evaluation.reference import evenly_spaced
from biflow.evaluation.report import cost_rows, quality_rows, render_evaluation
from biflow.evaluation.samples import (
    DrawnShard,
    SampleFolder,
    SampleSettings,
    features_of,
    make_labels,
    resume_or_start,
)
from biflow.features.metric_networks import Features
from biflow.files import check_file_output, check_writable, write_text
from biflow.hub.repository import find_model
from biflow.pipeline import Pipeline
from biflow.sampling.guidance import Guidance, parse_guidance
from biflow.sampling.samplers import parse_sampler
from biflow.training.provenance import describe_machine

Numbers = dict[str, Any]
NUM = 50_000
TEST_IMAGES = 10_000  # at most, that likelihood and classification are measured on
SHOWN_IMAGES = 100
TIMED_BATCHES = (1, 64)
QUANTISER = "127.5 x + 127.5, rounded and clipped to 0..255"
CONVENTIONS = {
    "kernel_distance": "cubic kernel, 100 subsets of up to 1,000 images",
    "precision_and_recall": "third nearest neighbour, up to 10,000 real images",
    "inception_score": "splits of 5,000 images",
}
RESULT_FILE, REPORT_FILE = "evaluation.json", "evaluation.html"


@dataclass(frozen=True)
class Request:
    """What is to be measured, and against what.

    model: a folder, or samples in the ADM format (.npz).  references: statistics that are there already, in the order
    of the features.  sweep: strengths of guidance to try, each with sweep_num images of another seed.
    """

    model: Path
    data: str
    num: int | None = None  # all that a file holds, or 50,000
    method: str = "reverse"
    guidance: str = "0"
    features: Sequence[str] = ("inception",)
    references: Sequence[Path] = ()
    split: SplitName = "train"
    labels: LabelSchedule = "balanced"
    seed: int = 0
    redraw: bool = False
    batch_size: int = 256
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    sweep: Sequence[float] = ()
    sweep_num: int = 10_000
    npz: Path | None = None


class EvaluatedSamples(NamedTuple):
    """Images, what the networks make of them, and how many had to be drawn again."""

    pixels: Tensor  # uint8 (N, P, H, W)
    labels: Tensor | None  # (N,)
    features: Mapping[str, Features]
    redrawn: int = 0


def evaluate(request: Request, out: Path, console: Console) -> Numbers | None:
    """Measure, in a folder where an interrupted command goes on; under a launcher, all processes share the work.

    Returns what evaluation.json holds, in the main process alone.
    """
    check_apart(request.data, out)
    for output in (*request.references, *filter(None, [request.npz])):
        check_apart(request.data, output)
    if request.npz:
        if request.npz.suffix != ".npz":
            raise InputError(f"Expected a file ending in .npz for the samples; got {request.npz}.")
        check_file_output(request.npz)
        request.npz.parent.mkdir(parents=True, exist_ok=True)
    measure = evaluate_samples if request.model.suffix == ".npz" else evaluate_model
    with join_world() as world:
        world.on_main(lambda: begin(out))
        return measure(request, EvaluationContext(out, world, console, request.batch_size))


def evaluate_samples(request: Request, site: EvaluationContext) -> Numbers | None:
    """Compare images that were drawn before, here or elsewhere, with real ones."""
    if request.sweep or request.npz:
        raise InputError(
            f"Expected a model to draw images from; got samples, {request.model}. Leave out --sweep and --npz."
        )
    given = read_samples(request.model)
    num = request.num or len(given.pixels)
    if num > len(given.pixels):
        raise InputError(
            f"Expected {num:,} images in {request.model}; it holds {len(given.pixels):,}. Give --num "
            f"{len(given.pixels)} or less."
        )
    pixels, labels = given.pixels[:num], None if given.labels is None else given.labels[:num]
    channels, height, width = pixels.shape[1:]
    reals = open_reals(request, (channels, height, width))
    classes = len(reals.images.class_names)
    if labels is not None and classes and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"Expected labels from 0 to {classes - 1} in {request.model}, as of {reals.name!r}; got "
            f"{int(labels.min())} to {int(labels.max())}. Give the data that the samples are to be like."
        )
    grounds = open_references(request.features, request.references, reals, site)
    if not site.world.is_main:
        return None
    features = {
        name: features_of(ground.net, pixels, batch_size=request.batch_size) for name, ground in grounds.items()
    }
    samples = EvaluatedSamples(pixels, labels, features)
    result = describe(reals, grounds, samples, site.world) | {"samples": {"file": str(request.model), "num": num}}
    return write_result(site.out, result, samples)


def evaluate_model(request: Request, site: EvaluationContext) -> Numbers | None:
    """Draw images from a model, compare them with real ones, and measure what the model can do besides."""
    start = time.perf_counter()
    pipe = Pipeline.from_pretrained(request.model).to(site.world.device)
    sampler, guidance = parse_sampler(request.method), parse_guidance(request.guidance)
    for strength in (*request.sweep, guidance.strength):
        sampler.prepare(pipe.model, replace(guidance, strength=strength))  # raises, before anything long
    reals = open_reals(request, pipe.model.image_shape)
    check_classes(pipe, reals)
    check_reading(pipe, request)
    grounds = open_references(request.features, request.references, reals, site)
    drawing = Drawing(request, pipe, grounds, site)
    tried = drawing.sweep(guidance)
    if tried:
        guidance = replace(guidance, strength=min(tried, key=lambda each: each["frechet_distance"])["guidance"])
    samples = drawing.draw(site.out / "samples", guidance, num=drawing.num, seed=request.seed)
    if not site.world.is_main:
        return None
    site.console.print("measuring likelihood, classification and time")
    result = describe(reals, grounds, samples, site.world) | {
        "model": {"folder": str(request.model), "weights": drawing.weights},
        "samples": {
            "num": drawing.num,
            "seed": request.seed,
            "labels": request.labels,
            "method": request.method,
            "guidance": str(guidance),
            "redrawn": samples.redrawn,
            "quantiser": QUANTISER,
        },
        "sweep": {"num": drawing.sweep_num, "seed": request.seed + 1, "split": request.split, "tried": tried}
        if tried
        else None,
        "test": measure_test(pipe, reals.data.test),
        "cost": measure_cost(pipe, sampler.prepare(pipe.model, guidance), guidance, TIMED_BATCHES),
        "seconds": time.perf_counter() - start,
    }
    written = write_result(site.out, result, samples)
    if request.npz and samples.labels is not None:
        write_npz(request.npz, samples.pixels, samples.labels)
    return written


class Drawing:
    """How images are drawn from a model and looked at by the networks, by all processes together."""

    def __init__(
        self, request: Request, pipe: Pipeline, grounds: Mapping[str, NetworkReference], site: EvaluationContext
    ) -> None:
        self.request, self.pipe, self.grounds = request, pipe, grounds
        self.site, self.world = site, site.world
        self.weights = hashlib.sha256((find_model(request.model) / WEIGHTS_FILE).read_bytes()).hexdigest()
        self.num = request.num or NUM
        self.sweep_num = min(request.sweep_num, self.num)

    def sweep(self, guidance: Guidance) -> list[Numbers]:
        """Every strength, and what the first network says of images drawn with it."""
        tried: list[Numbers] = []
        name, ground = next(iter(self.grounds.items()))
        for strength in self.request.sweep:
            folder = self.site.out / "sweep" / f"{strength:g}"
            samples = self.draw(
                folder, replace(guidance, strength=strength), num=self.sweep_num, seed=self.request.seed + 1
            )
            found = compare(name, samples.features[name], ground.reference, samples.labels)
            tried.append({"guidance": strength, **found})
        return tried

    def draw(self, folder: Path, guidance: Guidance, *, num: int, seed: int) -> EvaluatedSamples:
        """The first `num` images with this guidance; those that are in the folder are not drawn again."""
        request, config = self.request, self.pipe.config
        settings = SampleSettings(
            weights=self.weights,
            method=request.method,
            guidance=str(guidance),
            labels=request.labels,
            seed=seed,
            redraw=request.redraw,
        )
        self.world.on_main(lambda: resume_or_start(folder, settings))
        labels = make_labels(request.labels, num, config.num_classes, seed)

        def draw(start: int, labels: Tensor) -> DrawnShard:
            drawn = self.pipe.draw(
                labels,
                guidance=guidance,
                method=request.method,
                seed=seed,
                batch_size=request.batch_size,
                redraw=request.redraw,
                start=start,
            )
            if drawn.left:
                again = "give --redraw, or " * (not request.redraw)
                raise InputError(
                    f"Expected images of finite numbers; {drawn.left} of images {start} to {start + len(labels) - 1} "
                    f"are not. To go on, {again}choose another --method or --guidance."
                )
            return DrawnShard(drawn.pixels, drawn.broken)

        shards = SampleFolder(folder, num, rank=self.world.rank, size=self.world.size)
        shown, own = self.world.is_main, sum(len(shard.indices) for shard in shards.own)
        share = f" (a share of {self.world.size})" * (self.world.size > 1)
        with counting(self.site.console, f"drawing at guidance {guidance}{share}", own, shown=shown) as progress:
            shards.draw(labels, draw, progress)
        places = {}
        for name, (net, _) in self.grounds.items():
            places[name] = folder / "features" / f"{name}_{net.identity()[:8]}"
            with counting(self.site.console, f"features of {name}{share}", own, shown=shown) as progress:
                shards.measure(net, places[name], batch_size=request.batch_size, progress=progress)
        self.world.wait()
        features = {name: shards.features(place) for name, place in places.items()}
        return EvaluatedSamples(shards.pixels(), shards.labels(), features, shards.redrawn())


def open_reals(request: Request, image_shape: tuple[int, int, int]) -> RealImages:
    """The real images, at the size of those that are compared with them."""
    data = open_images(request.data, image_shape, request.reading)
    if data.train.image_shape != image_shape:
        raise InputError(
            f"Expected real images of the shape {image_shape} (channels, height, width), as those that are compared; "
            f"those of {request.data!r} are of {data.train.image_shape}. Give data of the same kind."
        )
    return RealImages(request.data, data, request.split, request.reading)


def check_classes(pipe: Pipeline, reals: RealImages) -> None:
    """Raise unless there are real images of every class that the model draws."""
    classes, names = pipe.config.num_classes, reals.images.class_names
    if not classes:
        return
    if len(names) != classes:
        raise InputError(
            f"Expected data of the model's {classes} classes; {reals.name!r} has {len(names)}. "
            "Give the data that the model was trained on."
        )
    counts = reals.images.labels.bincount(minlength=classes)
    if missing := [names[label] for label in range(classes) if not counts[label]]:
        raise InputError(
            f"Expected images of every class to compare with; the {reals.split} split of {reals.name!r} has none of "
            f"{', '.join(missing[:5])}. Give data with all classes, or another --split."
        )


def check_reading(pipe: Pipeline, request: Request) -> None:
    """Raise if the images that the model was trained on are read in another way than they were for its training."""
    trained = (pipe.training or {}).get("config", {})
    if trained.get("data") != request.data:
        return
    for key in ("crop", "background", "test_share"):
        was, now = trained["reading"][key], getattr(request.reading, key)
        if was != now:
            raise InputError(
                f"Expected reading.{key}={was}, with which the model was trained on {request.data!r}; got {now}. "
                f"Add --set reading.{key}={was}."
            )


def begin(out: Path) -> None:
    """Make the folder, or raise if nothing can be written to it."""
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)


def measure_test(pipe: Pipeline, test: ImageSource) -> Numbers | None:
    """Bits per dimension of images that training never saw, and how often one gradient tells their class."""
    if not len(test):
        return None
    places = evenly_spaced(len(test), TEST_IMAGES)
    pixels, labels = test.read(places), test.labels[places]
    found: Numbers = {"images": len(places), "bits_per_dim": None, "bits_per_dim_of_noisy_data": None}
    conditional = bool(pipe.config.num_classes)
    if pipe.config.codec == "pixels":
        of = labels if conditional else torch.zeros_like(labels)
        found["bits_per_dim"] = pipe.log_prob(pixels, of).bits_per_dim.mean().item()
        found["bits_per_dim_of_noisy_data"] = pipe.log_prob(pixels, of, noise="training").bits_per_dim.mean().item()
    found["accuracy_by_gradient"] = None
    if conditional:
        guessed = pipe.classify(pixels, method="gradient").labels
        found["accuracy_by_gradient"] = (guessed == labels).double().mean().item()
    return found


def describe(
    reals: RealImages, grounds: Mapping[str, NetworkReference], samples: EvaluatedSamples, world: World
) -> Numbers:
    """What is said of all samples, wherever they come from."""
    return {
        "biflow": __version__,
        "machine": describe_machine(world.device),
        "data": {
            "name": reals.name,
            "split": reals.split,
            "images": len(reals.images),
            "test_images": len(reals.data.test),
            "reading": reals.reading.model_dump(mode="json"),
        },
        "metrics": {
            name: compare(name, samples.features[name], ground.reference, samples.labels)
            for name, ground in grounds.items()
        },
        "metric_titles": {metric.key: dict(metric.titles) for metric in METRICS},
        "references": {name: dict(ground.reference.facts) for name, ground in grounds.items()},
        "conventions": CONVENTIONS,
    }


def write_result(out: Path, result: Numbers, samples: EvaluatedSamples) -> Numbers:
    """The numbers, and the page that shows them; returns them as they were written."""
    result = finite(result)
    result["tables"] = {"quality": quality_rows(result), "cost": cost_rows(result)}
    write_text(out / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    write_text(out / REPORT_FILE, render_evaluation(result, samples.pixels[:SHOWN_IMAGES]))
    return result


def finite(value: Any) -> Any:
    """The same with null for numbers that are not finite, as deep as they lie."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
