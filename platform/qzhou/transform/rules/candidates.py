"""The raw rows of one example to a candidate: an example that no rule refuses, and its side of the split."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from qzhou.config.dataset import Dataset
from qzhou.data.records import Drop, Example, normalized_text
from qzhou.transform.reading.columns import Row, as_text, getter
from qzhou.transform.rules.examples import texts_of
from qzhou.transform.rules.fields import Fields, as_record
from qzhou.transform.rules.held_out import held_out
from qzhou.transform.rules.rules import RULES


class Candidate(NamedTuple):
    """An example that may be trained on.

    Attributes:
        example: The record.
        held_out: Whether it is kept for evaluation.
        rows: The raw rows behind it.
        query_id: Of a qrels dataset.
        grades: Of a qrels dataset: ``document_id`` and ``grade`` of each graded document.
    """

    example: Example
    held_out: bool
    rows: list[Row]
    query_id: str
    grades: list[dict[str, Any]]


class Converter:
    """Raw rows of one dataset to candidates and drops."""

    def __init__(self, dataset: Dataset, max_chars: int) -> None:
        self.dataset, self.fields = dataset, Fields(dataset, max_chars)
        self._rule = RULES[dataset.rule]
        self._group_of = getter(dataset.split_by) if dataset.split_by else None

    def __call__(self, rows: Sequence[Row]) -> tuple[Candidate | None, list[Drop]]:
        """The candidate of the rows of one example, if they make one, and what is dropped of them."""
        is_qrels = self.dataset.rule == "qrels"
        raw = [row["raw"] for row in rows] if is_qrels else list(rows)
        outcomes = self._rule(rows, self.fields)
        drops = [one for one in outcomes if isinstance(one, Drop)]
        example = next((one for one in outcomes if not isinstance(one, Drop)), None)
        if example is None:
            return None, drops
        if self._group_of is None:
            # A document without a query is its own group.
            group = normalized_text(next(filter(None, texts_of(example))))
        else:
            value = self._group_of(raw[0])
            group = (
                json.dumps(value, sort_keys=True, default=str) if isinstance(value, list | dict) else as_text(value)
            )
        if not group:
            detail = f"column '{self.dataset.split_by}', which split_by names, is empty"
            return None, [self.fields.drop("blank_group", detail, row) for row in raw]
        candidate = Candidate(
            example,
            held_out(group, self.dataset.eval_fraction),
            _rows_without_drops(raw, drops),
            rows[0]["query_id"] if is_qrels else "",
            _highest_grades(rows, self.fields) if is_qrels else [],
        )
        return candidate, drops


def _highest_grades(rows: Iterable[Row], fields: Fields) -> list[dict[str, Any]]:
    """The grade of each document of a query; one that was graded twice keeps its higher grade."""
    best: dict[str, float] = {}
    for row in rows:
        grade = fields.number(row["grade"])
        if row["document"] and grade is not None:
            best[row["document_id"]] = max(grade, best.get(row["document_id"], grade))
    return [{"document_id": document, "grade": grade} for document, grade in best.items()]


def _rows_without_drops(rows: Sequence[Row], drops: Sequence[Drop]) -> list[Row]:
    """The rows that none of the drops is about."""
    if not drops:
        return list(rows)
    dropped = Counter(one.record for one in drops if not one.part)
    kept = []
    for row in rows:
        record = as_record(row)
        if dropped[record] > 0:
            dropped[record] -= 1
        else:
            kept.append(row)
    return kept
