"""The transform stage on Ray Data: steps map functions over shards or buckets to files.

    shuffle        rows that belong together are brought together, where a rule needs it
    convert        raw rows become candidates by their dataset's rule, with keys and drops
    compare        equal keys meet: duplicates, near-duplicates, texts that are held out
    index          n-grams of the evaluation's texts
    contamination  training texts are compared with that index; the sample is numbered
    write          examples, held-out examples, drops
    corpora        distinct documents

Only file names and counts pass through the driver. A run that was killed goes on with what
is not finished.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.cloudpickle
import ray.data

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import session
from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.data.overlap import Index, Overlap
from qzhou.data.records import TASKS, Manifest
from qzhou.data.storage import Folder
from qzhou.errors import DataError, QzhouError, from_json, to_json
from qzhou.run.files import NGRAMS, TRANSFORM
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import NO_ROWS, progress
from qzhou.transform.contamination.contamination_pass import check_shard, read_ngrams, sample_limits, write_ngrams
from qzhou.transform.contamination.index_builder import IndexBuilder
from qzhou.transform.conversion import SUMMARY, candidates_folder, convert_shard
from qzhou.transform.deduplication.duplicates import compare_bucket
from qzhou.transform.layout import Layout, Shard, ShuffleTask, make_layout
from qzhou.transform.reading.discovery import RawInputs, find_inputs
from qzhou.transform.shuffling.shuffle import run_shuffle_task
from qzhou.transform.writing import report
from qzhou.transform.writing.row_counts import RowCounts
from qzhou.transform.writing.shards import write_corpus, write_shard

DONE = pa.schema({"error": pa.string(), "rows": pa.int64(), "dataset": pa.string()})
TaskTexts = Callable[[Sequence[str]], Mapping[str, Iterable[str]]]

# settings of a dataset that no row depends on
NO_PART_OF_A_ROW = {
    "instruction",
    "instruction_template",
    "symmetric",
    "query_prefix",
    "document_prefix",
    "license",
}


def transform(recipe: Recipe, task_texts: TaskTexts | None = None) -> Manifest:
    """Turn the raw datasets of a recipe into examples, corpora and held-out examples.

    Writes ``examples/<task>/<dataset>``, ``held_out/<task>/<dataset>``,
    ``corpora/<dataset>``, for qrels datasets ``queries/<dataset>`` and ``qrels/<dataset>``,
    ``dropped`` and ``report.json`` into the run's folder ``transform``.

    Args:
        recipe: Of the run.
        task_texts: Gives the texts of mteb tasks for ``transform.contamination.tasks``.

    Raises:
        DataError: A file or column is missing, a dataset is empty, or too few of its rows survive. What was dropped
            is written even then.
        RecipeError: ``columns`` names a field that the dataset's rule does not have.
    """
    contamination = recipe.transform.contamination
    tasks = contamination.tasks if contamination.action != "off" else ()
    if tasks and task_texts is None:
        raise DataError("transform.contamination.tasks needs mteb; run `qzhou transform` or `qzhou run`")
    texts = task_texts(tasks) if tasks and task_texts else {}
    raw = find_inputs(recipe)
    for module in raw.modules.values():
        ray.cloudpickle.register_pickle_by_value(module)  # it need not be installed on workers
    datasets = [one.model_dump(exclude=NO_PART_OF_A_ROW) for one in recipe.datasets]
    counts_tokens = any(one.max_tokens for one in recipe.datasets)
    stage = Stage(
        name="transform",
        settings={
            "datasets": datasets,
            "transform": recipe.transform.model_dump(),
            "backbone": recipe.model.backbone if counts_tokens else "",
            "seed": recipe.run.seed,
        },
        inputs=raw.fingerprints(),
        code_of=("qzhou.transform.pipeline",),
    )
    return Run.open(recipe).stage(stage, partial(_work, recipe, raw, texts))


def _work(recipe: Recipe, raw: RawInputs, texts: Mapping[str, Iterable[str]], folder: Folder) -> dict[str, int]:
    layout = make_layout(recipe, folder, raw.files, raw.readers, raw.merged)
    _say_what_was_seen(raw)
    with session(resources_for(recipe, "transform")):
        for tasks in layout.shuffle_phases:
            _each("shuffle", layout, _named(tasks), run_shuffle_task)
        _each("convert", layout, _named(layout.shards), convert_shard)
        if layout.finds_duplicates:
            buckets = {str(bucket): bucket for bucket in range(layout.buckets)}
            _each("compare", layout, buckets, compare_bucket)
        index = _index(layout, texts) if layout.compares_with_evaluation else None
        if index is not None:
            index.write(folder / NGRAMS.removeprefix(f"{TRANSFORM}/"))  # what an LLM writes is compared, too
        shared = ray.put(index)  # one copy a node, for all tasks
        if layout.has_contamination_pass:
            _each("contamination", layout, _named(layout.shards), partial(_check, shared))
        _write(layout, shared)
    counts = {dataset.name: _counts(layout, dataset) for dataset in recipe.datasets}
    overlaps = _overlaps(layout) if index else {}
    encodings = {dataset.name: raw.encodings(dataset.name) for dataset in recipe.datasets}
    report.write_report(folder, recipe, counts, encodings, overlaps, index.kept_of if index else 1)
    outputs = Counter({f"{task} examples": 0 for task in TASKS})
    for dataset in recipe.datasets:
        own = counts[dataset.name]
        line = report.summary_line(dataset, own, encodings[dataset.name])
        rows = {"read": own.read, **own.written, "dropped": own.dropped}
        log_event(line, "dataset_done", dataset=dataset.name, rows=rows)
        report.warn_of_losses(dataset, own, recipe.transform.max_chars)
        outputs[f"{dataset.task} examples"] += own.written["examples"]
        outputs["held-out examples"] += own.written["held_out"]
    report.refuse_bad_datasets(recipe, counts)
    report.warn_of_uniform(recipe, folder)
    layout.work.delete()
    return {**outputs, "dropped rows": sum(own.dropped_rows for own in counts.values())}


def _say_what_was_seen(raw: RawInputs) -> None:
    """What the first rows have decided."""
    for name in sorted(raw.merged):
        line = (
            f"transform: {name}: rows with the same query and positives become one example with all their negatives"
        )
        log_event(line, "rows_are_merged", dataset=name)
    for name, files in sorted(raw.without_negatives.items()):
        where = f"{files[0]}{f' and {len(files) - 1} others' if len(files) > 1 else ''}"
        line = (
            f"transform: {name}: the first rows of {where} have no negatives (columns.negative); mining finds some"
        )
        log_event(line, "no_negatives", dataset=name)


def _named(items: Iterable[Shard | ShuffleTask]) -> dict[str, Shard | ShuffleTask]:
    return {item.name: item for item in items}


def _each(step: str, layout: Layout, items: Mapping[str, Any], work: Callable[..., Any]) -> None:
    """Do a step's work on every item that is not done, one Ray Data task an item; ``items`` are by name."""
    finished = layout.finished(step)
    waiting = {name: item for name, item in items.items() if name not in finished}
    if not waiting:
        return
    packed = [{"name": name, "item": ray.cloudpickle.dumps(item)} for name, item in waiting.items()]
    done = ray.data.from_items(packed, override_num_blocks=len(packed)).map_batches(
        _Task(step, work, layout),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=layout.recipe.cluster.transform.max_workers),
        **resources_for(layout.recipe, "transform").options,
    )
    with progress(f"transform: {step}", total=len(waiting), unit="shards") as bar:
        for row in done.iter_rows():
            if row["error"]:
                raise from_json(row["error"])
            bar.advance(1, rows={row["dataset"]: row["rows"]} if row["rows"] else NO_ROWS)


