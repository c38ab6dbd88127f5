"""How far the scores of several seeds lie apart: Student's t."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from qzhou.evaluation.intervals import mean


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds and its 95 % confidence limits; None for one seed, or for several of the same value."""

    mean: float
    low: float | None = None
    high: float | None = None


def over_seeds(values: Sequence[float]) -> Spread:
    """The mean of at least one value, with its confidence interval.

        mean +- t(0.975, n - 1) * s / sqrt(n)

    with s the standard deviation (n - 1 in its denominator). It takes the scores of seeds
    as normally distributed.

    Source: Student, The probable error of a mean (Biometrika, 1908).
    """
    if len(set(values)) == 1:
        return Spread(fmean(values))
    found = mean(values)
    return Spread(found.value, found.low, found.high)
