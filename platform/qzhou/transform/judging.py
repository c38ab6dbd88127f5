"""What becomes of each candidate once all of them are known: trained on, held out, sampled out, or dropped."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from qzhou.data.storage import read_table
from qzhou.transform.contamination import Index, Overlap, grams_of, texts_in
from qzhou.transform.convert import candidate_schema, candidates_folder
from qzhou.transform.dedup import Verdict, judge, sample_keys
from qzhou.transform.partitions import read_partition, write_partitions
from qzhou.transform.plan import Plan, Shard

VERDICTS = pa.schema([("row", pa.uint32()), ("verdict", pa.uint8()), ("first", pa.uint32())])
NOTHING = np.uint64(2**64 - 1)


def judge_bucket(plan: Plan, bucket: int) -> None:
    """Compare the keys of one bucket and write, by shard, which rows are refused, why, and for a row of which shard."""
    tables, numbers = [], []
    for shard in plan.shards:
        for batch in read_partition(candidates_folder(plan, shard), ["keys.arrow"], bucket):
            tables.append(pa.Table.from_batches([batch]))
            numbers.append(np.full(batch.num_rows, shard.number))
    keys, shards = pa.concat_tables(tables), np.concatenate(numbers)
    positions, verdicts, first = judge(keys, shards)
    columns = {
        "row": keys["row"].to_numpy()[positions],
        "verdict": verdicts.astype(np.uint8),
        "first": shards[first].astype(np.uint32),
    }
    table = pa.table(columns, schema=VERDICTS)
    write_partitions(
        plan.work / "verdicts", f"{bucket:06d}.arrow", table, shards[positions], len(plan.shards)
    )


def is_judged(plan: Plan, bucket: int) -> bool:
    return (plan.work / "verdicts").exists(f"{bucket:06d}.arrow")


def verdicts_of(plan: Plan, shard: Shard, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each candidate of a shard a :class:`Verdict` or 0 (uint8), and the shard whose row was first (uint32)."""
    found = np.full(count, NOTHING, dtype=np.uint64)
    names = [f"{bucket:06d}.arrow" for bucket in range(plan.buckets)] if plan.is_judged else []
    for batch in read_partition(plan.work / "verdicts", names, shard.number):
        verdict, first = (batch[name].to_numpy().astype(np.uint64) for name in ("verdict", "first"))
        np.minimum.at(found, batch["row"].to_numpy(), verdict << np.uint64(32) | first)
    found[found == NOTHING] = 0
    return (found >> np.uint64(32)).astype(np.uint8), (found & np.uint64(2**32 - 1)).astype(
        np.uint32
    )


def candidates_of(plan: Plan, shard: Shard) -> pa.Table:
    """The candidates of a shard."""
    folder = candidates_folder(plan, shard)
    empty = candidate_schema(plan.dataset(shard.dataset)).empty_table()
    tables = [read_table(folder, name) for name in folder.files(".parquet")]
    return pa.concat_tables([empty, *tables]).combine_chunks()


def index_shard(plan: Plan, shard: Shard) -> None:
    """Write the n-grams of a shard's held-out examples: queries, relevant documents, texts of pairs and classes.

    A corpus's other documents are not among them: that a distractor was trained on shows nothing.
    """
    table = candidates_of(plan, shard)
    held = (verdicts_of(plan, shard, table.num_rows)[0] == 0) & table["held_out"].to_numpy()
    texts, _ = texts_in(table.filter(pa.array(held)), plan.dataset(shard.dataset).task)
    grams = np.unique(grams_of(texts, plan.recipe.transform.contamination)[0])
    (plan.work / "ngrams").write_bytes(f"{shard.name}.u8", grams.tobytes())


def is_indexed(plan: Plan, shard: Shard) -> bool:
    return (plan.work / "ngrams").exists(f"{shard.name}.u8")


def indexed(plan: Plan, shard: Shard) -> np.ndarray:
    return np.frombuffer((plan.work / "ngrams").read_bytes(f"{shard.name}.u8"), dtype=np.uint64)


