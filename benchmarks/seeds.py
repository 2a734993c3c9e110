"""Whether a difference is significant: over seeds, or over resampled samples of one seed."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor

RESAMPLED = 1000


def summary(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


class Verdict(NamedTuple):
    """Whether a mean gain, paired by seed, is significant: zero lies outside its 95% interval (Student's t)."""

    outcome: str
    mean: float
    half_width: float  # of the interval

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half_width:.2f}"


def decide(gains: Sequence[float]) -> Verdict:
    """The verdict on the claim that the gains, one per seed, are positive."""
    mean, half_width = statistics.mean(gains), float("inf")
    if len(gains) > 1:
        half_width = float(student.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    outcome = "too close to tell" if abs(mean) <= half_width else "holds" if mean > 0 else "does not hold"
    return Verdict(outcome, mean, half_width)


class Interval(NamedTuple):
    """Whether the gain between two sets of samples is significant: zero lies outside its 95% interval."""

    outcome: str
    gain: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.gain:.3g}, {self.low:.3g} to {self.high:.3g}"


def resample(better: Tensor, worse: Tensor, measure: Callable[[Tensor], float]) -> Interval:
    """The verdict on the claim that a measure of paired items (N, ...) is lower for `better`, by basic bootstrap.

    Both are resampled by the same indices. The basic interval mirrors the quantiles at the observed gain, since a
    Fréchet distance of resampled items is biased.
    """
    generator, gain = torch.Generator().manual_seed(0), measure(worse) - measure(better)
    gains = []
    for _ in range(RESAMPLED):
        indices = torch.randint(len(better), (len(better),), generator=generator)
        gains.append(measure(worse[indices]) - measure(better[indices]))
    low, high = (2 * gain - torch.tensor(gains).quantile(torch.tensor([0.975, 0.025]))).tolist()
    return Interval("holds" if low > 0 else "does not hold" if high < 0 else "too close to tell", gain, low, high)
