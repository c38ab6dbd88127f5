"""Candidates to the files that the next stages read: examples, held-out examples, documents, drops and counts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qzhou.config.dataset import Dataset
from qzhou.data.overlap import TEXT_COLUMNS, Index
from qzhou.data.records import EXAMPLE_TYPES, Document, Drop, Qrel, Query, stable_id
from qzhou.data.storage import Folder, batched, schema_of, table_of, write_table
from qzhou.run.files import HELD_OUT_DOCUMENTS, TRANSFORM
from qzhou.transform.contamination.contamination_pass import SampleLimits, select_rows, write_overlap
from qzhou.transform.conversion import read_candidates
from qzhou.transform.deduplication.duplicates import DETAILS, DropReason
from qzhou.transform.layout import Layout, Shard
from qzhou.transform.pieces import Piece, origin, pieces_in
from qzhou.transform.rules.fields import drop
from qzhou.transform.shuffling.partitions import write_partitions
from qzhou.transform.writing.row_counts import RowCounts

ROWS_PER_FILE = 20_000
STEP = "write"
HELD_OUT_FOLDER = HELD_OUT_DOCUMENTS.removeprefix(f"{TRANSFORM}/")


def selected_candidates(layout: Layout, limits: Mapping[str, SampleLimits], shard: Shard) -> Iterator[pa.Table]:
    """The candidates of a shard with what becomes of them.

    That is ``reason`` and ``first`` as :func:`select_rows` gives them, and ``sampled_out``;
    ``limits`` are those of datasets that are sampled.
    """
    table = read_candidates(layout, shard, with_records=True)
    reasons, first, sampled_out = select_rows(layout, shard, table, limits.get(shard.dataset))
    columns = {name: table[name] for name in table.column_names}
    columns |= origin(shard.number, 0, [0] * table.num_rows, is_last=True)
    columns |= {"reason": pa.array(reasons), "first": pa.array(first), "sampled_out": pa.array(sampled_out)}
    selected = pa.table(columns)
    for start in range(0, table.num_rows, ROWS_PER_FILE):
        yield selected.slice(start, ROWS_PER_FILE)


def write_examples(layout: Layout, index: Index | None, tables: Iterable[pa.Table]) -> None:
    """Write what becomes of candidates: examples, held-out examples, documents and drops; and marks with the counts.

    ``index`` is given if overlaps may be reported.
    """
    for table in tables:
        for piece, part in pieces_in(table):
            counts = _write_piece(layout, piece, part, index)
            layout.marks(STEP).write_json(f"{piece.name}.json", counts.plain())


def _write_piece(layout: Layout, piece: Piece, table: pa.Table, index: Index | None) -> RowCounts:
    shard = layout.shards[piece.shard]
    dataset = layout.dataset(shard.dataset)
    counts = RowCounts(dataset.name)
    is_held_out, is_dropped = table["held_out"].to_numpy(), table["reason"].to_numpy() > 0
    sampled_out, rows = table["sampled_out"].to_numpy(), table["rows"].to_numpy()
    trains, evaluates = ~is_dropped & ~is_held_out & ~sampled_out, ~is_dropped & is_held_out
    counts.kept = int(rows[trains].sum())
    counts.held_out = int(rows[evaluates].sum())
    counts.sampled_out = int(rows[sampled_out].sum())
    training, held_out = table.filter(pa.array(trains)), table.filter(pa.array(evaluates))
    learns = dataset.rule != "documents"  # nobody learns from a document that nothing is asked about
    if index is not None and learns and layout.recipe.transform.contamination.action == "report":
        write_overlap(layout, shard, piece.file, training, index)
    examples = _both_ways(training, dataset)
    if dataset.task == "retrieval" and dataset.rule != "qrels":
        _write_documents(layout, piece, dataset, examples)
    plain = _records(held_out, dataset)
    if dataset.rule == "documents":  # without a query there is no example
        _write_held_out_documents(layout, piece, dataset, plain)
        examples, plain = examples.slice(0, 0), plain.slice(0, 0)
    for folder, found in (("examples", examples), ("held_out", plain)):
        _write(layout.folder / folder / dataset.task / dataset.name, piece, found)
        counts.written[folder] = found.num_rows
    if dataset.rule == "qrels":
        _write_qrels(layout.folder, piece, dataset, held_out, counts)
    _write_drops(layout, piece, _drops(layout, dataset, table.filter(pa.array(is_dropped))), counts)
    counts.lengths = _lengths(training, dataset)
    return counts


def write_corpus(layout: Layout, dataset: str, partition: int) -> None:
    """Write one partition of the distinct positives of a dataset's training examples, in the order of the shards."""
    table = pa.Table.from_batches(layout.partition(documents(dataset), partition), schema=schema_of(Document))
    _, first = np.unique(table["id"].to_numpy(zero_copy_only=False), return_index=True)
    distinct = table.take(pa.array(np.sort(first)))
    if distinct.num_rows:
        write_table(layout.folder / "corpora" / dataset, f"part-{partition:06d}.parquet", distinct)


