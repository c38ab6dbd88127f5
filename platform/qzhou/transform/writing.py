"""Candidates and their verdicts to what the next stages read: examples, held-out examples, corpora, drops, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qzhou.config.dataset import Dataset
from qzhou.data.records import EXAMPLE_TYPES, Document, Drop, Qrel, Query, stable_id
from qzhou.data.storage import Folder, schema_of, table_of, write_table
from qzhou.transform.contamination import TEXT_COLUMNS, Index
from qzhou.transform.convert import rows_behind
from qzhou.transform.dedup import DETAILS, Verdict
from qzhou.transform.fields import drop
from qzhou.transform.judging import candidates_of, compare, statuses
from qzhou.transform.partitions import read_partition, write_partitions
from qzhou.transform.plan import Plan, Shard
from qzhou.transform.tally import Tally

ROWS_PER_FILE = 20_000

DOCUMENT_KEYS = schema_of(Document)


def write_shard(plan: Plan, shard: Shard, limit: int | None, index: Index | None) -> None:
    """Write what becomes of a shard's candidates; the counts last, as the mark that it is done.

    Args:
        plan: Of the stage.
        shard: Whose verdicts are known.
        limit: What :func:`qzhou.transform.judging.sample_limits` says of its dataset.
        index: Of the evaluation's texts, if overlaps are to be reported.
    """
    dataset = plan.dataset(shard.dataset)
    tally = Tally(dataset.name)
    table = candidates_of(plan, shard)
    verdicts, first, left_out = statuses(plan, shard, table, limit)
    held = table["held_out"].to_numpy()
    rows = table["rows"].to_numpy()
    kept = (verdicts == 0) & ~held & ~left_out
    training = table.filter(pa.array(kept))
    tally.kept, tally.held_out = int(rows[kept].sum()), int(rows[(verdicts == 0) & held].sum())
    tally.sampled_out = int(rows[left_out].sum())
    if index is not None and plan.recipe.transform.contamination.action == "report":
        compare(plan, shard, training, index)
    examples = _both_ways(training, dataset)
    # without a query there is no example
    asked = examples.slice(0, 0) if dataset.rule == "documents" else examples
    held_out = table.filter(pa.array((verdicts == 0) & held))
    place = f"{dataset.task}/{dataset.name}"
    for folder, found in (
        ("examples", asked),
        ("held_out", held_out.select(schema_of(EXAMPLE_TYPES[dataset.task]).names)),
    ):
        _write(plan.folder / folder / place, shard, found)
        tally.written[folder] = found.num_rows
    _write_drops(plan, shard, table, (verdicts, first), tally)
    tally.lengths = _lengths(training, dataset)
    if dataset.rule == "qrels":
        _write_judgements(plan.folder, shard, dataset, held_out, tally)
    elif dataset.task == "retrieval":
        _write_documents(plan, shard, dataset, examples)
    (plan.work / "written").write_json(f"{shard.name}.json", tally.plain())


def is_written(plan: Plan, shard: Shard) -> bool:
    return (plan.work / "written").exists(f"{shard.name}.json")


def written(plan: Plan, shard: Shard) -> Tally:
    return Tally.of((plan.work / "written").read_json(f"{shard.name}.json"))


def write_corpus(plan: Plan, dataset: str, partition: int) -> None:
    """The distinct positives of a dataset's training examples: one partition of them, in the order of the shards."""
    folder = plan.work / "documents" / dataset
    names = [f"{shard.name}.arrow" for shard in plan.shards_of(dataset)]
    table = pa.Table.from_batches(
        list(read_partition(folder, names, partition)), schema=DOCUMENT_KEYS
    )
    _, first = np.unique(table["id"].to_numpy(zero_copy_only=False), return_index=True)
    distinct = table.take(pa.array(np.sort(first)))
    if distinct.num_rows:
        write_table(plan.folder / "corpora" / dataset, f"part-{partition:06d}.parquet", distinct)
    (plan.work / "corpora").write_json(
        f"{dataset}-{partition:06d}.json", {"documents": distinct.num_rows}
    )


def is_corpus_written(plan: Plan, dataset: str, partition: int) -> bool:
    return (plan.work / "corpora").exists(f"{dataset}-{partition:06d}.json")


def _write(folder: Folder, shard: Shard, table: pa.Table) -> None:
    for part, start in enumerate(range(0, table.num_rows, ROWS_PER_FILE)):
        write_table(
            folder, f"part-{shard.name}-{part:04d}.parquet", table.slice(start, ROWS_PER_FILE)
        )


