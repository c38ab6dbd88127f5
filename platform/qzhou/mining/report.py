"""The report of mining, dataset by dataset: reasons, scores by origin, examples, and false negatives let in.

Shape letters in this file: N queries, K ranks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qzhou.config.mining import MiningSection
from qzhou.data.records import RetrievalExample, shortened
from qzhou.data.text_digests import Bools, Floats

EDGES = np.linspace(-0.2, 1.0, 41)
EXAMPLES = 5
SIZES = "queries by number of negatives"
SHORTAGE = 0.1  # of the queries
WIDE = 30.0  # scores, in temperatures: what is left to the second of a list is nothing
# reason for which candidates in the window are refused -> what lets more of them pass
WAYS_OUT = {
    "too close to the positive": "set mining.later_rank_to, or raise mining.positive_ratio",
    "below min_score": "lower mining.min_score",
    "above max_score": "raise mining.rank_to, or mining.max_score",
    "": "raise mining.rank_to, or lower mining.rank_from",
}


class Report:
    """Gathers one dataset, block by block."""

    def __init__(self) -> None:
        self._queries = self._inconsistent = self._later = 0
        self._origins: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()
        self._rejected: Counter[str] = Counter()
        self._histograms: dict[str, np.ndarray] = {}
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._hidden = self._admitted = 0
        self._examples: list[dict[str, Any]] = []
        self._recall: float | None = None
        self._lists: int | None = None
        self._farthest = 0.0  # score from zero
        self._relabelled: int | None = None
        self._shown_relabelled: list[dict[str, Any]] = []

    def add(
        self, examples: Sequence[RetrievalExample], rejected: Mapping[str, int], inconsistent: int, later: int = 0
    ) -> None:
        """Count the examples of a block with the negatives that they keep.

        ``inconsistent`` others were dropped, and ``later`` took negatives from behind the window.
        """
        self._later += later
        self._queries += len(examples)
        self._inconsistent += inconsistent
        self._rejected.update(rejected)
        negatives = [negative for one in examples for negative in one.negatives]
        mined = [one.score for one in negatives if one.origin == "mined"]
        self.score("mined", [score for score in mined if score is not None])
        for one in examples:
            self._sizes[len(one.negatives)] += 1
            self._origins.update(negative.origin for negative in one.negatives)
            if len(self._examples) < EXAMPLES and one.negatives:
                self._examples.append(_shown(one))

    def score(self, kind: str, scores: Floats | Sequence[float]) -> None:
        """Count scores of one kind: ``positive``, or the origin of negatives."""
        values = np.asarray(scores, dtype=np.float64)
        counts = np.histogram(np.clip(values, EDGES[0], EDGES[-1]), EDGES)[0]  # those outside: in the end bins
        self._histograms[kind] = self._histograms.get(kind, 0) + counts
        self._sums[kind] += float(values.sum())  # type: ignore[assignment]
        self._counts[kind] += len(values)

    def count_lists(self, examples: Sequence[RetrievalExample]) -> None:
        """Count the examples with a list of scores that training can learn (listwise distillation)."""
        for one in examples:
            scores = [negative.score for negative in one.negatives if negative.score is not None]
            self._lists = (self._lists or 0) + bool(one.positive_scores and scores)
            self._farthest = max([self._farthest, *map(abs, one.positive_scores), *map(abs, scores)])

    def count_relabelled(self, example: RetrievalExample, texts: Sequence[str]) -> None:
        """Count the texts that became positives of an example; the first ones are shown."""
        self._relabelled = (self._relabelled or 0) + len(texts)
        if texts and len(self._shown_relabelled) < EXAMPLES:
            query, positive = shortened(example.query), shortened(example.positives[0])
            self._shown_relabelled.append({"query": query, "positive": positive, "answer": shortened(texts[0])})

    def hide(self, admitted_NK: Bools, hidden: int) -> None:
        """Count the known positives that would have passed if they were not known, of ``hidden`` ones tried."""
        self._hidden += hidden
        self._admitted += int(admitted_NK.sum())

    def measure(self, recall: float) -> None:
        """Note the share of the exact nearest documents that an approximate index finds."""
        self._recall = recall

    def content(self) -> dict[str, Any]:
        """The dataset's part of ``report.json``."""
        found: dict[str, Any] = {
            "queries": self._queries,
            "inconsistent": self._inconsistent,
            "later": self._later,
            "negatives": dict(self._origins),
            SIZES: {str(size): count for size, count in sorted(self._sizes.items())},
            "rejected": dict(self._rejected),
            "mean positive score": self._mean("positive"),
            "mean mined score": self._mean("mined"),
            "hidden positives": {"hidden": self._hidden, "admitted": self._admitted},
            "scores": {kind: counts.tolist() for kind, counts in self._histograms.items()},
            "score_edges": [round(float(edge), 3) for edge in EDGES],
            "examples": self._examples,
        }
        if self._recall is not None:
            found["recall"] = round(self._recall, 4)
        if self._lists is not None:
            found["lists"] = self._lists
            found["highest list score"] = round(self._farthest, 4)
        if self._relabelled is not None:
            found["relabelled"] = {"negatives": self._relabelled, "examples": self._shown_relabelled}
        return found

    def _mean(self, kind: str) -> float | None:
        return round(self._sums[kind] / self._counts[kind], 4) if self._counts[kind] else None


