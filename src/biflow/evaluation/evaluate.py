"""What is measured of a model and its samples; each function gives plain numbers for a report."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from biflow.checkpoint import Model
from biflow.data.datasets import ImageSet, Split
from biflow.data.perturb import add_noise
from biflow.evaluation.metrics import frechet_distance, nearest_distances, nearest_distances_within
from biflow.features.judge import Judge
from biflow.losses.likelihood import bits_per_dim
from biflow.models.codec import PixelCodec
from biflow.models.patches import patchify, unpatchify
from biflow.sampling.one_pass import sample_in_one_pass
from biflow.sampling.sequential import invert_sequentially

CODEC = PixelCodec()


@torch.no_grad()
def measure_flow(model: Model, test: ImageSet) -> dict[str, float]:
    """Likelihood of noisy test images, and how far the exact inverse lands from where it started."""
    patches = _noisy_patches(model, test)
    bits = bits_per_dim(model.flow.log_prob(patches, test.labels), patches[0].numel(), CODEC.bin_width)
    return {
        "test_bits_per_dim_of_noisy_data": bits.mean().item(),
        "round_trip_error_float32": _round_trip_error(model, patches, test.labels),
        "round_trip_error_float64": _round_trip_error(model, patches.double(), test.labels),
    }


def _round_trip_error(model: Model, patches: Tensor, labels: Tensor) -> float:
    """Largest |x - inverse(forward(x))|, computed in the precision of the patches."""
    before = next(model.flow.parameters()).dtype
    flow = model.flow.to(patches.dtype)
    back = invert_sequentially(flow, flow(patches, labels).z, labels).x
    flow.to(before)
    return (back - patches).abs().max().item()


@torch.no_grad()
def measure_reverse(model: Model, test: ImageSet) -> dict[str, float]:
    """Mean squared error, in units of [-1, 1], of clean test images recovered from their noisy images' noise."""
    assert model.reverse is not None
    z = model.flow(_noisy_patches(model, test), test.labels).z
    recovered = sample_in_one_pass(model.reverse, z, test.labels).x
    clean = patchify(CODEC.encode(test.images), model.config.patch_size)
    return {"test_reconstruction_mse": (recovered - clean).square().mean().item()}


def _noisy_patches(model: Model, images: ImageSet) -> Tensor:
    clean = CODEC.encode(images.images)
    noisy = add_noise(clean, range(len(images)), model.config.noise_std, "evaluation")
    return patchify(noisy, model.config.patch_size)


@torch.no_grad()
def follow_one_image(model: Model, test: ImageSet) -> tuple[list[Tensor], list[Tensor]]:
    """The first test image's way to noise and back, each a list of images (P, H, W) in the codec's units.

    There: the image, the noisy image, then what each block makes of it, down to the noise.
    Back: what the heads of the reverse model read after each of its blocks, then the clean image it gives.
    """
    assert model.reverse is not None
    first = test.take(torch.tensor([0]))
    flow_pass = model.flow(_noisy_patches(model, first), first.labels)
    reverse_pass = model.reverse(flow_pass.z, first.labels)
    read = model.reverse.read_states(reverse_pass.hidden)[::-1]

    def image(patches: Tensor) -> Tensor:
        return unpatchify(patches, model.config.patch_size, model.config.channels)[0]

    there = [CODEC.encode(first.images)[0], *map(image, flow_pass.states)]
    return there, [image(patches) for patches in (*read, reverse_pass.image)]


@torch.no_grad()
def measure_judge(judge: Judge, split: Split) -> dict[str, float]:
    """How well the judge reads real test images, and the distance it sees between training and test images."""
    real = measure_samples(judge, split.test.images, split.test.labels, split.train)
    return {"test_accuracy": real["class_accuracy"], "frechet_floor_test_to_train": real["frechet_distance"]}


@torch.no_grad()
def measure_samples(judge: Judge, pixels: Tensor, labels: Tensor, reference: ImageSet) -> dict[str, float]:
    """Share read as their label, and Frechet distance to the reference images, both by the judge."""
    images = CODEC.encode(pixels)
    reference_features = judge.features(CODEC.encode(reference.images))
    return {
        "class_accuracy": (judge.read(images) == labels).double().mean().item(),
        "frechet_distance": frechet_distance(judge.features(images), reference_features),
    }


def measure_copying(pixels: Tensor, train: ImageSet) -> dict[str, float]:
    """Are samples copies of training images, or of each other?  Distances are Euclidean, between pixels.

    `nearer_than_real_share`: share of samples nearer to a training image than the 1st percentile of the
    distances from each training image to its nearest other one (0.01 for fresh real images, larger for copies).
    `spread_ratio`: mean nearest-neighbour distance within the samples over that within as many training
    images (1 for real images, smaller when samples repeat each other).
    """
    samples = pixels.float()
    real = train.images.float()
    threshold = nearest_distances_within(real).quantile(0.01)
    count = min(len(samples), len(real))
    return {
        "nearer_than_real_share": (nearest_distances(samples, real) < threshold).double().mean().item(),
        "spread_ratio": (
            nearest_distances_within(samples[:count]).mean() / nearest_distances_within(real[:count]).mean()
        ).item(),
    }


def milliseconds_per_image(
    samplers: Mapping[str, Callable[[int], object]], batch_size: int, repeats: int
) -> dict[str, float]:
    """Median time of each sampler, called with the batch size, divided by it.

    The samplers take turns, so that a slow moment of the machine strikes all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for sampler in samplers.values():
        sampler(batch_size)  # warm-up
    for _ in range(repeats):
        for name, sampler in samplers.items():
            start = time.perf_counter()
            sampler(batch_size)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * _median(times) / batch_size for name, times in seconds.items()}


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def count_parameters(module: torch.nn.Module) -> int:
    """Trained numbers in a module."""
    return sum(parameter.numel() for parameter in module.parameters())
