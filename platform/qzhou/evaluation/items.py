"""What a score is made of, item by item, and how sure one can be of a difference: paired bootstrap.

Two models that are judged on the same queries, pairs or texts are compared by drawing the items again, with
replacement, and asking each time by how much the one is ahead (Efron and Tibshirani, An Introduction to the Bootstrap,
1993; for retrieval Smucker et al., CIKM 2007).

Shape letters in this file: N items, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy.stats import norm, rankdata
from scipy.stats import t as student

Values = np.ndarray[Any, np.dtype[np.float64]]
Drawn = np.ndarray[Any, np.dtype[np.int64]]

DRAWS = 2000
CONFIDENCE = 0.95
# With fewer, what is drawn again resembles itself more than it does the world: of two equal models one would be surely
# ahead in 15 of 100 comparisons over five items, and always over one.
FEWEST_ITEMS = 10
HIGHEST = 1.0  # of a score; the lowest is minus that, of a correlation
DRAWN_AT_ONCE = 5_000_000  # items; bounds the memory of a bootstrap
DRAWN_MOST, FEWEST_DRAWS = 200_000_000, 200  # bounds its time, on tasks with very many items

Statistic = Literal["mean", "spearman", "average_precision"]


@dataclass(frozen=True, slots=True)
class Part:
    """The items of one subset and split of a task.

    Attributes:
        ids: Of queries; empty where items are told apart by their place.
        values: Per query, text or pair: its own score, or the cosine of a pair.
        gold: What the values are compared with; empty for a mean.
    """

    name: str
    values: tuple[float, ...]
    ids: tuple[str, ...] = ()
    gold: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Items:
    """A score is the mean over its parts of a statistic of their items.

    Attributes:
        data: The revision of the task's data: the same items over another corpus are another task.
    """

    statistic: Statistic
    parts: tuple[Part, ...]
    data: str = ""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Items:
        """From what :meth:`plain` gave, after JSON."""
        parts = tuple(
            Part(one["name"], tuple(one["values"]), tuple(one["ids"]), tuple(one["gold"]))
            for one in content["parts"]
        )
        return cls(content["statistic"], parts, content.get("data", ""))

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @property
    def count(self) -> int:
        """How many there are, in all parts."""
        return sum(len(part.values) for part in self.parts)

    @property
    def score(self) -> float:
        """The statistic of all items, each once."""
        every = [np.arange(len(part.values))[None] for part in self.parts]
        return float(self._drawn(every)[0])

    def _drawn(self, drawn: Sequence[Drawn]) -> Values:
        """Scores [B] of draws [B, N] from each part."""
        statistic = STATISTICS[self.statistic]
        found = [
            statistic(
                np.asarray(part.values)[draw_BN],
                np.asarray(part.gold)[draw_BN] if part.gold else draw_BN,
            )
            for part, draw_BN in zip(self.parts, drawn, strict=True)
        ]
        return np.asarray(np.mean(found, axis=0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the limits between which it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def interval(items: Items, *, seed: int, draws: int = DRAWS) -> Interval:
    """A score with its confidence interval (percentile bootstrap, as wide as so few items ask for).

    Of fewer than ``FEWEST_ITEMS`` nothing is known: the limits are those of all scores, -1 and 1, and -2 and 2 of a
    difference.
    """
    return _limits(items.score, [items], lambda scores: scores[0], seed, draws, HIGHEST)


def difference(items: Items, against: Items, *, seed: int, draws: int = DRAWS) -> Interval | None:
    """By how much one model is ahead of another on the same items; None where they were judged on others."""
    if not _same(items, against):
        return None
    value = items.score - against.score
    return _limits(
        value, [items, against], lambda scores: scores[0] - scores[1], seed, draws, 2 * HIGHEST
    )


def pooled_difference(
    tasks: Sequence[tuple[Sequence[Items], Sequence[Items]]], *, seed: int, draws: int = DRAWS
) -> Interval | None:
    """By how much several trainings of one kind are ahead of several of another, on the mean of some tasks.

    A draw of items is the same for all trainings that are judged on them, so that a query which is asked of six models
    counts once and not six times. The limits say what other queries would have told of these very trainings; what
    other trainings would have given is not in them.

    Args:
        tasks: For each, the items of every training of the one kind and of the other.

    Returns: None where the trainings of a task were judged on other items.
    """
    if not tasks or not all(
        _same(ours[0], one) for ours, theirs in tasks for one in (*ours, *theirs)
    ):
        return None
    found, value = [], 0.0
    for number, (ours, theirs) in enumerate(tasks):
        value += float(_ahead([one.score for one in ours], [one.score for one in theirs]))
        of = partial(_split_ahead, count=len(ours))
        found.append(_draws([*ours, *theirs], of, [seed, number], draws))
    fewest = min(map(len, found))  # of a task with very many items there are fewer
    means = np.mean([one[:fewest] for one in found], axis=0)
    return _percentiles(
        value / len(tasks), means, min(ours[0].count for ours, _ in tasks), 2 * HIGHEST
    )


def _split_ahead(scores: list[Values], *, count: int) -> Values:
    return _ahead(scores[:count], scores[count:])


def _ahead(ours: Sequence[Any], theirs: Sequence[Any]) -> Values:
    return np.asarray(np.mean(ours, axis=0) - np.mean(theirs, axis=0))


def _same(one: Items, other: Items) -> bool:
    def keys(items: Items) -> list[object]:
        return [
            items.statistic,
            items.data,
            [(part.name, part.ids, part.gold, len(part.values)) for part in items.parts],
        ]

    return keys(one) == keys(other)


def _limits(
    value: float,
    compared: Sequence[Items],
    of: Callable[[list[Values]], Values],
    seed: int,
    draws: int,
    widest: float,
) -> Interval:
    return _percentiles(value, _draws(compared, of, seed, draws), compared[0].count, widest)


def _percentiles(value: float, drawn_B: Values, count: int, widest: float) -> Interval:
    """The limits between which most draws lie; of few items they lie too close, and Student's t says by how much.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap (The American Statistician, 2015), section 4.4.3:
    the expanded percentile interval.
    """
    if count < FEWEST_ITEMS:
        return Interval(value, -widest, widest)
    reach = math.sqrt(count / (count - 1)) * student.ppf((1 + CONFIDENCE) / 2, count - 1)
    tail = float(norm.cdf(-reach))
    low, high = np.nanquantile(drawn_B, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _draws(
    compared: Sequence[Items],
    of: Callable[[list[Values]], Values],
    seed: int | list[int],
    draws: int,
) -> Values:
    """What is asked of the scores, draw by draw [B]; all that is compared sees the same items in a draw."""
    generator = np.random.default_rng(seed)
    sizes = [len(part.values) for part in compared[0].parts]
    draws = min(draws, max(FEWEST_DRAWS, DRAWN_MOST // max(1, sum(sizes))))
    at_once = max(1, min(draws, DRAWN_AT_ONCE // max(1, sum(sizes))))
    found: list[Values] = []
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        drawn = [generator.integers(size, size=(count, size)) for size in sizes]
        found.append(of([items._drawn(drawn) for items in compared]))
    return np.concatenate(found)


def _mean(value_BN: Values, _: object) -> Values:
    return np.asarray(value_BN.mean(axis=1))


def _spearman(value_BN: Values, gold_BN: Values) -> Values:
    one, other = (rankdata(rows, axis=1) for rows in (value_BN, gold_BN))
    one, other = one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True)
    lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    with np.errstate(invalid="ignore"):  # a draw of equal items has no correlation
        return np.asarray((one * other).sum(axis=1) / lengths)


def _average_precision(value_BN: Values, gold_BN: Values) -> Values:
    """Mean precision at the positives, best value first; pairs of equal value count together, as in scikit-learn."""
    order = np.argsort(-value_BN, axis=1, kind="stable")
    value_BN, hit_BN = (np.take_along_axis(rows, order, axis=1) for rows in (value_BN, gold_BN))
    precision_BN = np.cumsum(hit_BN, axis=1) / np.arange(1, hit_BN.shape[1] + 1)
    last = np.concatenate(
        [value_BN[:, 1:] != value_BN[:, :-1], np.ones((len(value_BN), 1), bool)], axis=1
    )
    place = np.where(last, np.arange(value_BN.shape[1]), value_BN.shape[1])
    end_BN = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]  # of the run of equal values
    with np.errstate(invalid="ignore"):
        return np.asarray(
            (np.take_along_axis(precision_BN, end_BN, axis=1) * hit_BN).sum(1) / hit_BN.sum(1)
        )


STATISTICS: dict[Statistic, Callable[[Values, Any], Values]] = {
    "mean": _mean,
    "spearman": _spearman,
    "average_precision": _average_precision,
}