def sentence(name: str, content: Mapping[str, Any]) -> str:
    """One line for the console."""
    counts = [f"{count:,} {origin}" for origin, count in content["negatives"].items()]
    refused = content["rejected"].get("too close to the positive", 0)
    parts = [
        f"mining: {name}: {content['queries']:,} queries, negatives: {', '.join(counts) or 'none'}",
        f"{refused:,} too close to the positive",
    ]
    if content["later"]:
        parts.append(f"{content['later']:,} queries took theirs from behind the window")
    hidden = content["hidden positives"]
    if hidden["hidden"]:
        rate = hidden["admitted"] / hidden["hidden"]
        parts.append(f"{rate:.1%} of {hidden['hidden']:,} known positives would pass if hidden")
    if "relabelled" in content:
        parts.append(f"{content['relabelled']['negatives']:,} answers among the negatives became positives")
    if "lists" in content:
        parts.append(f"{content['lists']:,} queries have a list of scores to learn")
    if "recall" in content:
        parts.append(f"recall {content['recall']:.1%} of exact search")
    return "; ".join(parts)


def shortage(name: str, content: Mapping[str, Any], mining: MiningSection) -> str:
    """A warning where more than ``SHORTAGE`` of the queries got no negative, with the way out; empty elsewhere."""
    queries, without = content["queries"], content[SIZES].get("0", 0)
    if without <= SHORTAGE * queries or not mining.negatives_per_query:
        return ""
    refused = {reason: content["rejected"].get(reason, 0) for reason in WAYS_OUT}
    most = max(refused, key=lambda reason: refused[reason])
    why = f"most candidates are {most}: {WAYS_OUT[most]}" if refused[most] else WAYS_OUT[""]
    if mining.reranker or mining.later_rank_to:
        why = why.replace("set mining.later_rank_to, or ", "")
    return (
        f"mining: {name}: WARNING: {without:,} of {queries:,} queries have no negative, and train against the others "
        f"of their batch alone; {why}"
    )


def wide_scores(name: str, content: Mapping[str, Any], teacher_temperature: float | None) -> str:
    """A warning where listwise distillation divides scores that are no cosines by a temperature for cosines."""
    highest, temperature = content.get("highest list score", 0.0), teacher_temperature or 0.0
    if highest <= 1.0 or temperature > highest / WIDE:
        return ""
    return (
        f"mining: {name}: WARNING: scores that came with the data reach {highest:g}, and "
        f"training.distillation.teacher_temperature is {temperature:g}: the best of a list takes all. Raise it, to "
        f"about {highest / 10:.2g}"
    )


def _shown(example: RetrievalExample) -> dict[str, Any]:
    negatives = [
        {
            "text": shortened(one.text),
            "origin": one.origin,
            "score": None if one.score is None else round(one.score, 3),
        }
        for one in example.negatives
    ]
    query, positive = shortened(example.query), shortened(example.positives[0])
    return {"query": query, "positive": positive, "negatives": negatives}
