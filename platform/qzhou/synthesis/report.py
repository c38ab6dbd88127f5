"""The report of the stage: rows by technique, why answers were refused, the teacher's scores, and samples."""

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import Any

import numpy as np

from qzhou.config.synthesis import SynthesisSection
from qzhou.data.records import Document, Example, LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.data.storage import Folder
from qzhou.synthesis.generation import SynthesisResult, SyntheticRecord
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.techniques import SynthesisRequest

REPORT = "report.json"
SAMPLES = 10  # of each technique
EXAMPLES = 2  # of each reason
SHOWN_CHARS = 600
SHOWN_REASONS = 4
EDGES = np.linspace(-0.2, 1.0, 31)


class Report:
    """Collects the stage's figures and samples; ``seed`` draws the samples."""

    def __init__(self, settings: SynthesisSection, *, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self._made: Counter[str] = Counter()
        self._dropped: dict[str, Counter[str]] = defaultdict(Counter)
        self._examples: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(dict)
        self._histograms: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        self._samples: dict[str, list[tuple[str, SyntheticRecord]]] = defaultdict(list)

    def score(self, records: Sequence[SyntheticRecord]) -> None:
        """Add the teacher's scores of records, whether the filters keep them or not."""
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        for one in records:
            for name, value in _scores(one).items():
                values[one.request.technique, name].append(value)
        for (technique, name), found in values.items():
            counts = np.histogram(np.clip(found, EDGES[0], EDGES[-1]), EDGES)[0]
            histograms = self._histograms[technique]
            histograms[name] = histograms.get(name, 0) + counts

    def add(self, result: SynthesisResult) -> None:
        """Add the kept records and the drops of a dataset."""
        for one in result.records:
            self._made[one.request.technique] += 1
            self._samples[one.request.technique].append((self._rank(one), one))
        for technique, samples in self._samples.items():
            self._samples[technique] = heapq.nsmallest(SAMPLES, samples, key=itemgetter(0))
        for drop in result.dropped:
            technique = str(json.loads(drop.record)["request"]["technique"])
            self._dropped[technique][drop.reason] += 1
            shown = self._examples[technique].setdefault(drop.reason, [])
            if len(shown) < EXAMPLES:
                shown.append({"detail": drop.detail, "record": drop.record[:SHOWN_CHARS]})

    def write(self, folder: Folder, ledger: Ledger, overlaps: Sequence[Mapping[str, Any]]) -> None:
        """Write ``report.json`` into the stage's folder; ``overlaps`` are those with texts of the evaluation."""
        techniques = {
            name: {
                "made": self._made[name],
                "dropped": dict(self._dropped[name].most_common()),
                "examples": self._examples[name],
                "scores": {key: one.tolist() for key, one in self._histograms[name].items()},
                "samples": [_sample(one) for _, one in self._samples[name]],
            }
            for name in sorted({*self._made, *self._dropped})
        }
        content = {
            "techniques": techniques,
            "score_edges": [round(float(edge), 3) for edge in EDGES],
            "filters": self._settings.filters.model_dump(),
            "cost": asdict(ledger.total),
            "overlaps": overlaps,
        }
        folder.write_json(REPORT, content)

    def sentence(self, ledger: Ledger) -> str:
        """One line for the console."""
        total = ledger.total
        reasons = sum(self._dropped.values(), Counter[str]())
        shown = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(SHOWN_REASONS))
        line = (
            f"synthesis: {total.requests:,} requests ({total.reused:,} answered before), {total.tokens:,} tokens, "
            f"cost {total.cost:.4f}; {self._made.total():,} records"
        )
        more = ", ..." if len(reasons) > SHOWN_REASONS else ""
        return f"{line}; dropped {shown}{more}" if shown else line

    def _rank(self, one: SyntheticRecord) -> str:
        """The samples are the records with the lowest ranks, whatever their order."""
        # A negative has no id.
        own = one.record.text if isinstance(one.record, Negative) else one.record.id
        return hashlib.sha256(f"{self._seed} {one.seed.id} {own}".encode()).hexdigest()


def _scores(one: SyntheticRecord) -> dict[str, float]:
    """Name -> score, without the names that have none."""
    if one.scores is None:
        return {}
    names = ("rewrite", "positive", "negative", "margin")
    values = {name: getattr(one.scores, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _sample(one: SyntheticRecord) -> dict[str, Any]:
    """A record as the report shows it, beside its original."""
    scores = {} if one.scores is None else asdict(one.scores)
    return {
        "dataset": one.request.dataset,
        "model": one.record.source.model,
        "original": _texts(one.seed, one.request),
        "written": _texts(one.record, one.request),
        "scores": {name: round(value, 3) for name, value in scores.items() if value is not None},
    }


def _texts(record: Example | Negative | Document, request: SynthesisRequest) -> dict[str, str]:
    if isinstance(record, Document):
        texts = {"document": record.text}
    elif isinstance(record, Negative):
        texts = {"negative": record.text}
    elif isinstance(record, LabeledExample):
        texts = {"text": record.text, "label": record.label}
    elif isinstance(record, PairExample):
        side = request.side or "text_a"
        texts = {side: getattr(record, side)}
    else:
        assert isinstance(record, RetrievalExample)
        texts = {"query": record.query, "positive": record.positives[0]}
        if record.negatives and request.technique == "augmentation":
            texts["negative"] = record.negatives[0].text
    return {name: text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} ..." for name, text in texts.items()}
