"""Evaluate a model or its samples: FID and related metrics, likelihood, speed."""

import json
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from biflow._version import __version__
from biflow.checkpoint import WEIGHTS_FILE
from biflow.config.evaluation import EvaluationConfig
from biflow.config.records import finished_in
from biflow.console import counting
from biflow.data.datasets import ImageSource, digest
from biflow.data.npz import read_samples, write_npz
from biflow.data.open import check_apart, open_images
from biflow.distributed import World, join_world
from biflow.errors import InputError
from biflow.evaluation.compare import METRICS, NETWORKS, compare
from biflow.evaluation.cost import measure_cost
from biflow.evaluation.real_images import (
    EvaluationContext,
    NetworkReference,
    RealImages,
    open_references,
    read_as_trained,
)
from biflow.evaluation.reference import evenly_spaced
from biflow.evaluation.report import best_of, cost_rows, map_numbers, quality_rows, render_evaluation
from biflow.evaluation.samples import (
    SampleFolder,
    SampleSettings,
    concatenate,
    features_of,
    make_labels,
    resume_or_start,
)
from biflow.features.metric_networks import Features
from biflow.files import check_file_output, check_writable, write_text
from biflow.hub.repository import find_model
from biflow.models.codec import VaeCodec
from biflow.pipeline import Pipeline
from biflow.sampling.draw import Drawn
from biflow.sampling.guidance import Guidance, parse_guidance
from biflow.sampling.options import SamplingOptions
from biflow.sampling.samplers import parse_sampler
from biflow.tensors import file_checksum
from biflow.training.provenance import describe_machine

Numbers = dict[str, Any]
NUM = 50_000
TEST_IMAGES = 10_000  # at most, for likelihood and classification
SHOWN_IMAGES = 100
TIMED_BATCHES = (1, 64)
QUANTISER = "127.5 x + 127.5, rounded and clipped to 0..255"
CONVENTIONS = {
    "kernel_distance": "cubic kernel, 100 subsets of up to 1,000 images",
    "precision_and_recall": "third nearest neighbour, up to 10,000 real images",
    "inception_score": "equal splits of 5,000 images or more, in an order shuffled by a fixed seed",
}
RESULT_FILE, REPORT_FILE = "evaluation.json", "evaluation.html"


class EvaluatedSamples(NamedTuple):
    """Samples, their features by network, and how many were resampled."""

    pixels: Tensor  # uint8 (N, P, H, W)
    labels: Tensor | None  # (N,)
    features: Mapping[str, Features]
    redrawn: int = 0


def evaluate(model: Path, config: EvaluationConfig, out: Path, console: Console) -> Numbers | None:
    """Evaluate a model folder, or samples in the ADM format (.npz); an interrupted evaluation in `out` is resumed.

    Under a launcher, all processes share the work.  Returns the content of evaluation.json, in the main process alone.
    """
    npz = Path(config.npz) if config.npz else None
    for output in (out, *map(Path, config.references), *filter(None, [npz])):
        check_apart(config.data, output)
    if npz:
        if npz.suffix != ".npz":
            raise InputError(f"Expected npz to be a file ending in .npz; got {npz}.")
        check_file_output(npz)
        npz.parent.mkdir(parents=True, exist_ok=True)
    measure = evaluate_samples if model.suffix == ".npz" else evaluate_model
    with join_world() as world, ExitStack() as held:
        world.on_main(lambda: check_writable(out))
        return measure(model, EvaluationContext(config, out, world, console, held))


def evaluate_samples(model: Path, context: EvaluationContext) -> Numbers | None:
    """Evaluate the samples of a file."""
    config = context.config
    if config.sweep or config.npz:
        raise InputError(f"Expected a model to sample from; got samples, {model}. Leave out --sweep and npz.")
    given = read_samples(model)
    num = config.num or len(given.pixels)
    if num > len(given.pixels):
        held = len(given.pixels)
        raise InputError(f"Expected {num:,} images in {model}; it holds {held:,}. Give --num {held} or less.")
    pixels, labels = given.pixels[:num], None if given.labels is None else given.labels[:num]
    channels, height, width = pixels.shape[1:]
    reals = open_reals(config, (channels, height, width))
    classes = len(reals.images.class_names)
    if labels is not None and classes and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        got = f"{int(labels.min())} to {int(labels.max())}"
        raise InputError(f"Expected labels from 0 to {classes - 1} in {model}, as in {config.data!r}; got {got}.")
    networks = open_references(reals, context)
    if not context.world.is_main:
        return None
    features = {name: features_of(each.net, pixels, batch_size=config.batch_size) for name, each in networks.items()}
    samples = EvaluatedSamples(pixels, labels, features)
    result = describe(reals, networks, samples, context.world) | {"samples": {"file": str(model), "num": num}}
    return write_result(context.out, result, samples)


