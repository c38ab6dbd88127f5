"""Bringing rows together: our shuffle beside Ray Data's ``groupby().map_groups`` and ``join``, on one cluster.

python -m bench.group [--rows 500000 2000000]

Two works. group: triplets with one negative a row become one row for each query and positive, with all its negatives
in their order, and the groups in the order of their first rows. join: judgements meet the texts of their queries and
documents. Everyone reads the same JSON lines and writes Parquet. Ours are the functions of the stage as Ray tasks;
Ray Data's are its own readers, hash shuffle and writers, in their default settings but for the number of partitions,
which is ours. Its groups have no order, and their negatives are sorted by a column that says it. The groups and the
joined rows must be the same, or no speed is quoted. Memory is the largest proportional set size of all processes.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from rich.console import Console

from bench.report import parsed, table, write
from bench.transform import PeakMemory
from qzhou.cluster.session import session
from qzhou.config.recipe import Recipe, parse_recipe
from qzhou.data.records import normalized_text
from qzhou.data.storage import Folder
from qzhou.transform.layout import Layout, make_layout
from qzhou.transform.reading.discovery import find_inputs
from qzhou.transform.shuffling.shuffle import rows_by_example, run_shuffle_task

FILES = 8
NEGATIVES = 5  # rows of one query and positive
JUDGED = 4  # documents of one query
WORDS = [f"word{number}" for number in range(3000)]


def write_triplets(folder: Path, rows: int) -> None:
    """Rows of about 300 bytes; those of one query lie far apart."""
    draw, streams = random.Random(rows), [(folder / f"{n}.jsonl").open("w") for n in range(FILES)]
    queries = rows // NEGATIVES
    for number in range(rows):
        words = random.Random(number % queries)
        content = {
            "query": " ".join(words.choices(WORDS, k=8)),
            "pos": " ".join(words.choices(WORDS, k=15)),
            "neg": " ".join(draw.choices(WORDS, k=15)),
            "place": number,
        }
        streams[number * FILES // rows].write(json.dumps(content) + "\n")
    for stream in streams:
        stream.close()


def write_judgements(folder: Path, rows: int) -> None:
    """So many judgements; a quarter as many queries, and as many documents."""
    draw, queries = random.Random(rows), rows // JUDGED

    def text(seed: int, words: int) -> str:
        return " ".join(random.Random(seed).choices(WORDS, k=words))

    with (folder / "queries.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"_id": f"q{n}", "text": text(n, 8)}) + "\n" for n in range(queries))
    with (folder / "corpus.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"_id": f"d{n}", "text": text(-n, 25)}) + "\n" for n in range(rows))
    with (folder / "qrels.jsonl").open("w") as stream:
        for number in range(rows):
            row = {"query-id": f"q{number % queries}", "corpus-id": f"d{draw.randrange(rows)}", "score": 1}
            stream.write(json.dumps(row) + "\n")


def recipe_of(dataset: dict[str, Any], storage: Path) -> Recipe:
    stage = {"steps": 1, "learning_rate": 1e-5, "retrieval_share": 1.0}
    content = {
        "run": {"name": "run", "storage": str(storage)},
        "model": {"backbone": "not used"},
        "datasets": [{"name": "d", "reader": "jsonl", **dataset}],
        "training": {"stage1": stage, "stage2": stage},
    }
    return parse_recipe(content, place="bench")


def layout_of(dataset: dict[str, Any], place: Path) -> Layout:
    recipe = recipe_of(dataset, place)
    raw = find_inputs(recipe)
    return make_layout(recipe, Folder.open(str(place / "run")), raw.files, raw.readers, raw.merged)


def ours(dataset: dict[str, Any], packed: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    """The shuffle of the transform, its groups written as they come."""

    def work(place: Path) -> Path:
        layout = layout_of(dataset, place)
        target = place / "out"
        target.mkdir()

        def grouped(number: int) -> None:
            found = [packed(one) for one in rows_by_example(layout, layout.shards[number]) if isinstance(one, list)]
            pq.write_table(pa.Table.from_pylist(found), target / f"{number:06d}.parquet")

        for tasks in layout.shuffle_phases:
            ray.get([ray.remote(run_shuffle_task).remote(layout, task) for task in tasks])
        ray.get([ray.remote(grouped).remote(number) for number in range(len(layout.shards))])
        return target

    return work


def packed_triplets(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"query": rows[0]["query"], "pos": rows[0]["pos"], "neg": [row["neg"] for row in rows]}


def packed_judgements(rows: list[dict[str, Any]]) -> dict[str, Any]:
    query = {"query_id": rows[0]["query_id"], "query": rows[0]["query"]}
    return query | {"document": [row["document"] for row in rows]}


def ray_groups(source: Path, partitions: int) -> Callable[[Path], Path]:
    def key(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        both = zip(batch["query"], batch["pos"], strict=True)
        return {**batch, "key": np.array(["\n".join(map(normalized_text, one)) for one in both])}

    def merge(group: pa.Table) -> pa.Table:
        group = group.sort_by("place")
        return pa.table({"query": group["query"][:1], "pos": group["pos"][:1], "neg": [group["neg"].to_pylist()]})

    def work(place: Path) -> Path:
        rows = ray.data.read_json(str(source), lines=True).map_batches(key)
        groups = rows.groupby("key", num_partitions=partitions).map_groups(merge, batch_format="pyarrow")
        groups.write_parquet(str(place / "out"))
        return place / "out"

    return work


def ray_join(source: Path, partitions: int) -> Callable[[Path], Path]:
    def merge(group: pa.Table) -> pa.Table:
        documents = [group["document"].to_pylist()]
        return pa.table({"query_id": group["query-id"][:1], "query": group["query"][:1], "document": documents})

    def read(name: str) -> ray.data.Dataset:
        return ray.data.read_json(str(source / f"{name}.jsonl"), lines=True)

    def work(place: Path) -> Path:
        documents = read("corpus").rename_columns({"_id": "corpus-id", "text": "document"})
        queries = read("queries").rename_columns({"_id": "query-id", "text": "query"})
        joined = read("qrels").join(documents, "inner", partitions, on=("corpus-id",))
        joined = joined.join(queries, "inner", partitions, on=("query-id",))
        groups = joined.groupby("query-id", num_partitions=partitions).map_groups(merge, batch_format="pyarrow")
        groups.write_parquet(str(place / "out"))
        return place / "out"

    return work


def contents(folder: Path) -> set[tuple[Any, ...]]:
    """What came out; the order of a query's documents counts for nothing."""
    rows = pq.ParquetDataset(folder).read().to_pylist()
    return {tuple(tuple(sorted(one)) if isinstance(one, list) else one for one in row.values()) for row in rows}


