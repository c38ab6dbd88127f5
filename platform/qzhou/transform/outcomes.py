"""What becomes of one raw row: an example with all that is needed to judge it, or a drop."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from qzhou.recipe import Dataset
from qzhou.records import Drop, Example, text_key
from qzhou.transform.dedup import identity, text_digest, texts_of
from qzhou.transform.readers import Refused
from qzhou.transform.rules import RULES, Row, drop
from qzhou.transform.splits import held_out

# What judging reads of a row, and the record. Records travel as pickles: both ends of the way run the
# same code, and most of them are never opened.
JUDGEABLE = pa.schema(
    [
        ("reason", pa.string()),
        ("held_out", pa.bool_()),
        ("id", pa.string()),
        ("identity", pa.binary()),
        ("texts", pa.binary()),
        ("record", pa.binary()),
    ]
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An example, on which side of the split it stands, and the digests it is compared by."""

    record: Example
    held_out: bool
    identity: bytes
    texts: tuple[bytes, ...]


def split_column(dataset: Dataset) -> str | None:
    """The column that decides what is held out; None for the query itself.

    Pairs of docstrings are drawn within one side of the modules, so modules must decide again.
    """
    return "module" if dataset.split_by is None and dataset.view == "pairs" else dataset.split_by


def outcome_of(row: Row | Refused, dataset: Dataset, max_chars: int) -> Outcome | Drop:
    """Apply the dataset's rule and decide the row's side of the split."""
    if isinstance(row, Refused):
        return drop(dataset.name, row.reason, row.detail, row.content)
    made = RULES[dataset.rule](row, dataset, max_chars)
    if isinstance(made, Drop):
        return made
    texts = texts_of(made)
    column = split_column(dataset)
    group = text_key(texts[0]) if column is None else str(row.get(column) or "")
    if not group:
        return drop(dataset.name, "blank_group", f"column '{column}', which split_by names, is empty", row)
    return Outcome(
        record=made,
        held_out=held_out(group, dataset.held_out_fraction),
        identity=identity(made),
        texts=tuple(text_digest(text) for text in texts),
    )


def judgeable(rows: Iterable[Row | Refused], dataset: Dataset, max_chars: int) -> pa.Table:
    """The outcomes of raw rows as a table of JUDGEABLE rows, in the same order."""
    return pa.Table.from_pylist([_packed(outcome_of(row, dataset, max_chars)) for row in rows], schema=JUDGEABLE)


def _packed(outcome: Outcome | Drop) -> dict[str, Any]:
    if isinstance(outcome, Drop):
        nothing = {"held_out": False, "id": "", "identity": b"", "texts": b""}
        return {**nothing, "reason": outcome.reason, "record": pickle.dumps(outcome)}
    return {
        "reason": "",
        "held_out": outcome.held_out,
        "id": outcome.record.id,
        "identity": outcome.identity,
        "texts": b"".join(outcome.texts),
        "record": pickle.dumps(outcome.record),
    }
