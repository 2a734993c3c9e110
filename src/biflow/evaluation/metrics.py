"""Metrics of sets of images, as pure functions of their features, logits or probabilities; in float64."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.errors import InputError
from biflow.losses.frechet import matrix_power


@dataclass(frozen=True)
class Gaussian:
    """Mean (F,) and covariance (F, F) of the features of `count` images, in float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def fit(cls, features: Tensor) -> "Gaussian":
        """Fit features (N, F), with the unbiased covariance (divided by N - 1) that FID implementations use."""
        check_features(features, least=2)
        features = features.double()
        return cls(features.mean(0), features.T.cov().reshape(2 * features.shape[1:]), len(features))


@dataclass(frozen=True)
class Moments:
    """Running mean and scatter matrix of features, in float64, updated batch by batch.

    Sums around the mean stay precise when the mean is large compared with the deviation (Chan et al. 1979).
    """

    count: int
    mean: Tensor  # (F,)
    scatter: Tensor  # (F, F): the sum of (x - mean)(x - mean)^T

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> "Moments":
        """The moments of an empty set of features of this width."""
        zeros = torch.zeros(width, width + 1, dtype=torch.float64, device=device)
        return cls(0, zeros[:, 0], zeros[:, 1:])

    def update(self, features: Tensor) -> "Moments":
        """The moments with a batch of features (B, F) added."""
        check_features(features, least=1)
        features = features.to(self.mean)
        mean = features.mean(0)
        return self.merge(Moments(len(features), mean, (features - mean).T @ (features - mean)))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together, for example of two processes."""
        check_same_width(self.mean, other.mean)
        count = self.count + other.count
        share, apart = other.count / max(count, 1), other.mean - self.mean
        scatter = self.scatter + other.scatter + self.count * share * torch.outer(apart, apart)
        return Moments(count, self.mean + share * apart, scatter)

    def gaussian(self) -> Gaussian:
        """The Gaussian of all features so far, equal to `Gaussian.fit` of their concatenation."""
        if self.count < 2:
            raise InputError(_too_few(self.count, 2))
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def enough_samples(count: int, width: int) -> bool:
    """Whether there are more samples than features.

    With fewer, the covariance is singular, and a Fréchet distance depends more on the count than on the images.
    """
    return count > width


def frechet_distance(gaussian: Gaussian, reference: Gaussian) -> float:
    """Fréchet distance between Gaussians, 0 or more.

    |mean difference|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), in float64; with Inception features this is FID
    (Heusel et al. 2017, arXiv 1706.08500, eq. 6).  The square root's trace comes from the eigenvalues of
    the symmetric C1^(1/2) C2 C1^(1/2), which also holds for singular covariances.
    """
    check_same_width(gaussian.mean, reference.mean)
    device = gaussian.mean.device
    one, other = gaussian.covariance.double(), reference.covariance.to(device).double()
    mean_term = (gaussian.mean.double() - reference.mean.to(device).double()).square().sum()
    root = matrix_power(one, 0.5)
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return max(0.0, float(mean_term + one.trace() + other.trace() - 2 * cross))


class Estimate(NamedTuple):
    """Mean and standard deviation of a metric over several subsets of the samples."""

    mean: float
    deviation: float


def kernel_distance(
    features: Tensor, reference: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """Kernel distance between two sets of features, (N, F) and (M, F); with Inception features this is KID.

    The unbiased squared maximum mean discrepancy under (x.y / F + 1)^3, averaged over random subsets of both sets
    (Binkowski et al. 2018, arXiv 1801.01401, section 4; eq. 4).  For two sets from the same distribution it is 0 on
    average, and can be negative.  Subsets are no larger than the smaller set; `seed` fixes them.
    """
    for each in (features, reference):
        check_features(each, least=2)
    check_same_width(features, reference)
    size = min(subset_size, len(features), len(reference))
    generator = torch.Generator().manual_seed(seed)

    def draw(items: Tensor) -> Tensor:
        return items[torch.randperm(len(items), generator=generator)[:size].to(items.device)].double()

    return _estimate([squared_discrepancy(draw(features), draw(reference)) for _ in range(subsets)])


def squared_discrepancy(features: Tensor, reference: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy under a cubic kernel, of (N, F) and (M, F): a scalar.

    The mean kernel over pairs of different items within each set, minus twice the mean between the sets (Gretton et
    al. 2012, Journal of Machine Learning Research 13, eq. 3).
    """
    within = sum(_mean_within(_cubic_kernel(each, each)) for each in (features, reference))
    return within - 2 * _cubic_kernel(features, reference).mean()


def _cubic_kernel(items: Tensor, others: Tensor) -> Tensor:
    return (items @ others.T / items.shape[1] + 1) ** 3


def _mean_within(kernel: Tensor) -> Tensor:
    """The mean of a square matrix without its diagonal."""
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))


def inception_score(logits: Tensor, *, split_size: int = 5000, seed: int = 0) -> Estimate:
    """Inception Score: exp of the mean KL divergence of p(class | image) from p(class); 1 to the number of classes.

    logits (N, K), shuffled by the seed, then split into equal parts of `split_size` or more; one part if there are
    fewer.  guided-diffusion's evaluator splits them in the order of the file, so that images sorted by class score 1
    per class of a split, and its last split may hold a single image.  Published scores use Inception's logits without
    bias (Salimans et al. 2016, arXiv 1606.03498, section 4) and 50,000 images.
    """
    check_features(logits, least=1)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits.device)
    splits = logits[order].double().softmax(dim=1).tensor_split(max(1, len(logits) // split_size))
    return _estimate([_exp_information(split) for split in splits])


def _exp_information(probabilities: Tensor) -> Tensor:
    """exp of the mutual information of image and class, for (N, K): entropy of the mean minus mean entropy."""
    entropy = torch.special.entr(probabilities).sum(dim=1).mean()
    return (torch.special.entr(probabilities.mean(0)).sum() - entropy).exp()


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error of probabilities (N, K) for labels (N,): 0 if confidence equals accuracy.

    Images are binned by the probability of their most likely class, in bins of equal width.  The error is the mean over
    images of the gap between a bin's accuracy and its mean probability (Guo et al. 2017, arXiv 1706.04599, eq. 3).
    """
    confidence, guess = probabilities.double().max(dim=1)
    right = (guess == labels).double()
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, right - confidence)
    return float(gaps.abs().sum() / len(labels))


def _estimate(scores: list[Tensor]) -> Estimate:
    found = torch.stack(scores)
    return Estimate(found.mean().item(), found.std(correction=0).item())


def check_features(features: Tensor, *, least: int) -> None:
    """Raise unless these are features (N, F) of at least `least` images, without NaN or Inf."""
    if features.ndim != 2:
        raise InputError(f"Expected features (N, F); got {tuple(features.shape)}. Flatten the features of each image.")
    if len(features) < least:
        raise InputError(_too_few(len(features), least))
    if broken := int((~features.isfinite().all(dim=1)).sum()):
        raise InputError(
            f"Expected finite features; got NaN or Inf for {broken} of {len(features)}. Check these images."
        )


def _too_few(count: int, least: int) -> str:
    return f"Expected features of at least {least} images; got {count}. Use more images."


def check_same_width(features: Tensor, reference: Tensor) -> None:
    """Raise unless both, (N, F) and (M, F) or both (F,), have the same number of features."""
    width, other = features.shape[-1], reference.shape[-1]
    if width != other:
        raise InputError(f"Expected features of the same width; got {width} and {other}. Use the same network.")
