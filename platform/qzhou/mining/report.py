"""What was mined, dataset by dataset: reasons, scores by origin, examples, and how many answers the criteria let in.

Shape letters in this file: N queries, K ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qzhou.data.records import RetrievalExample
from qzhou.mining.identity import Bools, Floats
from qzhou.telemetry.pictures import counted, draw_histograms, shortened, svg

EDGES = np.linspace(-0.2, 1.0, 41)
KINDS = {  # name -> colour
    "positive": "#2f9e6e",
    "mined": "#c44e52",
    "given": "#5b7db1",
    "synthetic": "#e8a33d",
}
EXAMPLES = 5
SHOWN_CHARS = 300
PANELS_A_ROW = 4


class Report:
    """Gathers one dataset, block by block."""

    def __init__(self) -> None:
        self._queries = self._inconsistent = 0
        self._origins: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()
        self._rejected: Counter[str] = Counter()
        self._histograms: dict[str, np.ndarray] = {}
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._hidden = self._admitted = 0
        self._examples: list[dict[str, Any]] = []
        self._recall: float | None = None

    def add(
        self, examples: Sequence[RetrievalExample], rejected: Mapping[str, int], inconsistent: int
    ) -> None:
        """Take in the examples of a block with the negatives that they keep."""
        self._queries += len(examples)
        self._inconsistent += inconsistent
        self._rejected.update(rejected)
        mined = [
            negative.score
            for one in examples
            for negative in one.negatives
            if negative.origin == "mined"
        ]
        self.score("mined", [score for score in mined if score is not None])
        for one in examples:
            self._sizes[len(one.negatives)] += 1
            self._origins.update(negative.origin for negative in one.negatives)
            if len(self._examples) < EXAMPLES and one.negatives:
                self._examples.append(_shown(one))

    def score(self, kind: str, scores: Floats | Sequence[float]) -> None:
        """Take in scores of one kind: ``positive``, or the origin of negatives that were there before."""
        values = np.asarray(scores, dtype=np.float64)
        self._histograms[kind] = self._histograms.get(kind, 0) + counted(values, EDGES)
        self._sums[kind] += float(values.sum())  # type: ignore[assignment]
        self._counts[kind] += len(values)

    def hide(self, admitted_NK: Bools, hidden: int) -> None:
        """Take in which known positives would have passed if they were not known, of how many."""
        self._hidden += hidden
        self._admitted += int(admitted_NK.sum())

    def measure(self, recall: float) -> None:
        """Take in what an approximate index finds of the exact nearest."""
        self._recall = recall

    def content(self) -> dict[str, Any]:
        """The dataset's part of ``report.json``."""
        found: dict[str, Any] = {
            "queries": self._queries,
            "inconsistent": self._inconsistent,
            "negatives": dict(self._origins),
            "queries by number of negatives": {
                str(size): self._sizes[size] for size in sorted(self._sizes)
            },
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
        return found

    def _mean(self, kind: str) -> float | None:
        return round(self._sums[kind] / self._counts[kind], 4) if self._counts[kind] else None


def sentence(name: str, content: Mapping[str, Any]) -> str:
    """One line for the console."""
    origins = (
        ", ".join(f"{count:,} {origin}" for origin, count in content["negatives"].items()) or "none"
    )
    refused = content["rejected"].get("too close to the positive", 0)
    hidden = content["hidden positives"]
    rate = hidden["admitted"] / hidden["hidden"] if hidden["hidden"] else None
    known = (
        ""
        if rate is None
        else f"; {rate:.1%} of {hidden['hidden']:,} known positives would pass if hidden"
    )
    found = f"; recall {content['recall']:.1%} of exact search" if "recall" in content else ""
    return (
        f"mining: {name}: {content['queries']:,} queries, negatives: {origins}; "
        f"{refused:,} too close to the positive{known}{found}"
    )


def picture(datasets: Mapping[str, Mapping[str, Any]]) -> str:
    """Histograms of the scores of positives and of negatives by origin, one panel a dataset, as SVG."""
    from matplotlib.figure import Figure

    names = [name for name, content in datasets.items() if content["scores"]]
    columns = min(PANELS_A_ROW, max(1, len(names)))
    rows = -(-max(1, len(names)) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.5, 2.1 * rows + 0.3))
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        scores = datasets[name]["scores"]
        lines = {kind: (colour, np.array(scores.get(kind, [0]))) for kind, colour in KINDS.items()}
        draw_histograms(axes, name, EDGES, lines)
        if number % columns == 0:
            axes.set_ylabel("% of texts", fontsize=8)
        if number >= len(names) - columns:
            axes.set_xlabel("score to the query", fontsize=8)
    return svg(figure, "mining-scores")


def _shown(example: RetrievalExample) -> dict[str, Any]:
    return {
        "query": shortened(example.query, SHOWN_CHARS),
        "positive": shortened(example.positives[0], SHOWN_CHARS),
        "negatives": [
            {
                "text": shortened(one.text, SHOWN_CHARS),
                "origin": one.origin,
                "score": None if one.score is None else round(one.score, 3),
            }
            for one in example.negatives
        ],
    }
