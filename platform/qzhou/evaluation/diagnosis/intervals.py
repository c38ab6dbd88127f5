"""How sure one can be of what a diagnosis compares: 95 % intervals of means, shares and differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from scipy.stats import t as student

from qzhou.evaluation.items import CONFIDENCE, Interval

TAIL = (1 + CONFIDENCE) / 2
Z = NormalDist().inv_cdf(TAIL)


def widened(found: Interval, looks: int) -> Interval:
    """An interval for one of ``looks`` comparisons, so that all of them together are as sure as one (Bonferroni)."""
    factor = NormalDist().inv_cdf(1 - (1 - TAIL) / looks) / Z
    low, high = (found.value + factor * (limit - found.value) for limit in (found.low, found.high))
    return Interval(found.value, low, high)


def mean_of(found: Sequence[Interval]) -> Interval:
    """The mean of values that are independent of each other, as those of different tasks are."""
    value = fmean(one.value for one in found)
    below, above = (
        math.sqrt(sum((getattr(one, limit) - one.value) ** 2 for one in found)) / len(found)
        for limit in ("low", "high")
    )
    return Interval(value, value - below, value + above)


def widest(difference: float, n: int) -> Interval:
    """A difference of two scores of which only ``n`` is known.

    Each is a mean of ``n`` values from 0 to 1, whose variance is at most a quarter; on the same items the difference
    varies less than this.
    """
    half = Z * math.sqrt(0.5 / max(1, n))
    return Interval(difference, difference - half, difference + half)


def mean(values: Sequence[float]) -> Interval:
    """The mean of at least two values, by Student's t."""
    half = float(student.ppf(TAIL, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values), fmean(values) - half, fmean(values) + half)


def fall(before: Sequence[float], after: Sequence[float], looks: int = 1) -> Interval:
    """By how much the mean fell from some values to others, at least two each, for one of ``looks`` comparisons.

    Source: Welch, The generalization of "Student's" problem (Biometrika, 1947); Bonferroni for several.
    """
    value = fmean(before) - fmean(after)
    parts = [(stdev(some) ** 2 / len(some), len(some) - 1) for some in (before, after)]
    error = math.sqrt(sum(part for part, _ in parts))
    freedom = error**4 / sum(part**2 / left for part, left in parts) if error else 1.0
    half = float(student.ppf(1 - (1 - TAIL) / looks, freedom)) * error
    return Interval(value, value - half, value + half)


def share(count: int, total: int) -> Interval:
    """A share of ``total`` (Wilson, JASA 1927)."""
    part = count / total
    middle = (part + Z**2 / (2 * total)) / (1 + Z**2 / total)
    half = Z / (1 + Z**2 / total) * math.sqrt(part * (1 - part) / total + Z**2 / (4 * total**2))
    return Interval(part, max(0.0, middle - half), min(1.0, middle + half))
