"""The steps of the transform stage, one after the other without Ray."""

from qzhou.transform.contamination.contamination_pass import check_shard, sample_limits
from qzhou.transform.conversion import convert_shard
from qzhou.transform.deduplication.duplicates import compare_bucket
from qzhou.transform.layout import Layout
from qzhou.transform.shuffling.shuffle import run_shuffle_task
from qzhou.transform.writing.shards import write_corpus, write_shard


def run_steps(layout: Layout) -> None:
    """Everything between the layout and the report; no evaluation texts are looked for."""
    for tasks in layout.shuffle_phases:
        for task in tasks:
            run_shuffle_task(layout, task)
    for shard in layout.shards:
        convert_shard(layout, shard)
    for bucket in range(layout.buckets if layout.finds_duplicates else 0):
        compare_bucket(layout, bucket)
    for shard in layout.shards:
        check_shard(layout, shard, None)
    limits = sample_limits(layout)
    for shard in layout.shards:
        write_shard(layout, shard, limits.get(shard.dataset), None)
    for dataset in layout.recipe.datasets:
        if dataset.task == "retrieval" and dataset.rule != "qrels":  # the join wrote the documents of qrels
            for part in range(layout.partitions[dataset.name]):
                write_corpus(layout, dataset.name, part)