def timed(work: Callable[[Path], Path], around: Path) -> tuple[float, float, set[tuple[Any, ...]]]:
    """Seconds, peak memory in MiB, and what came out."""
    place = Path(tempfile.mkdtemp(dir=around))
    with PeakMemory() as memory:
        started = time.perf_counter()
        target = work(place)
        seconds = time.perf_counter() - started
    found = contents(target)
    shutil.rmtree(place)
    return seconds, memory.mib, found


def measured(case: str, rows: int, rounds: int, around: Path) -> dict[str, Any]:
    source = Path(tempfile.mkdtemp(dir=around))
    if case == "group":
        write_triplets(source, rows)
        dataset = {"rule": "triplets", "paths": [f"{source}/*.jsonl"], "merge_rows": True}
        packed, peer = packed_triplets, ray_groups
    else:
        write_judgements(source, rows)
        texts: dict[str, dict[str, Any]] = {
            name: {"reader": "jsonl", "paths": [f"{source}/{name}.jsonl"]} for name in ("queries", "corpus")
        }
        texts["corpus"]["columns"] = {"text": "text"}
        dataset = {"rule": "qrels", "paths": [f"{source}/qrels.jsonl"], **texts}
        packed, peer = packed_judgements, ray_join
    partitions = layout_of(dataset, source / "unused").partitions["d"]
    own: list[tuple[float, float, set[Any]]] = []
    theirs: list[tuple[float, float, set[Any]]] = []
    for _ in range(rounds):
        own.append(timed(ours(dataset, packed), around))
        theirs.append(timed(peer(source, partitions), around))
    agree = own[0][2] == theirs[0][2]
    seconds, other = (statistics.median(one[0] for one in turns) for turns in (own, theirs))
    return {
        "case": case,
        "rows": rows,
        "partitions": partitions,
        "ours_s": round(seconds, 1) if agree else None,
        "ray_data_s": round(other, 1) if agree else None,
        "ray_data / ours": round(other / seconds, 2) if agree else None,
        "ours_mib": round(max(one[1] for one in own)),
        "ray_data_mib": round(max(one[1] for one in theirs)),
        "agree": agree,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[500_000, 2_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parsed(parser, {"rows": [2_000], "rounds": 1})
    with tempfile.TemporaryDirectory() as around, session():
        place = Path(around)
        warm_up(place)
        cases: Sequence[tuple[str, int]] = [(case, rows) for rows in asked.rows for case in ("group", "join")]
        results = [measured(case, rows, asked.rounds, place) for case, rows in cases]
    Console(width=120).print(table("Bringing rows together", results))
    write(asked.results, "group.json", {"rows": results})


def warm_up(place: Path) -> None:
    """Workers have loaded what they need."""
    for case in ("group", "join"):
        measured(case, 1_000, 1, place)


if __name__ == "__main__":
    main()
