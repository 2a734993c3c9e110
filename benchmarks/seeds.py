"""Statistics over seeds: mean and standard deviation, and whether a difference is significant."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student


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
