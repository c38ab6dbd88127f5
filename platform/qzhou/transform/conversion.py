"""One shard of raw rows to candidates: examples that no rule refuses; duplicates' keys."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from qzhou.config.dataset import Dataset
from qzhou.data.languages import language_of
from qzhou.data.records import EXAMPLE_TYPES, Drop, PairExample
from qzhou.data.storage import Folder, batched, read_table, schema_of, table_of, write_table
from qzhou.transform.deduplication.keys import KeyList
from qzhou.transform.layout import Layout, Shard
from qzhou.transform.reading.columns import RejectedRow, Row
from qzhou.transform.rules.candidates import Candidate, Converter
from qzhou.transform.rules.examples import swapped_id, texts_of
from qzhou.transform.rules.fields import drop
from qzhou.transform.rules.filters import refusals
from qzhou.transform.shuffling.partitions import write_partitions
from qzhou.transform.shuffling.shuffle import rows_by_example
from qzhou.transform.writing.row_counts import RowCounts

EXAMPLES_PER_TABLE = 10_000  # what a task holds in memory at a time
LANGUAGE_SAMPLE = 100  # of each table
SUMMARY = "summary.json"

# What a candidate has besides the fields of its record.
CANDIDATE_FIELDS = pa.schema(
    [
        ("place", pa.int32()),
        ("held_out", pa.bool_()),
        ("rows", pa.int32()),
        ("swapped_id", pa.string()),
        ("query_id", pa.string()),
        ("grades", pa.list_(pa.struct([("document_id", pa.string()), ("grade", pa.float64())]))),
    ]
)


def convert_shard(layout: Layout, shard: Shard) -> int:
    """Write a shard's candidates, keys, drops and counts.

    Returns: Raw rows that were read.
    """
    dataset = layout.dataset(shard.dataset)
    folder, settings = candidates_folder(layout, shard), layout.recipe.transform
    convert = Converter(dataset, settings.max_chars)
    keys = KeyList(
        dataset,
        with_identity=layout.drops_repeats_of(dataset),
        with_texts=layout.has_held_out,
        near_threshold=settings.near_duplicates if dataset.deduplicate is not False else None,
    )
    counts = RowCounts(dataset.name)
    for part, chunk in enumerate(batched(rows_by_example(layout, shard), EXAMPLES_PER_TABLE)):
        counts.read += sum(1 if isinstance(one, RejectedRow) else len(one) for one in chunk)
        candidates, drops = _candidates(chunk, part * EXAMPLES_PER_TABLE, convert)
        candidates, refused = _filtered(candidates, layout, dataset)
        drops += refused
        for one in drops:
            counts.drop(one)
        counts.languages.update(_sampled_languages(candidates))
        keys.add_all([(one.example, one.held_out) for one in candidates])
        name = f"{part:04d}.parquet"
        write_table(folder, name, _table(candidates, dataset))
        if drops:
            write_table(layout.folder / "dropped", f"{shard.name}-{name}", table_of(drops, Drop))
    if layout.finds_duplicates:
        table = keys.table()
        buckets = table["high"].to_numpy() % np.uint64(layout.buckets)
        write_partitions(folder, "keys.arrow", table, buckets, layout.buckets)
    counts.cut = convert.fields.cut["texts"]
    folder.write_json(SUMMARY, counts.plain())
    return counts.read


def candidates_folder(layout: Layout, shard: Shard) -> Folder:
    """The folder of a shard's candidates, keys and counts."""
    return layout.work / "candidates" / shard.name


def read_candidates(layout: Layout, shard: Shard) -> pa.Table:
    """The candidates of a shard."""
    folder = candidates_folder(layout, shard)
    empty = _schema(layout.dataset(shard.dataset)).empty_table()
    tables = [read_table(folder, name) for name in folder.files(".parquet")]
    return pa.concat_tables([empty, *tables]).combine_chunks()


def raw_rows_of(layout: Layout, shard: Shard, candidates: Sequence[tuple[int, str]]) -> Iterator[list[Row]]:
    """The raw rows of some candidates, read once more; none where the raw data gives another example now.

    ``candidates`` are (place, id), ascending.
    """
    convert = Converter(layout.dataset(shard.dataset), layout.recipe.transform.max_chars)
    places = enumerate(rows_by_example(layout, shard))
    for wanted, identity in candidates:
        rows = next((rows for place, rows in places if place == wanted), None)
        candidate = convert(rows)[0] if isinstance(rows, list) else None
        yield candidate.rows if candidate and candidate.example.id == identity else []


def _candidates(
    chunk: Sequence[Sequence[Row] | RejectedRow], start: int, convert: Converter
) -> tuple[list[Candidate], list[Drop]]:
    """The candidates of some examples' rows, with places from ``start``; and the drops."""
    candidates: list[Candidate] = []
    drops: list[Drop] = []
    for place, rows in enumerate(chunk, start):
        if isinstance(rows, RejectedRow):
            drops.append(drop(convert.dataset.name, rows.reason, rows.detail, rows.content))
            continue
        candidate, dropped = convert(rows, place)
        drops += dropped
        if candidate is not None:
            candidates.append(candidate)
    return candidates, drops


def _filtered(
    candidates: Sequence[Candidate], layout: Layout, dataset: Dataset
) -> tuple[list[Candidate], list[Drop]]:
    """The candidates that the dataset's filters keep, and the raw rows of the others."""
    kept: list[Candidate] = []
    drops: list[Drop] = []
    found = refusals([one.example for one in candidates], dataset, layout.recipe.model)
    for one, refusal in zip(candidates, found, strict=True):
        if refusal is None:
            kept.append(one)
        else:
            drops += [drop(dataset.name, *refusal, row) for row in one.rows]
    return kept, drops


def _sampled_languages(candidates: Sequence[Candidate]) -> Iterator[str]:
    """The languages of a sample of candidates, drawn by their ids."""
    examples = sorted((one.example for one in candidates), key=lambda example: example.id)
    for example in examples[:LANGUAGE_SAMPLE]:
        yield language_of(" ".join(texts_of(example)))


def _schema(dataset: Dataset) -> pa.Schema:
    return pa.schema([*schema_of(EXAMPLE_TYPES[dataset.task]), *CANDIDATE_FIELDS])


def _table(candidates: Sequence[Candidate], dataset: Dataset) -> pa.Table:
    examples = [one.example for one in candidates]
    table = table_of(examples, EXAMPLE_TYPES[dataset.task])
    columns = {
        "place": [one.place for one in candidates],
        "held_out": [one.held_out for one in candidates],
        "rows": [len(one.rows) for one in candidates],
        "swapped_id": [swapped_id(one) if isinstance(one, PairExample) else "" for one in examples],
        "query_id": [one.query_id for one in candidates],
        "grades": [one.grades for one in candidates],
    }
    more = pa.table(columns, schema=CANDIDATE_FIELDS).combine_chunks()
    return pa.Table.from_arrays([*table.columns, *more.columns], schema=_schema(dataset))
