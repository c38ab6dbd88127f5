"""The steps of the transform stage, one after the other without Ray."""

from dataclasses import replace

from qzhou.transform.contamination.contamination_pass import check_shard, sample_limits
from qzhou.transform.conversion import ConvertRows, raw_rows, write_candidates
from qzhou.transform.deduplication.duplicates import compare_bucket
from qzhou.transform.layout import Layout
from qzhou.transform.pieces import done_in
from qzhou.transform.shuffling.merging import LIMITS, MergeLimits, merged
from qzhou.transform.shuffling.shuffle import run_shuffle_task, shuffled
from qzhou.transform.writing.shards import documents, selected_candidates, write_corpus, write_examples


def run_steps(layout: Layout, limits: MergeLimits = LIMITS) -> None:
    """Everything between the layout and the report; no evaluation texts are looked for."""

    def each(_, tasks, work):
        for task in tasks.values():
            work(layout, task)

    for tasks in layout.shuffle_phases:
        for task in tasks:
            run_shuffle_task(layout, task)
        for dataset, role in dict.fromkeys((task.dataset, task.role) for task in tasks):
            layout = merged(layout, shuffled(dataset, role), layout.partitions[dataset], each, limits=limits)
    for shard in layout.shards:
        for table in raw_rows(layout, shard):
            write_candidates(layout, ConvertRows(layout)(table))
    layout = replace(layout, pieces=done_in(layout.marks("convert")))
    if layout.finds_duplicates:
        files = layout.piece_files(layout.shards, ".arrow")
        layout = merged(layout, "keys", layout.buckets, each, files, limits)
        for bucket in range(layout.buckets):
            compare_bucket(layout, bucket)
        layout = merged(layout, "duplicates", len(layout.shards), each, limits=limits)
    for shard in layout.shards:
        check_shard(layout, shard, None)
    samples = sample_limits(layout)
    for shard in layout.shards:
        write_examples(layout, None, selected_candidates(layout, samples, shard))
    layout = replace(layout, pieces=done_in(layout.marks("write")))
    for dataset in layout.recipe.datasets:
        if dataset.task == "retrieval" and dataset.rule != "qrels":  # the join wrote the documents of qrels
            files = layout.piece_files(layout.shards_of(dataset.name), ".arrow")
            layout = merged(layout, documents(dataset.name), layout.partitions[dataset.name], each, files, limits)
            for part in range(layout.partitions[dataset.name]):
                write_corpus(layout, dataset.name, part)