def survey_shard(plan: Plan, shard: Shard, index: Index | None) -> None:
    """Find the training candidates that overlap with the evaluation, if they are to be dropped, and number the others.

    Writes ``<shard>.npz``: ``contaminated`` (rows) and ``sample`` (a number for each candidate that may be drawn).
    """
    table = candidates_of(plan, shard)
    waiting = np.flatnonzero(
        (verdicts_of(plan, shard, table.num_rows)[0] == 0) & ~table["held_out"].to_numpy()
    )
    contaminated = np.empty(0, dtype=np.int64)
    if index is not None and plan.recipe.transform.contamination.action == "drop":
        hit = compare(plan, shard, table.take(pa.array(waiting)), index)
        contaminated, waiting = waiting[hit], waiting[~hit]
    numbers = sample_keys(table["id"].take(pa.array(waiting)).to_pylist(), plan.recipe.run.seed)
    with (
        (plan.work / "survey").writing(f"{shard.name}.npz") as temporary,
        plan.folder.filesystem.open_output_stream(temporary) as stream,
    ):
        np.savez(stream, contaminated=contaminated, sample=numbers)


def compare(plan: Plan, shard: Shard, table: pa.Table, index: Index) -> np.ndarray:
    """Which examples of a table overlap with the evaluation; the counts are left for the report."""
    overlap = Overlap(shard.dataset)
    hit = overlap.compare(table, plan.dataset(shard.dataset).task, index)
    (plan.work / "overlaps").write_json(f"{shard.name}.json", overlap.plain())
    return hit


def is_surveyed(plan: Plan, shard: Shard) -> bool:
    return (plan.work / "survey").exists(f"{shard.name}.npz")


def read_survey(plan: Plan, shard: Shard) -> dict[str, np.ndarray]:
    with (plan.work / "survey").filesystem.open_input_file(
        f"{plan.work.path}/survey/{shard.name}.npz"
    ) as stream:
        found = np.load(stream)
        return {name: found[name] for name in found.files}


def sample_limits(plan: Plan) -> Mapping[str, int]:
    """Dataset with ``max_rows`` -> the number above which a candidate is not drawn; none where all are.

    A pair counts twice, because it is trained on from both sides. Memory: 8 bytes a row of the sample.
    """
    limits = {}
    for dataset in plan.recipe.datasets:
        if dataset.max_rows is None:
            continue
        rows = max(1, dataset.max_rows // 2) if dataset.task == "pair" else dataset.max_rows
        smallest = np.empty(0, dtype=np.uint64)
        total = 0
        for shard in plan.shards_of(dataset.name):
            numbers = read_survey(plan, shard)["sample"]
            total += len(numbers)
            smallest = np.concatenate((smallest, numbers))
            if len(smallest) > rows:
                smallest = np.partition(smallest, rows - 1)[:rows]
        if total > rows:
            limits[dataset.name] = int(smallest.max())
    return limits


def statuses(
    plan: Plan, shard: Shard, table: pa.Table, limit: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What becomes of each candidate of a shard.

    Returns: Its :class:`Verdict` or 0 (uint8), the shard whose row was first (uint32), and whether the sample leaves
        it out.
    """
    verdicts, first = verdicts_of(plan, shard, table.num_rows)
    if plan.is_surveyed:
        contaminated = read_survey(plan, shard)["contaminated"]
        verdicts[contaminated[verdicts[contaminated] == 0]] = Verdict.CONTAMINATED
    left_out = np.zeros(table.num_rows, dtype=bool)
    if limit is not None:
        waiting = np.flatnonzero((verdicts == 0) & ~table["held_out"].to_numpy())
        numbers = sample_keys(table["id"].take(pa.array(waiting)).to_pylist(), plan.recipe.run.seed)
        left_out[waiting] = numbers > np.uint64(limit)
    return verdicts, first, left_out
