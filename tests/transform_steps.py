"""The steps of the transform stage, one after the other without Ray."""

from dataclasses import replace

from qzhou.transform.contamination.contamination_pass import check_shard, sample_limits
from qzhou.transform.conversion import ConvertRows, raw_rows, write_candidates
from qzhou.transform.deduplication.duplicates import compare_bucket
from qzhou.transform.layout import Layout
from qzhou.transform.pieces import done_in
from qzhou.transform.shuffling.shuffle import run_shuffle_task
from qzhou.transform.writing.shards import selected_candidates, write_corpus, write_examples


def run_steps(layout: Layout) -> None:
    """Everything between the layout and the report; no evaluation texts are looked for."""
    for tasks in layout.shuffle_phases:
        for task in tasks:
            run_shuffle_task(layout, task)
    for shard in layout.shards:
        for table in raw_rows(layout, shard):
            write_candidates(layout, ConvertRows(layout)(table))
    layout = replace(layout, pieces=done_in(layout.marks("convert")))
    for bucket in range(layout.buckets if layout.finds_duplicates else 0):
        compare_bucket(layout, bucket)
    for shard in layout.shards:
        check_shard(layout, shard, None)
    limits = sample_limits(layout)
    for shard in layout.shards:
        write_examples(layout, None, selected_candidates(layout, limits, shard))
    layout = replace(layout, pieces=done_in(layout.marks("write")))
    for dataset in layout.recipe.datasets:
        if dataset.task == "retrieval" and dataset.rule != "qrels":  # the join wrote the documents of qrels
            for part in range(layout.partitions[dataset.name]):
                write_corpus(layout, dataset.name, part)