def _both_ways(table: pa.Table, dataset: Dataset) -> pa.Table:
    """The columns of the record; pairs are followed by themselves with their sides exchanged (section 3.2)."""
    plain = table.select(schema_of(EXAMPLE_TYPES[dataset.task]).names)
    if dataset.task != "pair" or not table.num_rows:
        return plain
    columns = {name: plain[name] for name in plain.schema.names}
    exchanged = {
        **columns,
        "id": table["swapped_id"],
        "text_a": plain["text_b"],
        "text_b": plain["text_a"],
    }
    other = pa.table(exchanged).cast(plain.schema)
    order = np.arange(2 * table.num_rows).reshape(2, -1).T.ravel()
    return pa.concat_tables([plain, other]).take(pa.array(order)).cast(plain.schema)


def _write_drops(
    plan: Plan, shard: Shard, table: pa.Table, judged: tuple[np.ndarray, np.ndarray], tally: Tally
) -> None:
    """Write the raw rows of refused candidates, each with its reason."""
    drops = _refused(plan, shard, table, *judged)
    for part in count():
        some = list(islice(drops, ROWS_PER_FILE))
        if not some:
            return
        for one in some:
            tally.drop(one)
        write_table(
            plan.folder / "dropped", f"{shard.name}-judged-{part:04d}.parquet", table_of(some, Drop)
        )


def _refused(
    plan: Plan, shard: Shard, table: pa.Table, verdicts: np.ndarray, first: np.ndarray
) -> Iterator[Drop]:
    dataset = plan.dataset(shard.dataset)
    places = np.flatnonzero(verdicts)
    if not len(places):
        return
    found = table.take(pa.array(places))
    candidates = list(zip(found["unit"].to_pylist(), found["id"].to_pylist(), strict=True))
    for number, raw in enumerate(rows_behind(plan, shard, candidates)):
        verdict = Verdict(verdicts[places[number]])
        detail = DETAILS[verdict].format(dataset=plan.shards[first[places[number]]].dataset)
        # the raw data has changed since it was read; what was made of it is all there is
        if not raw:
            names = schema_of(EXAMPLE_TYPES[dataset.task]).names
            (example,) = found.slice(number, 1).select([*names, "rows"]).to_pylist()
            raw = [example] * example.pop("rows")
        for row in raw:
            yield drop(dataset.name, verdict.name.lower(), detail, row)


def _write_judgements(
    folder: Folder, shard: Shard, dataset: Dataset, held_out: pa.Table, tally: Tally
) -> None:
    """The held-out queries of a qrels dataset and their judgements: with its corpus, an evaluation task."""
    queries, qrels = [], []
    for row in held_out.select(["query_id", "query", "judged"]).to_pylist():
        queries.append(Query(id=row["query_id"], text=row["query"]))
        qrels += [
            Qrel(query_id=row["query_id"], document_id=one["document_id"], grade=int(one["grade"]))
            for one in row["judged"]
        ]
    _write(folder / "queries" / dataset.name, shard, table_of(queries, Query))
    _write(folder / "qrels" / dataset.name, shard, table_of(qrels, Qrel))
    tally.written.update({"queries": len(queries), "qrels": len(qrels)})


def _write_documents(plan: Plan, shard: Shard, dataset: Dataset, examples: pa.Table) -> None:
    """The shard's distinct positives, by the hash of their ids, for :func:`write_corpus`."""
    texts = dict.fromkeys(pc.list_flatten(examples["positives"]).to_pylist())
    documents = [Document(id=stable_id(dataset.name, text), text=text) for text in texts]
    count = plan.partitions[dataset.name]
    numbers = [int(one.id[:8], 16) % count for one in documents]
    write_partitions(
        plan.work / "documents" / dataset.name,
        f"{shard.name}.arrow",
        table_of(documents, Document),
        numbers,
        count,
    )


def _lengths(table: pa.Table, dataset: Dataset) -> dict[str, Counter[str]]:
    """Field -> characters rounded up to a power of two -> texts."""
    columns = [*TEXT_COLUMNS[dataset.task], *(["negatives"] if dataset.task == "retrieval" else [])]
    return {name: counts for name in columns if (counts := Counter(dict(_powers(table[name]))))}


def _powers(column: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    flat = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    texts = pc.struct_field(flat, "text") if pa.types.is_struct(flat.type) else flat
    if not len(texts):
        return
    powers = np.ceil(np.log2(np.maximum(1, pc.utf8_length(texts).to_numpy()))).astype(int)
    for power, number in zip(*np.unique(powers, return_counts=True), strict=True):
        yield str(2 ** int(power)), int(number)
