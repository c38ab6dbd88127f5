"""95 % confidence intervals of means, shares and differences."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any

from scipy.stats import binomtest, ttest_1samp, ttest_ind

CONFIDENCE = 0.95
TAIL = (1 + CONFIDENCE) / 2
Z = NormalDist().inv_cdf(TAIL)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % confidence limits."""

    value: float
    low: float
    high: float


def mean(values: Sequence[float]) -> Interval:
    """The mean of at least two values, by Student's t."""
    return _of_test(fmean(values), CONFIDENCE, ttest_1samp, values, 0.0)


def mean_decrease(before: Sequence[float], after: Sequence[float], comparisons: int = 1) -> Interval:
    """By how much a mean fell between two sets of at least two values (Welch's test).

    Args:
        before: The first values.
        after: The later values.
        comparisons: How many are made in all; their limits hold together (Bonferroni).
    """
    confidence = 1 - (1 - CONFIDENCE) / comparisons
    value = fmean(before) - fmean(after)
    return _of_test(value, confidence, ttest_ind, before, after, equal_var=False)


def _of_test(value: float, confidence: float, test: Callable[..., Any], *samples: Any, **options: Any) -> Interval:
    with warnings.catch_warnings():
        # SciPy warns of equal values, whose interval has no width.
        warnings.simplefilter("ignore", RuntimeWarning)
        limits = test(*samples, **options).confidence_interval(confidence)
    return Interval(value, float(limits.low), float(limits.high))


def share(count: int, total: int) -> Interval:
    """A share of ``total`` (Wilson, JASA 1927)."""
    limits = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(count / total, float(limits.low), float(limits.high))


def widened(found: Interval, comparisons: int) -> Interval:
    """An interval for one of several comparisons, which then hold together (Bonferroni)."""
    factor = NormalDist().inv_cdf(1 - (1 - TAIL) / comparisons) / Z
    low, high = (found.value + factor * (limit - found.value) for limit in (found.low, found.high))
    return Interval(found.value, low, high)


def mean_of(found: Sequence[Interval]) -> Interval:
    """The mean of values independent of each other, as those of different tasks are."""
    value = fmean(one.value for one in found)
    below = math.sqrt(sum((one.low - one.value) ** 2 for one in found)) / len(found)
    above = math.sqrt(sum((one.high - one.value) ** 2 for one in found)) / len(found)
    return Interval(value, value - below, value + above)


def worst_case_interval(difference: float, n: int) -> Interval:
    """The widest interval of a difference of two scores of which only ``n`` is known.

    Each score is a mean of ``n`` values from 0 to 1, whose variance is at most a quarter.
    On the same examples the difference varies less.
    """
    half = Z * math.sqrt(0.5 / max(1, n))
    return Interval(difference, difference - half, difference + half)
