"""The metrics of samples against real images, as one table: each with its titles and the function that computes it.

To add a metric, add a row to `METRICS` and its function; results, tables, report and model card follow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from biflow.evaluation.html import significant
from biflow.evaluation.metrics import (
    Estimate,
    Gaussian,
    enough_samples,
    frechet_distance,
    inception_score,
    kernel_distance,
)
from biflow.evaluation.neighbours import PrecisionAndRecall, precision_and_recall
from biflow.evaluation.reference import Reference
from biflow.features.metric_networks import Features

NETWORKS = {
    "inception": "Inception",
    "dinov2": "DINOv2",
    "efficientnet": "EfficientNet",
    "judge": "reference classifier",
}


@dataclass(frozen=True)
class Comparison:
    """The inputs of a metric: one network's features of the samples, and its statistics of the real images."""

    features: Features
    reference: Reference
    labels: Tensor | None  # (N,), of the samples

    @cached_property
    def overlap(self) -> PrecisionAndRecall:
        """Precision and recall, which are computed together."""
        return precision_and_recall(self.features.pooled, self.reference.examples)


@dataclass(frozen=True)
class Metric:
    """One row of the table: a number computed from the features of a network."""

    key: str  # in evaluation.json
    titles: Mapping[str, str]  # network -> title; not computed on other networks
    better: Literal["lower", "higher"]
    measure: Callable[[Comparison], float | Estimate | None]
    percent: bool = False

    def format(self, found: Mapping[str, Any]) -> str:
        """Its value in a network's results, as text; empty if it was not computed."""
        value, deviation = found.get(self.key), found.get(f"{self.key}_std")
        if value is None:
            return ""
        spread = "" if deviation is None else f" ± {deviation:.2g}"
        return f"{value:.1%}" if self.percent else f"{significant(value, 4)}{spread}"


def measure_spatial_frechet_distance(of: Comparison) -> float | None:
    """sFID with Inception's features; None for networks without spatial features."""
    if of.features.spatial is None or of.reference.spatial is None:
        return None
    return frechet_distance(Gaussian.fit(of.features.spatial), of.reference.spatial)


def measure_class_accuracy(of: Comparison) -> float | None:
    """Share of samples that the network classifies as the label they were sampled with; None without labels."""
    if of.features.logits is None or of.labels is None:
        return None
    return (of.features.logits.argmax(dim=1) == of.labels).double().mean().item()


def on_every_network(title: str) -> dict[str, str]:
    """Network -> the title with the network's name."""
    return {network: f"{title}, {name}" for network, name in NETWORKS.items()}


METRICS: tuple[Metric, ...] = (
    Metric(
        "frechet_distance",
        on_every_network("Fréchet distance") | {"inception": "FID", "dinov2": "FD-DINOv2"},
        "lower",
        lambda of: frechet_distance(Gaussian.fit(of.features.pooled), of.reference.pooled),
    ),
    Metric("spatial_frechet_distance", {"inception": "sFID"}, "lower", measure_spatial_frechet_distance),
    Metric(
        "inception_score",
        {"inception": "Inception Score"},
        "higher",
        lambda of: None if of.features.logits is None else inception_score(of.features.logits),
    ),
    Metric(
        "kernel_distance",
        {"inception": "KID", "dinov2": "kernel distance, DINOv2", "efficientnet": "kernel distance, EfficientNet"},
        "lower",
        lambda of: kernel_distance(of.features.pooled, of.reference.examples),
    ),
    Metric("precision", on_every_network("precision"), "higher", lambda of: of.overlap.precision),
    Metric("recall", on_every_network("recall"), "higher", lambda of: of.overlap.recall),
    Metric(
        "class_accuracy",
        {"judge": "classification accuracy, reference classifier"},
        "higher",
        measure_class_accuracy,
        percent=True,
    ),
)


def compare(network: str, features: Features, reference: Reference, labels: Tensor | None) -> dict[str, Any]:
    """All metrics of this network by key, with `<key>_std` for those that are a mean with a standard deviation.

    `reliable` is false with fewer images than features, where the covariance is singular.
    """
    of = Comparison(features, reference, labels)
    count = min(len(features.pooled), reference.pooled.count)
    found: dict[str, Any] = {"reliable": enough_samples(count, features.pooled.shape[1])}
    for metric in METRICS:
        value = metric.measure(of) if network in metric.titles else None
        if isinstance(value, Estimate):
            found |= {metric.key: value.mean, f"{metric.key}_std": value.deviation}
        else:
            found[metric.key] = value
    return found
