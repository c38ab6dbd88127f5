"""What was bought: counts by technique, why answers were refused, how the teacher scored them, and some to read."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import Any

import numpy as np

from qzhou.config.synthesis import SynthesisSection
from qzhou.data.records import (
    Document,
    Drop,
    Example,
    LabeledExample,
    Negative,
    PairExample,
    RetrievalExample,
)
from qzhou.data.storage import Folder
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.plan import Made, Merged
from qzhou.synthesis.techniques import ChatRequest
from qzhou.telemetry.pictures import counted, draw_histograms, shortened, svg

REPORT, PICTURE = "report.json", "scores.svg"
SAMPLES = 10  # of each technique
EXAMPLES = 2  # of each reason
SHOWN_CHARS = 600
COMMONEST = 4
EDGES = np.linspace(-0.2, 1.0, 31)
LABELS = {
    "rewrite": ("rewrite and original", "#5b7db1"),
    "positive": ("query and positive", "#2f9e6e"),
    "negative": ("query and negative", "#c44e52"),
    "margin": ("positive minus negative", "#e8a33d"),
}


class Report:
    """Gathers what a run of the stage wrote.

    Args:
        settings: Of the recipe; its thresholds are drawn.
        seed: Which records are shown follows from it.
    """

    def __init__(self, settings: SynthesisSection, *, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self._made: Counter[str] = Counter()
        self._dropped: dict[str, Counter[str]] = defaultdict(Counter)
        self._examples: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(dict)
        self._histograms: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        self._samples: dict[str, list[tuple[str, Made]]] = defaultdict(list)

    def score(self, made: Sequence[Made]) -> None:
        """Take in what the teacher says of records, whether they are kept or not."""
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for one in made:
            for name, value in _shown_scores(one).items():
                found[one.request.technique, name].append(value)
        for (technique, name), values in found.items():
            self._histograms[technique][name] = self._histograms[technique].get(name, 0) + counted(
                values, EDGES
            )

    def add(self, merged: Merged) -> None:
        """Take in a dataset."""
        for one in merged.made:
            self._made[one.request.technique] += 1
            self._samples[one.request.technique].append((self._rank(one), one))
        for technique, samples in self._samples.items():
            self._samples[technique] = heapq.nsmallest(SAMPLES, samples, key=itemgetter(0))
        for drop in merged.dropped:
            technique = _technique_of(drop)
            self._dropped[technique][drop.reason] += 1
            shown = self._examples[technique].setdefault(drop.reason, [])
            if len(shown) < EXAMPLES:
                shown.append({"detail": drop.detail, "record": drop.record[:SHOWN_CHARS]})

    def write(self, folder: Folder, ledger: Ledger) -> None:
        """Write ``report.json`` and ``scores.svg`` into the stage's folder."""
        techniques = {
            name: {
                "made": self._made[name],
                "dropped": dict(self._dropped[name].most_common()),
                "examples": self._examples[name],
                "scores": {
                    key: counts.tolist() for key, counts in self._histograms.get(name, {}).items()
                },
                "samples": [_sample(made) for _, made in self._samples[name]],
            }
            for name in sorted({*self._made, *self._dropped})
        }
        content = {
            "techniques": techniques,
            "score_edges": [round(float(edge), 3) for edge in EDGES],
            "gates": self._settings.gates.model_dump(),
            "cost": asdict(ledger.total),
        }
        folder.write_json(REPORT, content)
        if self._histograms:
            folder.write_bytes(PICTURE, self._picture().encode())

    def sentence(self, ledger: Ledger) -> str:
        """One line for the console."""
        total, reasons = ledger.total, Counter[str]()
        for counts in self._dropped.values():
            reasons.update(counts)
        shown = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(COMMONEST))
        more = ", ..." if len(reasons) > COMMONEST else ""
        tokens = total.prompt_tokens + total.completion_tokens
        return (
            f"synthesis: {total.requests:,} requests ({total.reused:,} answered before), {tokens:,} tokens, "
            f"cost {total.cost:.4f}; {self._made.total():,} records"
            + (f"; dropped {shown}{more}" if shown else "")
        )

    def _rank(self, made: Made) -> str:
        """By which records are drawn to be shown, whatever their order."""
        # a negative has no id
        own = made.record.text if isinstance(made.record, Negative) else made.record.id
        return hashlib.sha256(f"{self._seed} {made.subject.id} {own}".encode()).hexdigest()

    def _picture(self) -> str:
        """Histograms of the teacher's scores, one panel a technique, with the thresholds of the recipe."""
        from matplotlib.figure import Figure

        gates = self._settings.gates
        limits = {
            "rewrite": [gates.min_rewrite_cosine, gates.max_rewrite_cosine],
            "positive": [gates.min_positive_score],
        }
        names = sorted(self._histograms)
        figure = Figure(figsize=(3.0 * len(names) + 0.4, 2.6))
        for number, name in enumerate(names, 1):
            axes = figure.add_subplot(1, len(names), number)
            found = self._histograms[name]
            lines = {
                label: (colour, found[key])
                for key, (label, colour) in LABELS.items()
                if key in found
            }
            draw_histograms(axes, name, EDGES, lines)
            for key in found:
                for limit in limits.get(key, []):
                    if limit is not None:
                        axes.axvline(limit, color=LABELS[key][1], linestyle=":", linewidth=1)
            axes.set_xlabel("cosine", fontsize=8)
            if number == 1:
                axes.set_ylabel("% of records", fontsize=8)
        return svg(figure, "synthesis-scores")


def _technique_of(drop: Drop) -> str:
    return str(json.loads(drop.record)["request"]["technique"])


def _shown_scores(made: Made) -> dict[str, float]:
    """Name in LABELS -> score, of those that there are."""
    if made.scores is None:
        return {}
    scores = made.scores
    found = {"rewrite": scores.rewrite, "positive": scores.positive, "negative": scores.negative}
    if scores.negative is not None and scores.negative_of is not None:
        found["margin"] = scores.negative_of - scores.negative
    return {name: value for name, value in found.items() if value is not None}


def _sample(made: Made) -> dict[str, Any]:
    """A record as the report shows it, beside what it was made from."""
    scores = {} if made.scores is None else asdict(made.scores)
    return {
        "dataset": made.request.dataset,
        "model": made.record.source.model,
        "original": _texts(made.subject, made.request),
        "written": _texts(made.record, made.request),
        "scores": {name: round(value, 3) for name, value in scores.items() if value is not None},
    }


def _texts(thing: Example | Negative | Document, request: ChatRequest) -> dict[str, str]:
    if isinstance(thing, Document):
        texts = {"document": thing.text}
    elif isinstance(thing, Negative):
        texts = {"negative": thing.text}
    elif isinstance(thing, LabeledExample):
        texts = {"text": thing.text, "label": thing.label}
    elif isinstance(thing, PairExample):
        texts = {request.side or "text_a": getattr(thing, request.side or "text_a")}
    else:
        assert isinstance(thing, RetrievalExample)
        texts = {"query": thing.query, "positive": thing.positives[0]}
        if thing.negatives and request.technique == "augmentation":
            texts["negative"] = thing.negatives[0].text
    return {name: shortened(text, SHOWN_CHARS) for name, text in texts.items()}
