"""Scores of single examples, and confidence intervals over them by the paired bootstrap.

Two models that are scored on the same queries, pairs or texts are compared on resampled
sets of these examples (Efron and Tibshirani, An Introduction to the Bootstrap, 1993; for
retrieval Smucker et al., CIKM 2007). scipy.stats.bootstrap resamples one set of examples; a
task has several parts, and a mean over tasks several sets.

Shape letters in this file: N examples, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from qzhou.evaluation.intervals import TAIL, Interval

Values = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

RESAMPLES = 2000
# A resample of fewer examples resembles the sample more than it resembles the world. Of two equal models, one would
# win "surely" in 15 of 100 comparisons over five examples, and in all of them over one.
FEWEST_EXAMPLES = 10
# The limits of a score about which nothing is known; correlations reach down to -1.
HIGHEST = 1.0
# Bounds on memory and time for tasks with very many examples.
EXAMPLES_AT_ONCE = 5_000_000
MOST_EXAMPLES, FEWEST_RESAMPLES = 200_000_000, 200

Statistic = Literal["mean", "spearman", "average_precision"]


@dataclass(frozen=True, slots=True)
class Part:
    """The examples of one subset and split of a task.

    Attributes:
        values: Per query, text or pair: its own score, or the cosine of a pair.
        ids: The ids of queries; empty where the position identifies an example.
        gold: The labels or grades of pairs; empty where the statistic is a mean.
    """

    name: str
    values: tuple[float, ...]
    ids: tuple[str, ...] = ()
    gold: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PerExampleScores:
    """The examples behind a score: the mean over all parts of a statistic of examples.

    Attributes:
        data_revision: The revision of the task's data: the same queries over another corpus are another task.
    """

    statistic: Statistic
    parts: tuple[Part, ...]
    data_revision: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PerExampleScores:
        """From the JSON of ``dataclasses.asdict``."""
        parts = tuple(
            Part(one["name"], tuple(one["values"]), tuple(one["ids"]), tuple(one["gold"]))
            for one in content["parts"]
        )
        return cls(content["statistic"], parts, content["data_revision"])

    @property
    def count(self) -> int:
        """The number of examples in all parts."""
        return sum(len(part.values) for part in self.parts)

    @property
    def score(self) -> float:
        """The score over all examples."""
        return float(self.resampled([np.arange(len(part.values))[None] for part in self.parts])[0])

    def resampled(self, rows_of_parts: Sequence[Rows]) -> Values:
        """The scores [B] over resamples [B, N] of each part's examples."""
        statistic = STATISTICS[self.statistic]
        found = []
        for part, rows_BN in zip(self.parts, rows_of_parts, strict=True):
            gold_BN = np.asarray(part.gold)[rows_BN] if part.gold else rows_BN
            found.append(statistic(np.asarray(part.values)[rows_BN], gold_BN))
        return np.asarray(np.mean(found, axis=0), dtype=np.float64)


def score_interval(scores: PerExampleScores, *, seed: int) -> Interval:
    """A score with its bootstrap interval; from -1 to 1 where there are fewer than ``FEWEST_EXAMPLES``."""
    resampled_B = _resampled([scores], seed)[0]
    return _percentile_interval(scores.score, resampled_B, scores.count, HIGHEST)


def paired_difference(scores: PerExampleScores, baseline: PerExampleScores, *, seed: int) -> Interval | None:
    """By how much a model leads another on the same examples; None where these differ."""
    return pooled_difference([([scores], [baseline])], seed=seed)


