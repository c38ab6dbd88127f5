"""A shuffle of many files and partitions is read in pieces that pay: reads grow with the data, not with its square."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qzhou.data.storage import Folder
from qzhou.transform.layout import MAX_PARTITIONS, Layout, make_layout
from qzhou.transform.reading.files import InputFile
from qzhou.transform.shuffling.merging import LIMITS, MergeLimits, after_pass, merged, next_pass
from qzhou.transform.shuffling.partitions import PartitionRange, write_partitions
from tests.transform_steps import run_steps

GB = 10**9
SHARD_BYTES, BUCKET_BYTES = 64e6, 32e6  # of raw data


def planned_reads(raw_bytes: float, kept_share: float) -> tuple[int, int]:
    """Reads of all passes and of all partitions, and passes; each partition is as large as the others."""
    shards = math.ceil(raw_bytes / SHARD_BYTES)
    partitions = min(MAX_PARTITIONS, math.ceil(raw_bytes / BUCKET_BYTES))
    ranges = [PartitionRange(0, partitions, {f"{n}.arrow": int(SHARD_BYTES * kept_share) for n in range(shards)})]
    reads = passes = 0
    while any(plan := next_pass(ranges, partitions, LIMITS)):
        sizes = {}
        for one, tasks in zip(ranges, plan, strict=True):
            for task in tasks:
                reads += len(task.names)
                total = sum(one.files[name] for name in task.names)
                for name, first, after in task.written():
                    sizes[f"{passes}/{name}"] = int(total * (after - first) / (one.after - one.first))
        ranges = after_pass(ranges, plan, sizes, str(passes))
        passes += 1
    assert [one.first for one in ranges[1:]] == [one.after for one in ranges[:-1]]
    assert (ranges[0].first, ranges[-1].after) == (0, partitions)
    return reads + sum(len(one.files) * (one.after - one.first) for one in ranges), passes


@pytest.mark.parametrize("kept_share", [0.05, 0.25, 1.0], ids=["few keys", "keys", "whole rows"])
def test_reads_grow_with_the_data_and_not_with_its_square(kept_share):
    small, _ = planned_reads(100 * GB, kept_share)
    large, passes = planned_reads(1000 * GB, kept_share)

    assert large <= 12 * small
    assert large <= LIMITS.few_reads + (passes + 1) * 1000 * GB * kept_share / LIMITS.read_bytes
    assert passes <= 3
    as_they_are = (1000 * GB / SHARD_BYTES) * MAX_PARTITIONS
    assert large < as_they_are / 30


def test_a_laptops_data_is_read_as_it_is():
    _, passes = planned_reads(5 * GB, 0.25)
    assert passes == 0


@pytest.fixture
def layout(tmp_path, make_recipe) -> Layout:
    dataset = {"name": "d", "reader": "jsonl", "rule": "question_answer", "paths": ["unused"]}
    return make_layout(make_recipe(datasets=[dataset]), Folder.open(str(tmp_path)), {"d": {"rows": []}})


def write_shuffle(layout: Layout, files: int, partitions: int, rows: int) -> dict[int, list[str]]:
    """Files of rows with random partitions, most of them in the first one; partition -> its rows in order."""
    random = np.random.default_rng(1)
    expected: dict[int, list[str]] = {partition: [] for partition in range(partitions)}
    for number in range(files):
        own = random.integers(0, partitions, rows) * (random.random(rows) < 0.6)
        names = [f"{number}-{row}" for row in range(rows)]
        for name, partition in zip(names, own.tolist(), strict=True):
            expected[partition].append(name)
        table = pa.table({"name": names})
        write_partitions(layout.work / "some", f"{number:06d}.arrow", table, own, partitions)
    return expected


@pytest.mark.parametrize(("files", "partitions"), [(1, 1), (1, 40), (40, 1), (23, 17), (7, 64)])
@pytest.mark.parametrize(
    "limits",
    [
        LIMITS,
        MergeLimits(few_reads=0, read_bytes=10**9, task_bytes=5000, fan_out=2),
        MergeLimits(few_reads=0, read_bytes=10**9, task_bytes=1, fan_out=3),
        MergeLimits(few_reads=0, read_bytes=10**9, task_bytes=10**9, fan_out=64),
        MergeLimits(few_reads=30, read_bytes=2000, task_bytes=20_000, fan_out=5),
    ],
    ids=["as they are", "two ways", "no file fits", "one file", "some passes"],
)
def test_merged_partitions_hold_the_same_rows_in_the_same_order(layout, files, partitions, limits):
    expected = write_shuffle(layout, files, partitions, rows=50)
    done: list[str] = []

    def each(step, tasks, work):
        done.extend(f"{step}/{name}" for name in tasks)
        for name in sorted(tasks, reverse=True):
            work(layout, tasks[name])

    made = merged(layout, "some", partitions, each, limits=limits)

    for partition, names in expected.items():
        read = [name for batch in made.partition("some", partition) for name in batch["name"].to_pylist()]
        assert read == names
    assert len(set(done)) == len(done)
    reads = sum(len(one.files) * (one.after - one.first) for one in made.partitioned["some"])
    assert reads <= files * partitions
    if limits is LIMITS or files == 1 or limits.task_bytes == 1:
        assert reads == files * partitions
    elif partitions > 1:
        assert reads < files * partitions


def test_a_folder_without_files_has_empty_partitions(layout):
    made = merged(layout, "none", 3, lambda *_: None)
    assert list(made.partition("none", 2)) == []


def written(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.parquet")
        if "work" not in path.parts
    }


@pytest.mark.parametrize("rule", ["question_answer", "graded"])
def test_merging_changes_no_file_of_the_stage(tmp_path, make_recipe, rule):
    lines = [
        {
            "question": (question := f"which of the many numbers is number {number % 500}"),
            "query": question,
            "answer": (answer := f"it is answer {number % 300}"),
            "document": answer,
            "grade": 1,
        }
        for number in range(600)
    ]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    dataset = {"name": "d", "reader": "jsonl", "rule": rule, "paths": ["unused"], "eval_fraction": 0.1}
    recipe = make_recipe(datasets=[dataset])
    # said to be larger than they are, so that there are partitions
    files = [InputFile(str(path), 700_000_000)]
    small = MergeLimits(few_reads=0, read_bytes=10**9, task_bytes=3000, fan_out=3)

    for name, limits in (("plain", LIMITS), ("merged", small)):
        run_steps(make_layout(recipe, Folder.open(str(tmp_path / name)), {"d": {"rows": files}}), limits)

    assert written(tmp_path / "plain") == written(tmp_path / "merged")
    passes = {path.name for path in (tmp_path / "merged").rglob("merged-*")}
    assert "merged-0" in passes
