"""Measurements of a model and its samples, as plain numbers for the report."""

import time

import torch
from torch import Tensor

from biflow.data.datasets import ImageSet
from biflow.evaluation.compare import METRICS, compare
from biflow.evaluation.metrics import calibration_error
from biflow.evaluation.neighbours import nearest_distances, squared_reach
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
    """Likelihood of noisy test images, and the reconstruction error of the exact inverse."""
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
    reconstructed = invert_sequentially(flow, flow(patches, labels).z, labels).x
    flow.to(before)
    return (reconstructed - patches).abs().max().item()


@torch.no_grad()
def measure_reverse(model: Model, test: ImageSet) -> dict[str, float]:
    """Mean squared error, for pixels in [-1, 1], of clean test images predicted from their noisy images' noise."""
    assert model.reverse is not None
    patches, labels = _noisy_patches(model, test)
    predicted = sample_in_one_pass(model.reverse, model.flow(patches, labels).z, labels).x
    clean = patchify(model.codec.encode(test.images), model.config.patch_size).to(predicted)
    return {"test_reconstruction_mse": (predicted - clean).square().mean().item()}


@torch.no_grad()
def trace_first_image(model: Model, test: ImageSet) -> tuple[list[Tensor], list[Tensor]]:
    """The first test image, forward to noise and in reverse: two lists of images (P, H, W) in the codec's units.

    Forward: the image, the noisy image, then the state after each flow block; the last one is the noise.
    Reverse: the state that the reverse model predicts after each of its blocks, then the denoised image.
    """
    assert model.reverse is not None
    first = test.take(torch.tensor([0]))
    patches, labels = _noisy_patches(model, first)
    flow_pass = model.flow(patches, labels)
    reverse_pass = model.reverse(flow_pass.z, labels)
    predicted = model.reverse.read_heads(reverse_pass.hidden)[::-1]

    def image(patches: Tensor) -> Tensor:
        return unpatchify(patches, model.config.patch_size, model.config.channels)[0].cpu()

    forward = [model.codec.encode(first.images)[0], *map(image, flow_pass.states)]
    return forward, [image(patches) for patches in (*predicted, reverse_pass.image)]


def measure_classification(model: Model, test: ImageSet) -> dict[str, dict[str, float]]:
    """Accuracy, calibration error and time of each method of classifying test images by likelihood."""
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


class SampleScorer:
    """Metrics of samples against real images, computed with a reference classifier."""

    def __init__(self, judge: Judge, real: ImageSet) -> None:
        self.net, self.real = JudgeFeatures(judge), real
        self.reference = measure_reference(self.net, real, batch_size=BATCH_SIZE)

    def __call__(self, pixels: Tensor, labels: Tensor) -> dict[str, float]:
        """uint8 (N, P, H, W) and labels (N,) -> the metrics of `biflow evaluate`, and those of `measure_copying`."""
        found = compare("judge", features_of(self.net, pixels, batch_size=BATCH_SIZE), self.reference, labels)
        metrics = {metric.key: found[metric.key] for metric in METRICS if found[metric.key] is not None}
        return {**metrics, **measure_copying(pixels, self.real)}


def measure_copying(pixels: Tensor, train: ImageSet) -> dict[str, float]:
    """Whether samples copy training images, or each other, by Euclidean distance between pixels.

    `nearer_than_real_share`: share of samples closer to a training image than the 1st percentile of the
    nearest-neighbour distances among training images; large for copies.
    `spread_ratio`: mean nearest-neighbour distance among the samples, relative to that among as many training
    images; below 1 when samples repeat each other.
    """
    samples, real = pixels.flatten(1), train.images.flatten(1)
    count = min(len(samples), len(real))
    threshold = squared_reach(real, 1).sqrt().quantile(0.01)
    within_samples, within_real = (squared_reach(images[:count], 1).sqrt().mean() for images in (samples, real))
    return {
        "nearer_than_real_share": (nearest_distances(samples, real) < threshold).double().mean().item(),
        "spread_ratio": (within_samples / within_real).item(),
    }
