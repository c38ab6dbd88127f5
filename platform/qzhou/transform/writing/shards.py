"""Candidates to the files that the next stages read: examples, held-out examples, documents, drops and counts."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qzhou.config.dataset import Dataset
from qzhou.data.overlap import TEXT_COLUMNS, Index
from qzhou.data.records import EXAMPLE_TYPES, Document, Drop, Qrel, Query, stable_id
from qzhou.data.storage import Folder, batched, schema_of, table_of, write_table
from qzhou.transform.contamination.contamination_pass import SampleLimits, select_rows, write_overlap
from qzhou.transform.conversion import raw_rows_of, read_candidates
from qzhou.transform.deduplication.duplicates import DETAILS, DropReason
from qzhou.transform.layout import Layout, Shard
from qzhou.transform.rules.fields import drop
from qzhou.transform.shuffling.partitions import read_partition, write_partitions
from qzhou.transform.writing.row_counts import RowCounts

ROWS_PER_FILE = 20_000


def write_shard(layout: Layout, shard: Shard, limits: SampleLimits | None, index: Index | None) -> None:
    """Write what becomes of a shard's candidates.

    ``limits`` are those of the sample (None: all are drawn); ``index`` is given if overlaps
    may be reported.
    """
    dataset = layout.dataset(shard.dataset)
    counts = RowCounts(dataset.name)
    table = read_candidates(layout, shard)
    reasons, first, sampled_out = select_rows(layout, shard, table, limits)
    is_held_out, rows = table["held_out"].to_numpy(), table["rows"].to_numpy()
    trains = (reasons == 0) & ~is_held_out & ~sampled_out
    evaluates = (reasons == 0) & is_held_out
    counts.kept = int(rows[trains].sum())
    counts.held_out = int(rows[evaluates].sum())
    counts.sampled_out = int(rows[sampled_out].sum())
    training, held_out = table.filter(pa.array(trains)), table.filter(pa.array(evaluates))
    if index is not None and layout.recipe.transform.contamination.action == "report":
        write_overlap(layout, shard, training, index)
    examples = _both_ways(training, dataset)
    if dataset.task == "retrieval" and dataset.rule != "qrels":
        _write_documents(layout, shard, dataset, examples)
    if dataset.rule == "documents":  # without a query there is no example
        examples = examples.slice(0, 0)
    plain = held_out.select(schema_of(EXAMPLE_TYPES[dataset.task]).names)
    for folder, found in (("examples", examples), ("held_out", plain)):
        _write(layout.folder / folder / dataset.task / dataset.name, shard, found)
        counts.written[folder] = found.num_rows
    if dataset.rule == "qrels":
        _write_qrels(layout.folder, shard, dataset, held_out, counts)
    _write_drops(layout, shard, _drops(layout, shard, table, reasons, first), counts)
    counts.lengths = _lengths(training, dataset)
    (layout.work / "written").write_json(f"{shard.name}.json", counts.plain())


def write_corpus(layout: Layout, dataset: str, partition: int) -> None:
    """Write one partition of the distinct positives of a dataset's training examples, in the order of the shards."""
    folder = layout.work / "documents" / dataset
    names = [f"{shard.name}.arrow" for shard in layout.shards_of(dataset)]
    batches = list(read_partition(folder, names, partition))
    table = pa.Table.from_batches(batches, schema=schema_of(Document))
    _, first = np.unique(table["id"].to_numpy(zero_copy_only=False), return_index=True)
    distinct = table.take(pa.array(np.sort(first)))
    if distinct.num_rows:
        write_table(layout.folder / "corpora" / dataset, f"part-{partition:06d}.parquet", distinct)


def _write(folder: Folder, shard: Shard, table: pa.Table) -> None:
    for part, start in enumerate(range(0, table.num_rows, ROWS_PER_FILE)):
        name = f"part-{shard.name}-{part:04d}.parquet"
        write_table(folder, name, table.slice(start, ROWS_PER_FILE))


def _both_ways(table: pa.Table, dataset: Dataset) -> pa.Table:
    """The record's columns; each pair is followed by its exchanged sides (section 3.2)."""
    plain = table.select(schema_of(EXAMPLE_TYPES[dataset.task]).names)
    if dataset.task != "pair" or not table.num_rows:
        return plain
    columns = {name: plain[name] for name in plain.schema.names}
    sides = {"id": table["swapped_id"], "text_a": plain["text_b"], "text_b": plain["text_a"]}
    swapped = pa.table(columns | sides).cast(plain.schema)
    order = np.arange(2 * table.num_rows).reshape(2, -1).T.ravel()
    return pa.concat_tables([plain, swapped]).take(pa.array(order)).cast(plain.schema)


def _write_drops(layout: Layout, shard: Shard, drops: Iterator[Drop], counts: RowCounts) -> None:
    """Write the raw rows of dropped candidates, each with its reason."""
    for part, some in enumerate(batched(drops, ROWS_PER_FILE)):
        for one in some:
            counts.drop(one)
        name = f"{shard.name}-compared-{part:04d}.parquet"
        write_table(layout.folder / "dropped", name, table_of(some, Drop))


def _drops(layout: Layout, shard: Shard, table: pa.Table, reasons: np.ndarray, first: np.ndarray) -> Iterator[Drop]:
    dataset = layout.dataset(shard.dataset)
    positions = np.flatnonzero(reasons)
    found = table.take(pa.array(positions))
    candidates = list(zip(found["place"].to_pylist(), found["id"].to_pylist(), strict=True))
    for number, raw in enumerate(raw_rows_of(layout, shard, candidates)):
        position = positions[number]
        reason = DropReason(reasons[position])
        detail = DETAILS[reason].format(dataset=layout.shards[first[position]].dataset)
        # If the raw data has changed since it was read, the example is all there is.
        if not raw:
            names = schema_of(EXAMPLE_TYPES[dataset.task]).names
            (example,) = found.slice(number, 1).select([*names, "rows"]).to_pylist()
            raw = [example] * example.pop("rows")
        for row in raw:
            yield drop(dataset.name, reason.name.lower(), detail, row)


def _write_qrels(folder: Folder, shard: Shard, dataset: Dataset, held_out: pa.Table, counts: RowCounts) -> None:
    """Write a dataset's held-out queries and qrels: with its corpus, an evaluation task."""
    queries, qrels = [], []
    for row in held_out.select(["query_id", "query", "grades"]).to_pylist():
        identity = row["query_id"]
        queries.append(Query(id=identity, text=row["query"]))
        for one in row["grades"]:
            qrels.append(Qrel(query_id=identity, document_id=one["document_id"], grade=int(one["grade"])))
    _write(folder / "queries" / dataset.name, shard, table_of(queries, Query))
    _write(folder / "qrels" / dataset.name, shard, table_of(qrels, Qrel))
    counts.written.update({"queries": len(queries), "qrels": len(qrels)})


def _write_documents(layout: Layout, shard: Shard, dataset: Dataset, examples: pa.Table) -> None:
    """Write the shard's distinct positives by their ids' hash, for :func:`write_corpus`."""
    texts = dict.fromkeys(pc.list_flatten(examples["positives"]).to_pylist())
    documents = [Document(id=stable_id(dataset.name, text), text=text) for text in texts]
    count = layout.partitions[dataset.name]
    numbers = [int(one.id[:8], 16) % count for one in documents]
    folder, table = layout.work / "documents" / dataset.name, table_of(documents, Document)
    write_partitions(folder, f"{shard.name}.arrow", table, numbers, count)


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