def evaluate_model(model: Path, context: EvaluationContext) -> Numbers | None:
    """Evaluate a model folder: samples, likelihood, classification and cost."""
    start = time.perf_counter()
    pipe = Pipeline.from_pretrained(model).to(context.world.device)
    context = read_as_trained(context, pipe.training)
    config = context.config
    sampler, guidance = parse_sampler(config.method), parse_guidance(config.guidance)
    for strength in (*config.sweep, guidance.strength):
        sampler.prepare(pipe.model, replace(guidance, strength=strength))  # raises before anything slow
    reals = open_reals(config, pipe.model.image_shape)
    check_classes(pipe, reals)
    networks = open_references(reals, context)
    weights = file_checksum(find_model(model) / WEIGHTS_FILE)
    num = config.num or NUM
    sweep_num = min(config.sweep_num, num)
    sampling = Sampling(pipe, networks, context, weights)
    tried = sampling.sweep(guidance, num=sweep_num)
    if tried:
        guidance = replace(guidance, strength=best_of(tried)["guidance"])
    samples = sampling.draw(context.out / "samples", guidance, num=num, seed=config.seed)
    if not context.world.is_main:
        return None
    context.console.print("measuring likelihood, classification and time")
    result = describe(reals, networks, samples, context.world) | {
        "model": {"folder": str(model), "weights": weights},
        "samples": {
            "num": num,
            "seed": config.seed,
            "labels": config.labels,
            "method": config.method,
            "guidance": str(guidance),
            "finished_in": finished_in(pipe.training) if "reverse" in sampler.uses else None,
            "redrawn": samples.redrawn,
            "quantiser": QUANTISER,
        },
        "sweep": {"num": sweep_num, "seed": config.seed + 1, "split": config.split, "tried": tried} if tried else None,
        "test": measure_test(pipe, reals.data.test),
        "cost": measure_cost(pipe, sampler.prepare(pipe.model, guidance), guidance, TIMED_BATCHES),
        "seconds": time.perf_counter() - start,
    }
    written = write_result(context.out, result, samples)
    if config.npz and samples.labels is not None:
        write_npz(Path(config.npz), samples.pixels, samples.labels)
    return written


@dataclass(frozen=True)
class Sampling:
    """Samples images and computes their features, shared by all processes."""

    pipe: Pipeline
    networks: Mapping[str, NetworkReference]
    context: EvaluationContext
    weights: str  # SHA-256 of the model's weights file

    def sweep(self, guidance: Guidance, *, num: int) -> list[Numbers]:
        """The metrics of the first network at every strength of the sweep."""
        tried: list[Numbers] = []
        name, each = next(iter(self.networks.items()))
        for strength in self.context.config.sweep:
            folder = self.context.out / "sweep" / f"{strength:g}"
            seed = self.context.config.seed + 1
            samples = self.draw(folder, replace(guidance, strength=strength), num=num, seed=seed)
            found = compare(name, samples.features[name], each.reference, samples.labels)
            tried.append({"guidance": strength, **found})
        return tried

    def draw(self, folder: Path, guidance: Guidance, *, num: int, seed: int) -> EvaluatedSamples:
        """The first `num` images with this guidance; shards that are in the folder are kept."""
        (config, _, world, console, _), codec = self.context, self.pipe.model.codec
        sampler = parse_sampler(config.method)
        settings = SampleSettings(
            weights=self.weights,
            model=digest(self.pipe.config.model_dump_json(), codec.identity() if isinstance(codec, VaeCodec) else ""),
            method=config.method,
            guidance=str(guidance),
            labels=config.labels,
            seed=seed,
            redraw=config.redraw,
        )
        world.on_main(lambda: resume_or_start(folder, settings))

        def sample_shard(start: int, labels: Tensor) -> Drawn:
            how = SamplingOptions(guidance=guidance, method=sampler, seed=seed, batch_size=config.batch_size)
            drawn = self.pipe.draw(labels, start=start, redraw=config.redraw, **how)
            if drawn.left:
                redraw = "set redraw=true, or " * (not config.redraw)
                raise InputError(
                    f"Expected images without NaN or Inf; {drawn.left} of images {start} to {start + len(labels) - 1} "
                    f"contain some. To continue, {redraw}choose another --method or --guidance."
                )
            return drawn

        labels = make_labels(config.labels, num, self.pipe.config.num_classes, seed)
        shards = SampleFolder(folder, labels, rank=world.rank, size=world.size)
        shown, own = world.is_main, sum(len(labels) for _, labels in shards.own)
        share = f" (a share of {world.size})" * (world.size > 1)
        with counting(console, f"sampling at guidance {guidance}{share}", own, shown=shown) as progress:
            shards.draw(sample_shard, progress)
        folders = {}
        for name, (net, _) in self.networks.items():
            folders[name] = folder / "features" / f"{name}_{net.identity()[:8]}"
            with counting(console, f"features of {NETWORKS[name]}{share}", own, shown=shown) as progress:
                shards.measure(net, folders[name], batch_size=config.batch_size, progress=progress)
        world.wait()
        features = {name: concatenate(Features(**each) for each in shards.read(of)) for name, of in folders.items()}
        drawn = shards.read(folder)
        redrawn = sum(int(each["redrawn"]) for each in drawn)
        return EvaluatedSamples(torch.cat([each["pixels"] for each in drawn]), labels, features, redrawn)


