"""Samples compared with real images, as numbers for a report."""

from torch import Tensor

from biflow.evaluation.metrics import Gaussian, enough_samples, frechet_distance, inception_score, kernel_distance
from biflow.evaluation.neighbours import precision_and_recall
from biflow.evaluation.reference import Reference
from biflow.features.feature_nets import Features


def compare(
    features: Features, reference: Reference, labels: Tensor | None, *, network: str
) -> dict[str, float | bool | None]:
    """Every measure that a network's features allow.

    With Inception's, `frechet_distance` is FID, `spatial_frechet_distance` sFID, `kernel_distance` KID.  `reliable` is
    false where there are fewer images than features, of which no covariance can be told.
    """
    pooled = features.pooled
    count = min(len(pooled), reference.pooled.count)
    kernel = kernel_distance(pooled, reference.examples)
    likeness = precision_and_recall(pooled, reference.examples)
    found: dict[str, float | bool | None] = {
        "frechet_distance": frechet_distance(Gaussian.fit(pooled), reference.pooled),
        "reliable": enough_samples(count, pooled.shape[1]),
        "spatial_frechet_distance": None,
        "kernel_distance": kernel.mean,
        "kernel_distance_std": kernel.deviation,
        "precision": likeness.precision,
        "recall": likeness.recall,
        "inception_score": None,
        "inception_score_std": None,
        "class_accuracy": None,
    }
    if features.spatial is not None and reference.spatial is not None:
        found["spatial_frechet_distance"] = frechet_distance(Gaussian.fit(features.spatial), reference.spatial)
    if features.logits is not None and network == "inception":
        score = inception_score(features.logits)
        found |= {"inception_score": score.mean, "inception_score_std": score.deviation}
    if features.logits is not None and labels is not None and network == "judge":
        found["class_accuracy"] = (features.logits.argmax(dim=1) == labels).double().mean().item()
    return found
