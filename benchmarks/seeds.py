"""What several seeds say: mean and spread, and whether a difference is more than chance."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student


def summary(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


class Verdict(NamedTuple):
    """Whether a gain within each seed is more than chance: zero lies outside its 95% interval (Student's t)."""

    outcome: str
    mean: float
    reach: float  # half of the interval

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.reach:.2f}"


def judge(gains: Sequence[float]) -> Verdict:
    """The verdict on the claim that gains, one a seed, are positive."""
    mean, reach = statistics.mean(gains), float("inf")
    if len(gains) > 1:
        reach = float(student.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    outcome = "too close to tell" if abs(mean) <= reach else "holds" if mean > 0 else "does not hold"
    return Verdict(outcome, mean, reach)