def open_reals(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> RealImages:
    """The real images, at the size of the samples."""
    data = open_images(config.data, image_shape, config.reading)
    if data.train.image_shape != image_shape:
        shape = f"shape {image_shape}, like the samples"
        raise InputError(
            f"Expected real images of {shape}; those of {config.data!r} have {data.train.image_shape}. "
            "Give data of the same kind."
        )
    return RealImages(config, data)


def check_classes(pipe: Pipeline, reals: RealImages) -> None:
    """Raise unless there are real images of every class of the model."""
    classes, names, config = pipe.config.num_classes, reals.images.class_names, reals.config
    if not classes:
        return
    if not names:
        raise InputError(
            f"Expected data of the model's {classes} classes; {config.data!r} has no classes. "
            "Put the images into one folder per class."
        )
    if len(names) != classes:
        raise InputError(
            f"Expected data of the model's {classes} classes; {config.data!r} has {len(names)}. "
            "Give the data that the model was trained on."
        )
    counts = reals.images.labels.bincount(minlength=classes)
    if missing := [names[label] for label in range(classes) if not counts[label]]:
        raise InputError(
            f"Expected images of every class to compare with; the {config.split} split of {config.data!r} has none of "
            f"{', '.join(missing[:5])}. Give data with all classes, or set another split."
        )


def measure_test(pipe: Pipeline, test: ImageSource) -> Numbers | None:
    """Bits per dimension of held-out images, and accuracy of classification by one gradient."""
    if not len(test):
        return None
    indices = evenly_spaced(len(test), TEST_IMAGES)
    pixels, labels = test.read(indices), test.labels[indices]
    bits = noisy_bits = accuracy = None
    conditional = bool(pipe.config.num_classes)
    if pipe.config.codec == "pixels":
        of = labels if conditional else None
        bits = pipe.log_prob(pixels, of).bits_per_dim.mean().item()
        noisy_bits = pipe.log_prob(pixels, of, noise="training").bits_per_dim.mean().item()
    if conditional:
        accuracy = (pipe.classify(pixels).labels == labels).double().mean().item()
    found = {"images": len(indices), "bits_per_dim": bits, "bits_per_dim_of_noisy_data": noisy_bits}
    return {**found, "accuracy_by_gradient": accuracy}


def describe(
    reals: RealImages, networks: Mapping[str, NetworkReference], samples: EvaluatedSamples, world: World
) -> Numbers:
    """The part of the result that models and sample files share."""
    return {
        "biflow": __version__,
        "machine": describe_machine(world.device),
        "data": {
            "name": reals.config.data,
            "split": reals.config.split,
            "images": len(reals.images),
            "test_images": len(reals.data.test),
            "reading": reals.config.reading.model_dump(mode="json"),
        },
        "metrics": {
            name: compare(name, samples.features[name], each.reference, samples.labels)
            for name, each in networks.items()
        },
        "metric_titles": {metric.key: dict(metric.titles) for metric in METRICS},
        "references": {name: dict(each.reference.facts) for name, each in networks.items()},
        "conventions": CONVENTIONS,
    }


def write_result(out: Path, result: Numbers, samples: EvaluatedSamples) -> Numbers:
    """Write evaluation.json and the page; returns the content of the JSON."""
    result = map_numbers(result, lambda number: number if math.isfinite(number) else None)
    result["tables"] = {"quality": quality_rows(result), "cost": cost_rows(result)}
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    write_text(out / REPORT_FILE, render_evaluation(result, samples.pixels[:SHOWN_IMAGES]))
    return result
