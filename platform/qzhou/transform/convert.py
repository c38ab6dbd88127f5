"""One shard of raw rows to candidates: examples that no rule refuses, and the keys by which they will be judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from qzhou.config.dataset import Dataset
from qzhou.data.languages import language_of
from qzhou.data.records import (
    EXAMPLE_TYPES,
    Drop,
    Example,
    PairExample,
    RetrievalExample,
    normalized_text,
)
from qzhou.data.storage import Folder, schema_of, table_of, write_table
from qzhou.transform.columns import Row, getter
from qzhou.transform.dedup import KeyList, texts_of
from qzhou.transform.examples import swapped_id
from qzhou.transform.fields import Fields, as_record, drop, number
from qzhou.transform.filters import refusals
from qzhou.transform.lines import Refused
from qzhou.transform.near_duplicates import band_keys
from qzhou.transform.partitions import write_partitions
from qzhou.transform.plan import Plan, Shard
from qzhou.transform.rules import RULES
from qzhou.transform.shuffle import units
from qzhou.transform.splits import held_out
from qzhou.transform.tally import Tally

UNITS_PER_TABLE = 10_000  # what a task holds in memory at a time
LANGUAGE_SAMPLE = 100  # of each table
SUMMARY = "summary.json"

# What a candidate has besides the fields of its record.
JUDGED = pa.list_(pa.struct([("document_id", pa.string()), ("grade", pa.float64())]))
EXTRA = [
    ("unit", pa.int32()),
    ("held_out", pa.bool_()),
    ("rows", pa.int32()),
    ("swapped_id", pa.string()),
]
EXTRA_SCHEMA = pa.schema([*EXTRA, ("query_id", pa.string()), ("judged", JUDGED)])


class Candidate(NamedTuple):
    """An example, which side of the split it is on, and the raw rows behind it."""

    example: Example
    held_out: bool
    rows: list[Row]
    query_id: str
    judged: list[dict[str, Any]]


def candidate_schema(dataset: Dataset) -> pa.Schema:
    """The fields of the dataset's record, then those of EXTRA_SCHEMA."""
    return pa.schema([*schema_of(EXAMPLE_TYPES[dataset.task]), *EXTRA_SCHEMA])


def candidates_folder(plan: Plan, shard: Shard) -> Folder:
    return plan.work / "candidates" / shard.name


def is_converted(plan: Plan, shard: Shard) -> bool:
    return candidates_folder(plan, shard).exists(SUMMARY)


def split_column(dataset: Dataset) -> str | None:
    """The column that decides what is held out; None for the query itself.

    Pairs of docstrings are drawn within one side of the modules, so modules must decide again.
    """
    return "module" if dataset.split_by is None and dataset.view == "pairs" else dataset.split_by


def convert_shard(plan: Plan, shard: Shard) -> int:
    """Write a shard's candidates, keys, drops and counts; the counts last, as the mark that it is done.

    Returns: Raw rows that were read.
    """
    dataset = plan.dataset(shard.dataset)
    folder, settings = candidates_folder(plan, shard), plan.recipe.transform
    keys = KeyList(with_identity=settings.deduplicate, with_texts=plan.has_held_out)
    tally = Tally(dataset.name)
    rows = units(plan, shard)
    convert = Converter(dataset, settings.max_chars)
    start = part = 0
    while chunk := list(islice(rows, UNITS_PER_TABLE)):
        candidates, drops = _converted(chunk, part * UNITS_PER_TABLE, convert, tally)
        candidates = _filtered(candidates, plan, dataset, drops, tally)
        tally.languages.update(_languages(candidates))
        _add_keys(
            keys,
            [one for _, one in candidates],
            start,
            settings.near_duplicates,
            dataset.allow_overlap,
        )
        name = f"{part:04d}.parquet"
        write_table(folder, name, _table(candidates, dataset))
        if drops:
            write_table(plan.folder / "dropped", f"{shard.name}-{name}", table_of(drops, Drop))
        start, part = start + len(candidates), part + 1
    if plan.is_judged:
        table = keys.table()
        write_partitions(
            folder,
            "keys.arrow",
            table,
            table["high"].to_numpy() % np.uint64(plan.buckets),
            plan.buckets,
        )
    folder.write_json(SUMMARY, tally.plain())
    return tally.read


class Converter:
    """Raw rows of one dataset to candidates and drops."""

    def __init__(self, dataset: Dataset, max_chars: int) -> None:
        self.dataset, self.fields = dataset, Fields(dataset, max_chars)
        self._rule = RULES[dataset.rule]
        column = split_column(dataset)
        self._column, self._group_of = column, None if column is None else getter(column)

    def __call__(self, rows: Sequence[Row]) -> tuple[Candidate | None, list[Drop]]:
        """The candidate of some rows, if they make one, and what is dropped of them."""
        example, drops = None, []
        raw = [row["raw"] for row in rows] if self.dataset.rule == "qrels" else list(rows)
        for outcome in self._rule(rows, self.fields):
            if isinstance(outcome, Drop):
                drops.append(outcome)
            else:
                example = outcome
        if example is None:
            return None, drops
        # of a document without a query, the document itself
        asked = next(filter(None, texts_of(example)))
        group = (
            normalized_text(asked) if self._group_of is None else str(self._group_of(raw[0]) or "")
        )
        if not group:
            detail = f"column '{self._column}', which split_by names, is empty"
            return None, [self.fields.drop("blank_group", detail, row) for row in raw]
        held = held_out(group, self.dataset.eval_fraction)
        query_id, judged = "", []
        if self.dataset.rule == "qrels":
            query_id = rows[0]["query_id"]
            grades = ((row["document_id"], number(row["grade"])) for row in rows if row["document"])
            best: dict[str, float] = {}  # a document that was judged twice keeps its higher grade
            for document, grade in grades:
                if grade is not None:
                    best[document] = max(grade, best.get(document, grade))
            judged = [{"document_id": document, "grade": grade} for document, grade in best.items()]
        return Candidate(example, held, _behind(raw, drops), query_id, judged), drops


