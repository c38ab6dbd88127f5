"""What training changed for single queries: how many are answered better or worse, and some of them to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qzhou.evaluation.judge.task_scores import Answer, TaskScore

SHOWN = 10  # queries that gained most, and as many that lost most


@dataclass(frozen=True, slots=True)
class ChangedQuery:
    """A query whose score changed.

    Attributes:
        before: Its score (nDCG@10) with the model that is compared against.
        after: Its score with the model.
        found_before: The text that was found first, cut where it is long.
        positive: A text that answers it.
    """

    query: str
    before: float
    after: float
    found_before: str
    found_after: str
    positive: str


@dataclass(frozen=True, slots=True)
class Changes:
    """The queries of a task under two models.

    Attributes:
        better: How many queries have a higher score than with ``against``.
        gained: Those that gained most, the largest gain first; at most ``SHOWN``.
        lost: Likewise.
    """

    task: str
    model: str
    against: str
    better: int
    worse: int
    same: int
    gained: tuple[ChangedQuery, ...]
    lost: tuple[ChangedQuery, ...]

    @property
    def line(self) -> str:
        """The numbers of queries in one line."""
        return (
            f"{self.better:,} queries better than with {self.against}, {self.worse:,} worse, {self.same:,} the same"
        )


def changes_of(comparison: Mapping[str, Any]) -> list[Changes]:
    """The changes in a ``comparison.json``."""
    return [
        Changes(
            **{**one, **{side: tuple(ChangedQuery(**query) for query in one[side]) for side in ("gained", "lost")}}
        )
        for one in comparison.get("changes", [])
    ]


def changes_between(model: str, after: TaskScore, against: str, before: TaskScore) -> Changes | None:
    """What a model changed on a task of retrieval; None where the two have not been asked the same queries.

    Args:
        model: The name of the model that is looked at.
        after: Its score.
        against: The name of the model that it is compared with.
        before: Likewise.
    """
    if not after.answers or not before.answers:
        return None
    scores_before, scores_after = _by_query(before), _by_query(after)
    if scores_before.keys() != scores_after.keys():
        return None
    answers = {one.id: one for one in before.answers}
    changed = [
        _changed(answers[one.id], one, scores_before[one.id], scores_after[one.id])
        for one in after.answers
        if one.id in scores_after
    ]
    gained, lost = ([one for one in changed if sign * (one.after - one.before) > 0] for sign in (1, -1))
    return Changes(
        task=after.task,
        model=model,
        against=against,
        better=len(gained),
        worse=len(lost),
        same=len(changed) - len(gained) - len(lost),
        gained=_largest(gained),
        lost=_largest(lost),
    )


def _by_query(score: TaskScore) -> dict[str, float]:
    if score.per_example is None:
        return {}
    return {
        query: value for part in score.per_example.parts for query, value in zip(part.ids, part.values, strict=True)
    }


def _changed(before: Answer, after: Answer, score_before: float, score_after: float) -> ChangedQuery:
    return ChangedQuery(after.query, score_before, score_after, before.found, after.found, after.positive)


def _largest(changed: Sequence[ChangedQuery]) -> tuple[ChangedQuery, ...]:
    order = sorted(changed, key=lambda one: (-abs(one.after - one.before), one.query))
    return tuple(order[:SHOWN])
