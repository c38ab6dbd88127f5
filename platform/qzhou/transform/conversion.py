"""Raw rows to candidates: examples that no rule refuses, with the keys by which duplicates meet.

    raw_rows -> ConvertRows -> write_candidates

One row of a table is one example all the way: first its raw rows as JSON, then the
candidate, what was dropped of it, and its keys.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qzhou.config.dataset import Dataset
from qzhou.data.languages import language_of
from qzhou.data.records import EXAMPLE_TYPES, Drop, Example, PairExample
from qzhou.data.storage import batched, read_table, schema_of, table_of, write_table
from qzhou.transform.deduplication.keys import KEYS, KeyList
from qzhou.transform.layout import Layout, Shard
from qzhou.transform.pieces import ORIGIN, Piece, origin, pieces_in
from qzhou.transform.reading.columns import RejectedRow, Row, row_as_json
from qzhou.transform.rules.candidates import Candidate, Converter
from qzhou.transform.rules.examples import swapped_id, texts_of
from qzhou.transform.rules.fields import as_record, drop
from qzhou.transform.rules.filters import refusals
from qzhou.transform.shuffling.partitions import write_partitions
from qzhou.transform.shuffling.shuffle import rows_by_example
from qzhou.transform.writing.row_counts import RowCounts

EXAMPLES_PER_TABLE = 10_000  # what a task holds as Python objects at a time
LANGUAGE_SAMPLE = 100  # of each table
STEP = "convert"

# The raw rows of an example as JSON, each by itself; one of a row that cannot be read is a RejectedRow.
RAW = pa.schema([*ORIGIN, ("rows", pa.list_(pa.string())), ("rejected", pa.bool_())])

# What a candidate has besides the fields of its record; ``records`` are its raw rows, as a drop shows them.
CANDIDATE_FIELDS = pa.schema(
    [
        ("held_out", pa.bool_()),
        ("rows", pa.int32()),
        ("swapped_id", pa.string()),
        ("query_id", pa.string()),
        ("grades", pa.list_(pa.struct([("document_id", pa.string()), ("grade", pa.float64())]))),
        ("records", pa.list_(pa.string())),
    ]
)
KEY = pa.struct([KEYS.field(name) for name in ("high", "low", "space")])
DROP = pa.struct(list(schema_of(Drop)))


def raw_rows(layout: Layout, shard: Shard) -> Iterator[pa.Table]:
    """The raw rows of a shard: tables of RAW, an example a row."""
    waiting: tuple[int, list[list[Row] | RejectedRow]] | None = None
    for number, chunk in enumerate(batched(rows_by_example(layout, shard), EXAMPLES_PER_TABLE)):
        if waiting is not None:
            yield _raw_table(shard, *waiting, is_last=False)
        waiting = number * EXAMPLES_PER_TABLE, chunk
    if waiting is not None:
        yield _raw_table(shard, *waiting, is_last=True)


def _raw_table(
    shard: Shard, start: int, chunk: Sequence[Sequence[Row] | RejectedRow], *, is_last: bool
) -> pa.Table:
    rejected = [isinstance(one, RejectedRow) for one in chunk]
    examples = ([asdict(one)] if isinstance(one, RejectedRow) else one for one in chunk)
    rows = [[row_as_json(row) for row in own] for own in examples]
    columns = {
        **origin(shard.number, start, map(len, rows), is_last=is_last),
        "rows": pa.array(rows, RAW.field("rows").type),
        "rejected": pa.array(rejected),
    }
    return pa.Table.from_arrays(list(columns.values()), schema=RAW)


class ConvertRows:
    """Tables of RAW to tables with a row for each example: ORIGIN, its candidate and what was dropped.

    Where the raw rows make no candidate, its columns are null. For ``map_batches``.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Some thousand rows at a time."""
        for start in range(0, table.num_rows, EXAMPLES_PER_TABLE):
            for piece, part in pieces_in(table.slice(start, EXAMPLES_PER_TABLE)):
                dataset = self._layout.dataset(self._layout.shards[piece.shard].dataset)
                with _without_collection():
                    converted = self._converted(dataset, part)
                yield converted

    def _converted(self, dataset: Dataset, table: pa.Table) -> pa.Table:
        convert = Converter(dataset, self._layout.recipe.transform.max_chars)
        made: list[Candidate | None] = []
        drops: list[list[Drop]] = []
        cut = [0]  # texts, up to each row
        for texts, is_rejected in zip(table["rows"].to_pylist(), table["rejected"].to_pylist(), strict=True):
            if is_rejected:
                one = RejectedRow(**json.loads(texts[0]))
                candidate, own = None, [drop(dataset.name, one.reason, one.detail, one.content)]
            else:
                candidate, own = convert([json.loads(text) for text in texts])
            made.append(candidate)
            drops.append(own)
            cut.append(convert.fields.cut["texts"])
        kept = self._kept(dataset, made, drops)
        numbers = np.full(len(made), -1)
        numbers[kept] = np.arange(len(kept))
        candidates = self._candidates(dataset, [one for one in map(made.__getitem__, kept) if one is not None])
        columns = {name: table[name] for name in ORIGIN.names}
        columns |= _columns(candidates.take(pa.array(numbers, mask=numbers < 0)))
        return pa.table({**columns, "drops": _lists(drops), "cut": pa.array(np.diff(cut))})

    def _kept(self, dataset: Dataset, made: Sequence[Candidate | None], drops: Sequence[list[Drop]]) -> list[int]:
        """Positions of the candidates that the filters keep; the raw rows of others are added to ``drops``."""
        kept = []
        candidates = [(row, one) for row, one in enumerate(made) if one is not None]
        found = refusals([one.example for _, one in candidates], dataset, self._layout.recipe.model)
        for (row, one), refusal in zip(candidates, found, strict=True):
            if refusal is None:
                kept.append(row)
            else:
                drops[row].extend(drop(dataset.name, *refusal, raw) for raw in one.rows)
        return kept

    def _candidates(self, dataset: Dataset, made: Sequence[Candidate]) -> pa.Table:
        examples = [one.example for one in made]
        table = table_of(examples, EXAMPLE_TYPES[dataset.task])
        more = {
            "held_out": [one.held_out for one in made],
            "rows": [len(one.rows) for one in made],
            "swapped_id": [swapped_id(one) if isinstance(one, PairExample) else "" for one in examples],
            "query_id": [one.query_id for one in made],
            "grades": [one.grades for one in made],
            "records": [[as_record(row) for row in one.rows] for one in made],
        }
        columns = _columns(table)
        columns |= {one.name: pa.array(more[one.name], one.type) for one in CANDIDATE_FIELDS}
        columns["keys"] = self._keys(dataset, [(one.example, one.held_out) for one in made])
        columns["language"] = pa.array(_sampled_languages(examples), pa.string())
        return pa.table(columns)

    def _keys(self, dataset: Dataset, examples: Sequence[tuple[Example, bool]]) -> pa.Array:
        settings = self._layout.recipe.transform
        keys = KeyList(
            dataset,
            with_identity=self._layout.drops_repeats_of(dataset),
            with_texts=self._layout.has_held_out,
            near_threshold=settings.near_duplicates if dataset.deduplicate is not False else None,
        )
        keys.add_all(examples)
        table = keys.table().sort_by("row")
        ends = np.searchsorted(table["row"].to_numpy(), np.arange(len(examples) + 1))
        values = table.select([one.name for one in KEY]).combine_chunks().to_struct_array()
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), _one_chunk(values, KEY))


def write_candidates(layout: Layout, tables: Iterable[pa.Table]) -> None:
    """Write what :class:`ConvertRows` gives: candidates, keys and drops; and marks with the counts."""
    for table in tables:
        for piece, part in pieces_in(table):
            _write_piece(layout, piece, part)


def _write_piece(layout: Layout, piece: Piece, table: pa.Table) -> None:
    dataset = layout.dataset(layout.shards[piece.shard].dataset)
    counts = RowCounts(dataset.name, read=piece.read, cut=pc.sum(table["cut"]).as_py())
    candidates = table.filter(pc.is_valid(table["id"]))
    counts.languages.update(candidates["language"].drop_null().to_pylist())
    schema = _schema(dataset)
    write_table(layout.work / "candidates", f"{piece.file}.parquet", candidates.select(schema.names).cast(schema))
    drops = pa.Table.from_struct_array(_one_chunk(pc.list_flatten(table["drops"]), DROP))
    for one in drops.to_pylist():
        counts.drop(Drop(**one))
    if drops.num_rows:
        write_table(layout.folder / "dropped", f"{piece.file}.parquet", drops.cast(schema_of(Drop)))
    if layout.finds_duplicates:
        keys = _flat_keys(candidates)
        keys = keys.append_column("shard", pa.array(np.full(keys.num_rows, piece.shard), pa.uint32()))
        buckets = keys["high"].to_numpy() % np.uint64(layout.buckets)
        write_partitions(layout.work / "keys", f"{piece.file}.arrow", keys, buckets, layout.buckets)
    layout.marks(STEP).write_json(f"{piece.name}.json", counts.plain())


def _flat_keys(candidates: pa.Table) -> pa.Table:
    """KEYS of all candidates; ``row`` is their place in the shard."""
    keys = _one_chunk(candidates["keys"], pa.list_(KEY))
    counts = keys.value_lengths().to_numpy(zero_copy_only=False)
    columns = dict(zip([one.name for one in KEY], keys.flatten().flatten(), strict=True))
    columns["row"] = pa.array(np.repeat(candidates["place"].to_numpy(), counts), pa.uint32())
    columns["held_out"] = pa.array(np.repeat(candidates["held_out"].to_numpy(), counts), pa.bool_())
    return pa.Table.from_arrays([columns[name] for name in KEYS.names], schema=KEYS)


def read_candidates(layout: Layout, shard: Shard, *, with_records: bool = False) -> pa.Table:
    """The candidates of a shard; their raw rows are seldom asked for."""
    schema = _schema(layout.dataset(shard.dataset))
    if not with_records:
        schema = schema.remove(schema.get_field_index("records"))
    names = [f"{piece.file}.parquet" for piece in layout.pieces.get(shard.number, ())]
    tables = [read_table(layout.work / "candidates", name, schema.names) for name in names]
    return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()


def _sampled_languages(examples: Sequence[Example]) -> list[str | None]:
    """The languages of a sample of examples, drawn by their ids; None for the others."""
    languages: list[str | None] = [None] * len(examples)
    for row in sorted(range(len(examples)), key=lambda row: examples[row].id)[:LANGUAGE_SAMPLE]:
        languages[row] = language_of(" ".join(texts_of(examples[row])))
    return languages


def _schema(dataset: Dataset) -> pa.Schema:
    return pa.schema([*schema_of(EXAMPLE_TYPES[dataset.task]), ("place", pa.int64()), *CANDIDATE_FIELDS])


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Without a search for cycles: among so many rows that all live it takes a quarter of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names}


def _lists(drops: Sequence[list[Drop]]) -> pa.Array:
    flat = table_of([one for own in drops for one in own], Drop).to_struct_array()
    ends = np.concatenate([[0], np.cumsum([len(own) for own in drops])])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), _one_chunk(flat, DROP))


def _one_chunk(values: pa.Array | pa.ChunkedArray, of: pa.DataType) -> pa.Array:
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    return pa.concat_arrays([pa.array([], of), *(one.cast(of) for one in chunks)])
