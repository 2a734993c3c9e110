"""What is measured of a model and its samples; each function gives plain numbers for a report."""

import time

import torch
from torch import Tensor

from biflow.data.datasets import ImageSet
from biflow.evaluation.compare import METRICS, compare
from biflow.evaluation.metrics import calibration_error
from biflow.evaluation.neighbours import nearest_distances, nearest_distances_within
from biflow.evaluation.reference import measure_reference
from biflow.evaluation.samples import features_of
from biflow.features.judge import Judge
from biflow.features.metric_networks import JudgeFeatures
from biflow.inference.classify import METHODS, classify_images
from biflow.losses.likelihood import bits_per_dim
from biflow.models.codec import PixelCodec
from biflow.models.model import Model
from biflow.models.patches import patchify, unpatchify
from biflow.sampling.one_pass import sample_in_one_pass
from biflow.sampling.sequential import invert_sequentially

BATCH_SIZE = 500


@torch.no_grad()
def measure_flow(model: Model, test: ImageSet) -> dict[str, float]:
    """Likelihood of noisy test images, and how far the exact inverse lands from where it started."""
    patches, labels = _noisy_patches(model, test)
    bits = bits_per_dim(model.flow.log_prob(patches, labels), patches[0].numel(), PixelCodec.bin_width)
    return {
        "test_bits_per_dim_of_noisy_data": bits.mean().item(),
        "round_trip_error_float32": _round_trip_error(model, patches, labels),
        "round_trip_error_float64": _round_trip_error(model, patches.double(), labels),
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
    patches, labels = _noisy_patches(model, test)
    recovered = sample_in_one_pass(model.reverse, model.flow(patches, labels).z, labels).x
    clean = patchify(model.codec.encode(test.images), model.config.patch_size).to(recovered)
    return {"test_reconstruction_mse": (recovered - clean).square().mean().item()}


@torch.no_grad()
def follow_one_image(model: Model, test: ImageSet) -> tuple[list[Tensor], list[Tensor]]:
    """The first test image's way to noise and back, each a list of images (P, H, W) in the codec's units.

    There: the image, the noisy image, then what each block makes of it, down to the noise.
    Back: what the heads of the reverse model read after each of its blocks, then the clean image it gives.
    """
    assert model.reverse is not None
    first = test.take(torch.tensor([0]))
    patches, labels = _noisy_patches(model, first)
    flow_pass = model.flow(patches, labels)
    reverse_pass = model.reverse(flow_pass.z, labels)
    read = model.reverse.read_heads(reverse_pass.hidden)[::-1]

    def image(patches: Tensor) -> Tensor:
        return unpatchify(patches, model.config.patch_size, model.config.channels)[0].cpu()

    there = [model.codec.encode(first.images)[0], *map(image, flow_pass.states)]
    return there, [image(patches) for patches in (*read, reverse_pass.image)]


def measure_classification(model: Model, test: ImageSet) -> dict[str, dict[str, float]]:
    """For each way of classifying test images by likelihood: how often it is right, its calibration, its time."""
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        start = time.perf_counter()
        guess = classify_images(model, test.images, method=method)
        seconds = time.perf_counter() - start
        found[method] = {
            "accuracy": (guess.labels == test.labels).double().mean().item(),
            "calibration_error": calibration_error(guess.probabilities, test.labels),
            "milliseconds_per_image": 1000 * seconds / len(test),
        }
    return found


def _noisy_patches(model: Model, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Patches with the training noise and their labels, on the model's device."""
    patches = model.noisy_patches(images.images, range(len(images)), "evaluation")
    return patches, images.labels.to(model.device)


class SampleJudge:
    """Metrics of samples by a reference classifier, against real images."""

    def __init__(self, judge: Judge, real: ImageSet) -> None:
        self.net, self.real = JudgeFeatures(judge), real
        self.reference = measure_reference(self.net, real, batch_size=BATCH_SIZE)

    def __call__(self, pixels: Tensor, labels: Tensor) -> dict[str, float]:
        """uint8 (N, P, H, W) and labels (N,) -> what `biflow evaluate` measures, and signs of copying."""
        found = compare("judge", features_of(self.net, pixels, batch_size=BATCH_SIZE), self.reference, labels)
        metrics = {metric.key: found[metric.key] for metric in METRICS if found[metric.key] is not None}
        return {**metrics, **measure_copying(pixels, self.real)}


def measure_copying(pixels: Tensor, train: ImageSet) -> dict[str, float]:
    """Are samples copies of training images, or of each other?  Distances are Euclidean, between pixels.

    `nearer_than_real_share`: share of samples nearer to a training image than the 1st percentile of the
    distances from each training image to its nearest other one; many for copies.
    `spread_ratio`: mean nearest-neighbour distance within the samples over that within as many training
    images (1 for training images themselves, smaller when samples repeat each other).
    """
    samples, real = pixels.float(), train.images.float()
    count = min(len(samples), len(real))
    threshold = nearest_distances_within(real).quantile(0.01)
    within_samples, within_real = (nearest_distances_within(images[:count]).mean() for images in (samples, real))
    return {
        "nearer_than_real_share": (nearest_distances(samples, real) < threshold).double().mean().item(),
        "spread_ratio": (within_samples / within_real).item(),
    }