def pooled_difference(
    tasks: Sequence[tuple[Sequence[PerExampleScores], Sequence[PerExampleScores]]], *, seed: int
) -> Interval | None:
    """By how much several trained models lead several others, on the mean over some tasks.

    All models see the same resampled examples. So a query that is asked of six models
    counts once and not six times. The limits tell what other queries would have shown of
    these very models. They do not tell what training again would have changed.

    Args:
        tasks: For each task, the scores of the leading models and of the others.
        seed: Starts the random numbers of the bootstrap.

    Returns: None where the models of a task were scored on different examples.
    """
    compared = ((ours[0], one) for ours, theirs in tasks for one in (*ours, *theirs))
    if not tasks or any(_examples(first) != _examples(one) for first, one in compared):
        return None
    value, leads = 0.0, []
    for number, (ours, theirs) in enumerate(tasks):
        value += float(np.mean([one.score for one in ours]) - np.mean([one.score for one in theirs]))
        resampled = _resampled([*ours, *theirs], [seed, number])
        leads.append(np.mean(resampled[: len(ours)], axis=0) - np.mean(resampled[len(ours) :], axis=0))
    fewest = min(map(len, leads))  # tasks with very many examples have fewer resamples
    means_B = np.mean([one[:fewest] for one in leads], axis=0)
    count = min(ours[0].count for ours, _ in tasks)
    return _percentile_interval(value / len(tasks), means_B, count, 2 * HIGHEST)


def _examples(scores: PerExampleScores) -> tuple[object, ...]:
    """What two scores must have in common to be compared example by example."""
    parts = [(part.name, part.ids, part.gold, len(part.values)) for part in scores.parts]
    return scores.statistic, scores.data_revision, parts


def _percentile_interval(value: float, resampled_B: Values, count: int, worst_case_interval: float) -> Interval:
    """The limits of 95 % of the resamples, widened by Student's t as few examples require.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap (The American Statistician, 2015), section 4.4.3:
    the expanded percentile interval.
    """
    if count < FEWEST_EXAMPLES:
        return Interval(value, -worst_case_interval, worst_case_interval)
    reach = math.sqrt(count / (count - 1)) * student.ppf(TAIL, count - 1)
    tail = float(norm.cdf(-reach))
    low, high = np.nanquantile(resampled_B, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _resampled(compared: Sequence[PerExampleScores], seed: int | list[int]) -> list[Values]:
    """For each score its resamples [B]; a resample has the same examples for all scores."""
    generator = np.random.default_rng(seed)
    sizes = [len(part.values) for part in compared[0].parts]
    examples = max(1, sum(sizes))
    resamples = min(RESAMPLES, max(FEWEST_RESAMPLES, MOST_EXAMPLES // examples))
    at_once = max(1, min(resamples, EXAMPLES_AT_ONCE // examples))
    found = []
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        rows = [generator.integers(size, size=(count, size)) for size in sizes]
        found.append([scores.resampled(rows) for scores in compared])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _mean(value_BN: Values, _: object) -> Values:
    return np.asarray(value_BN.mean(axis=1))


def _spearman(value_BN: Values, gold_BN: Values) -> Values:
    one, other = (rankdata(rows, axis=1) for rows in (value_BN, gold_BN))
    one, other = one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True)
    lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    with np.errstate(invalid="ignore"):  # a resample of equal examples has no correlation
        return np.asarray((one * other).sum(axis=1) / lengths)


def _average_precision(value_BN: Values, gold_BN: Values) -> Values:
    """Mean precision at the positives, best value first; equal values count together, as in scikit-learn."""
    order = np.argsort(-value_BN, axis=1, kind="stable")
    value_BN, hit_BN = (np.take_along_axis(rows, order, axis=1) for rows in (value_BN, gold_BN))
    count = hit_BN.shape[1]
    precision_BN = np.cumsum(hit_BN, axis=1) / np.arange(1, count + 1)
    # The precision of a pair is that at the last pair of equal value.
    next_differs = value_BN[:, 1:] != value_BN[:, :-1]
    last = np.concatenate([next_differs, np.ones((len(value_BN), 1), bool)], axis=1)
    place = np.where(last, np.arange(count), count)
    end_BN = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]
    at_hits_BN = np.take_along_axis(precision_BN, end_BN, axis=1) * hit_BN
    with np.errstate(invalid="ignore"):
        return np.asarray(at_hits_BN.sum(1) / hit_BN.sum(1))


STATISTICS: dict[Statistic, Callable[[Values, Any], Values]] = {
    "mean": _mean,
    "spearman": _spearman,
    "average_precision": _average_precision,
}