class _Task:
    """The function of a step, as Ray Data calls it; one that reads a shard's raw rows returns their number.

    Errors that are meant for people come back as data (:func:`qzhou.errors.to_json`).
    """

    def __init__(self, step: str, work: Callable[..., Any], layout: Layout) -> None:
        self._step, self._work, self._layout = step, work, layout.without_files()

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [self._done(row["name"], row["item"]) for row in batch.to_pylist()]
        return pa.Table.from_pylist(rows, schema=DONE)

    def _done(self, name: str, packed: bytes) -> dict[str, Any]:
        item = ray.cloudpickle.loads(packed)
        try:
            rows = self._work(self._layout, item) or 0
        except QzhouError as error:
            return {"error": to_json(error), "rows": 0, "dataset": ""}
        self._layout.mark_done(self._step, name)
        return {"error": "", "rows": rows, "dataset": item.dataset if rows else ""}


def _index(layout: Layout, texts: Mapping[str, Iterable[str]]) -> Index:
    """The n-grams of what is held out, and of the mteb tasks that the recipe names."""
    builder = IndexBuilder(layout.recipe.transform.contamination)
    shards = [one for one in layout.shards if layout.dataset(one.dataset).eval_fraction]
    _each("index", layout, _named(shards), write_ngrams)
    for shard in shards:
        builder.add(shard.dataset, read_ngrams(layout, shard))
    for task, own in texts.items():
        builder.add_texts(task, own)
    return builder.index()


def _check(shared: Any, layout: Layout, shard: Shard) -> None:
    check_shard(layout, shard, ray.get(shared))


def _write(layout: Layout, shared: Any) -> None:
    limits = sample_limits(layout)

    def write(layout: Layout, shard: Shard) -> None:
        write_shard(layout, shard, limits.get(shard.dataset), ray.get(shared))

    _each("write", layout, _named(layout.shards), write)
    with_corpus = [one for one in layout.recipe.datasets if one.task == "retrieval" and one.rule != "qrels"]
    parts = [(one.name, part) for one in with_corpus for part in range(layout.partitions[one.name])]
    named = {f"{dataset}-{part}": (dataset, part) for dataset, part in parts}
    _each("corpora", layout, named, lambda layout, item: write_corpus(layout, *item))


def _counts(layout: Layout, dataset: Dataset) -> RowCounts:
    """What became of a dataset's rows, all of its shards together."""
    total = RowCounts(dataset.name)
    for shard in layout.shards_of(dataset.name):
        total.add(RowCounts.of(candidates_folder(layout, shard).read_json(SUMMARY)))
        total.add(RowCounts.of((layout.work / "written").read_json(f"{shard.name}.json")))
    for name in (layout.work / "cut" / dataset.name).files(".json"):
        total.cut += (layout.work / "cut" / dataset.name).read_json(name).get("texts", 0)
    return total


def _overlaps(layout: Layout) -> dict[str, Overlap]:
    found: dict[str, Overlap] = {}
    for shard in layout.shards:
        content = (layout.work / "overlaps").read_json(f"{shard.name}.json")
        found.setdefault(shard.dataset, Overlap(shard.dataset)).add(Overlap(**content))
    return found
