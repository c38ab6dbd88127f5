"""How far the scores of several seeds lie apart: Student's t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds and where that of all seeds lies, with 95 % confidence.

    One seed says nothing of that, nor do several of the very same value.
    """

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_seeds(values: Sequence[float]) -> Spread:
    """The mean of at least one value, with its confidence interval.

        mean +- t(0.975, n - 1) * s / sqrt(n)

    with s the standard deviation (n - 1 in its denominator). It takes the scores of seeds as normally distributed.

    Source: Student, The probable error of a mean (Biometrika, 1908).
    """
    mean = fmean(values)
    if len(set(values)) == 1:
        return Spread(mean)
    reach = (
        float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        * stdev(values)
        / sqrt(len(values))
    )
    return Spread(mean, mean - reach, mean + reach)