def rows_behind(
    plan: Plan, shard: Shard, candidates: Sequence[tuple[int, str]]
) -> Iterator[list[Row]]:
    """The raw rows of some candidates, for those who want to see why they are dropped; read once more.

    Args:
        plan: Of the stage.
        shard: That was converted.
        candidates: (unit, id), ascending.

    Yields: The rows of each; none where the raw data gives another example now.
    """
    convert = Converter(plan.dataset(shard.dataset), plan.recipe.transform.max_chars)
    waiting = iter(candidates)
    wanted = next(waiting, None)
    for place, unit in enumerate(units(plan, shard)):
        if wanted is None:
            return
        if place == wanted[0]:
            found = None if isinstance(unit, Refused) else convert(unit)[0]
            yield found.rows if found is not None and found.example.id == wanted[1] else []
            wanted = next(waiting, None)
    for _ in (*([wanted] if wanted else []), *waiting):
        yield []


def _behind(rows: Sequence[Row], drops: Sequence[Drop]) -> list[Row]:
    """The rows that none of the drops is about."""
    if not drops:
        return list(rows)
    dropped = Counter(one.record for one in drops if not one.part)
    kept = []
    for row in rows:
        if dropped and dropped[record := as_record(row)]:
            dropped[record] -= 1
        else:
            kept.append(row)
    return kept


def _converted(
    chunk: Sequence[Sequence[Row] | Refused], start: int, convert: Converter, tally: Tally
) -> tuple[list[tuple[int, Candidate]], list[Drop]]:
    """(unit, candidate) of units that are numbered from ``start`` on, and what is dropped of them."""
    candidates, drops = [], []
    for place, unit in enumerate(chunk, start):
        if isinstance(unit, Refused):
            tally.read += 1
            dropped = [drop(convert.dataset.name, unit.reason, unit.detail, unit.content)]
        else:
            tally.read += len(unit)
            candidate, dropped = convert(unit)
            if candidate is not None:
                candidates.append((place, candidate))
        for one in dropped:
            tally.drop(one)
        drops += dropped
    return candidates, drops


def _filtered(
    candidates: list[tuple[int, Candidate]],
    plan: Plan,
    dataset: Dataset,
    drops: list[Drop],
    tally: Tally,
) -> list[tuple[int, Candidate]]:
    """What the dataset's filters leave; the others are added to the drops."""
    if not dataset.languages and dataset.max_tokens is None:
        return candidates
    kept = []
    for (unit, one), refusal in zip(
        candidates,
        refusals([one.example for _, one in candidates], dataset, plan.recipe.model),
        strict=True,
    ):
        if refusal is None:
            kept.append((unit, one))
            continue
        for row in one.rows:
            dropped = drop(dataset.name, *refusal, row)
            tally.drop(dropped)
            drops.append(dropped)
    return kept


def _languages(candidates: Sequence[tuple[int, Candidate]]) -> Iterator[str]:
    """The languages of a sample of candidates, drawn by their ids."""
    examples = (one.example for _, one in candidates)
    for example in sorted(examples, key=lambda example: example.id)[:LANGUAGE_SAMPLE]:
        yield language_of(" ".join(texts_of(example)))


def _add_keys(
    keys: KeyList,
    candidates: Sequence[Candidate],
    start: int,
    near: float | None,
    allow_overlap: bool,
) -> None:
    for row, one in enumerate(candidates, start):
        keys.add(row, one.example, one.held_out, allow_overlap=allow_overlap)
    if near is None or not candidates:
        return
    sides = [texts_of(one.example) for one in candidates]
    longest = 2 if isinstance(candidates[0].example, RetrievalExample | PairExample) else 1
    columns = [
        ["\n".join(own[:1] if side == 0 else own[1:]) for own in sides] for side in range(longest)
    ]
    bands, comparable = band_keys(columns, near)
    rows = np.arange(start, start + len(candidates))
    held = np.array([one.held_out for one in candidates])
    keys.add_near(rows[comparable], bands[comparable], held[comparable])


def _table(numbered: Sequence[tuple[int, Candidate]], dataset: Dataset) -> pa.Table:
    candidates = [one for _, one in numbered]
    examples = [one.example for one in candidates]
    table = table_of(examples, EXAMPLE_TYPES[dataset.task])
    swaps = [swapped_id(one) if isinstance(one, PairExample) else "" for one in examples]
    more = {
        "unit": [unit for unit, _ in numbered],
        "held_out": [one.held_out for one in candidates],
        "rows": [len(one.rows) for one in candidates],
        "swapped_id": swaps,
        "query_id": [one.query_id for one in candidates],
        "judged": [one.judged for one in candidates],
    }
    arrays = [
        pa.array(more[name], type=EXTRA_SCHEMA.field(name).type) for name in EXTRA_SCHEMA.names
    ]
    return pa.Table.from_arrays([*table.columns, *arrays], schema=candidate_schema(dataset))