def documents(dataset: str) -> str:
    """The folder of ``work`` for the documents of a dataset's examples."""
    return f"documents/{dataset}"


def _write(folder: Folder, piece: Piece, table: pa.Table) -> None:
    for part, start in enumerate(range(0, table.num_rows, ROWS_PER_FILE)):
        name = f"part-{piece.file}-{part:04d}.parquet"
        write_table(folder, name, table.slice(start, ROWS_PER_FILE))


def _records(table: pa.Table, dataset: Dataset) -> pa.Table:
    schema = schema_of(EXAMPLE_TYPES[dataset.task])
    return table.select(schema.names).cast(schema)


def _both_ways(table: pa.Table, dataset: Dataset) -> pa.Table:
    """The record's columns; each pair is followed by its exchanged sides (section 3.2)."""
    plain = _records(table, dataset)
    if dataset.task != "pair" or not table.num_rows:
        return plain
    columns = {name: plain[name] for name in plain.schema.names}
    sides = {"id": table["swapped_id"], "text_a": plain["text_b"], "text_b": plain["text_a"]}
    swapped = pa.table(columns | sides).cast(plain.schema)
    order = np.arange(2 * table.num_rows).reshape(2, -1).T.ravel()
    return pa.concat_tables([plain, swapped]).take(pa.array(order)).cast(plain.schema)


def _write_drops(layout: Layout, piece: Piece, drops: Iterator[Drop], counts: RowCounts) -> None:
    """Write the raw rows of dropped candidates, each with its reason."""
    for part, some in enumerate(batched(drops, ROWS_PER_FILE)):
        for one in some:
            counts.drop(one)
        name = f"{piece.file}-compared-{part:04d}.parquet"
        write_table(layout.folder / "dropped", name, table_of(some, Drop))


def _drops(layout: Layout, dataset: Dataset, table: pa.Table) -> Iterator[Drop]:
    for one in table.select(["reason", "first", "records"]).to_pylist():
        reason = DropReason(one["reason"])
        detail = DETAILS[reason].format(dataset=layout.shards[one["first"]].dataset)
        for record in one["records"]:
            yield drop(dataset.name, reason.name.lower(), detail, record)


def _write_qrels(folder: Folder, piece: Piece, dataset: Dataset, held_out: pa.Table, counts: RowCounts) -> None:
    """Write a dataset's held-out queries and qrels: with its corpus, an evaluation task."""
    queries, qrels = [], []
    for row in held_out.select(["query_id", "query", "grades"]).to_pylist():
        identity = row["query_id"]
        queries.append(Query(id=identity, text=row["query"]))
        for one in row["grades"]:
            qrels.append(Qrel(query_id=identity, document_id=one["document_id"], grade=int(one["grade"])))
    _write(folder / "queries" / dataset.name, piece, table_of(queries, Query))
    _write(folder / "qrels" / dataset.name, piece, table_of(qrels, Qrel))
    counts.written.update({"queries": len(queries), "qrels": len(qrels)})


def _write_documents(layout: Layout, piece: Piece, dataset: Dataset, examples: pa.Table) -> None:
    """Write the distinct positives of examples by their ids' hash, for :func:`write_corpus`."""
    texts = dict.fromkeys(pc.list_flatten(examples["positives"]).to_pylist())
    found = [Document(id=stable_id(dataset.name, text), text=text) for text in texts]
    count = layout.partitions[dataset.name]
    numbers = [int(one.id[:8], 16) % count for one in found]
    write_partitions(
        layout.work / documents(dataset.name), f"{piece.file}.arrow", table_of(found, Document), numbers, count
    )


def _write_held_out_documents(layout: Layout, piece: Piece, dataset: Dataset, examples: pa.Table) -> None:
    texts = dict.fromkeys(pc.list_flatten(examples["positives"]).to_pylist())
    found = [Document(id=stable_id(dataset.name, text), text=text) for text in texts]
    _write(layout.folder / HELD_OUT_FOLDER / dataset.name, piece, table_of(found, Document))


def _lengths(table: pa.Table, dataset: Dataset) -> dict[str, Counter[str]]:
    """Field -> characters rounded up to a power of two -> texts."""
    columns = [*TEXT_COLUMNS[dataset.task], *(["negatives"] if dataset.task == "retrieval" else [])]
    found = {name: Counter(dict(_powers(table[name]))) for name in columns}
    return {name: counts for name, counts in found.items() if counts}


def _powers(column: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    flat = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    texts = pc.struct_field(flat, "text") if pa.types.is_struct(flat.type) else flat
    if not len(texts):
        return
    powers = np.ceil(np.log2(np.maximum(1, pc.utf8_length(texts).to_numpy()))).astype(int)
    for power, number in zip(*np.unique(powers, return_counts=True), strict=True):
        yield str(2 ** int(power)), int(number)
