"""The transform stage on Ray Data: every step maps a function over shards, pieces or buckets, and leaves files.

    shuffle    rows that belong together meet (only where a rule asks for it)
    convert    rows become candidates by their dataset's rule; keys and drops are written
    judge      equal keys meet: duplicates, near-duplicates, texts that are held out
    survey     training texts are compared with the evaluation's; the sample is numbered
    write      examples, held-out examples, drops
    corpora    distinct documents

Nothing but file names and counts passes through the driver, and what a killed run had finished is not done again.
"""

from __future__ import annotations

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
from qzhou.data.records import TASKS, Manifest
from qzhou.data.storage import Folder
from qzhou.errors import DataError, QzhouError, from_json, to_json
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import NO_ROWS, progress
from qzhou.transform.contamination import Index, IndexBuilder, Overlap
from qzhou.transform.convert import candidates_folder, convert_shard, is_converted
from qzhou.transform.judging import (
    index_shard,
    indexed,
    is_indexed,
    is_judged,
    is_surveyed,
    judge_bucket,
    sample_limits,
    survey_shard,
)
from qzhou.transform.plan import Plan, Shard, make_plan
from qzhou.transform.raw import RawData, raw_data
from qzhou.transform.report import refuse_bad_datasets, summary_line, warn_of_uniform, write_report
from qzhou.transform.shuffle import is_done, shuffle_piece
from qzhou.transform.tally import Tally
from qzhou.transform.writing import (
    is_corpus_written,
    is_written,
    write_corpus,
    write_shard,
    written,
)

DONE = pa.schema({"error": pa.string(), "rows": pa.int64(), "dataset": pa.string()})
TaskTexts = Callable[[Sequence[str]], Mapping[str, Iterable[str]]]


def transform(recipe: Recipe, task_texts: TaskTexts | None = None) -> Manifest:
    """Turn the raw datasets of a recipe into examples, corpora and held-out examples.

    Writes ``examples/<task>/<dataset>``, ``held_out/<task>/<dataset>``, ``corpora/<dataset>``, for qrels datasets
    ``queries/<dataset>`` and ``qrels/<dataset>``, ``dropped``, ``report.json`` and ``lengths.svg`` into the run's
    folder ``transform``.

    Args:
        recipe: Of the run.
        task_texts: Gives the texts of mteb tasks by name, for ``transform.contamination.tasks``.

    Raises:
        DataError: A file, package or column is missing, a dataset is empty, or too few of its rows survive. What was
            dropped is written even then.
        RecipeError: ``columns`` names a field that the dataset's rule does not have.
    """
    asked = (
        recipe.transform.contamination.tasks
        if recipe.transform.contamination.action != "off"
        else ()
    )
    if asked and task_texts is None:
        raise DataError(
            "transform.contamination.tasks needs mteb; run jobs/transform.py or jobs/pipeline.py"
        )
    texts = task_texts(asked) if asked and task_texts else {}
    raw = raw_data(recipe)
    for module in raw.modules.values():
        ray.cloudpickle.register_pickle_by_value(module)  # it need not be installed on workers
    return Run.open(recipe).stage(
        Stage(
            name="transform",
            settings={
                "datasets": [
                    dataset.model_dump(exclude={"instruction", "symmetric"})
                    for dataset in recipe.datasets
                ],
                "transform": recipe.transform.model_dump(),
                "backbone": recipe.model.backbone
                if any(one.max_tokens for one in recipe.datasets)
                else "",
                "seed": recipe.run.seed,
            },
            inputs=raw.fingerprints(recipe),
            code_of=("qzhou.transform.pipeline",),
        ),
        partial(_work, recipe, raw, texts),
    )


def _work(
    recipe: Recipe, raw: RawData, texts: Mapping[str, Iterable[str]], folder: Folder
) -> dict[str, int]:
    plan = make_plan(recipe, folder, raw.inputs, raw.sources, raw.own)
    with session(resources_for(recipe, "transform")):
        for pieces in plan.rounds:
            _each("shuffle", plan, pieces, shuffle_piece, is_done)
        _each("convert", plan, plan.shards, convert_shard, is_converted)
        if plan.is_judged:
            _each("judge", plan, range(plan.buckets), judge_bucket, is_judged)
        index = _index(plan, texts) if plan.is_compared else None
        shared = ray.put(index)  # one copy a node, whichever task reads it
        if plan.is_surveyed:
            _survey(plan, shared)
        _write(plan, shared)
    counts = {dataset.name: _counts(plan, dataset) for dataset in recipe.datasets}
    overlaps = _overlaps(plan) if index else {}
    encodings = {dataset.name: raw.encodings(dataset.name) for dataset in recipe.datasets}
    write_report(folder, recipe, counts, encodings, overlaps, index.kept_of if index else 1)
    for dataset in recipe.datasets:
        tally = counts[dataset.name]
        counted = {"read": tally.read, **tally.written, "dropped": tally.dropped}
        line = summary_line(dataset, tally, encodings[dataset.name])
        log_event(line, "dataset_done", dataset=dataset.name, rows=counted)
    refuse_bad_datasets(recipe, counts)
    warn_of_uniform(recipe, folder)
    plan.work.delete()
    outputs = Counter({f"{task} examples": 0 for task in TASKS})
    for dataset in recipe.datasets:
        tally = counts[dataset.name]
        outputs.update(
            {
                f"{dataset.task} examples": tally.written["examples"],
                "held-out examples": tally.written["held_out"],
            }
        )
    return {**outputs, "dropped rows": sum(tally.dropped_rows for tally in counts.values())}


def _each(
    step: str,
    plan: Plan,
    items: Iterable[Any],
    work: Callable[..., Any],
    is_finished: Callable[..., bool],
) -> None:
    """Do a step's work on every item that is not finished, one Ray Data task an item."""
    waiting = [item for item in items if not is_finished(plan, item)]
    if not waiting:
        return
    packed = [{"item": ray.cloudpickle.dumps(item)} for item in waiting]
    made = ray.data.from_items(packed, override_num_blocks=len(packed)).map_batches(
        _Task(work, plan),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=plan.recipe.cluster.transform.max_workers),
        **resources_for(plan.recipe, "transform").options,
    )

    with progress(f"transform: {step}", total=len(waiting), unit="shards") as bar:
        for row in made.iter_rows():
            if row["error"]:
                raise from_json(row["error"])
            bar.advance(1, rows={row["dataset"]: row["rows"]} if row["rows"] else NO_ROWS)


class _Task:
    """A step's function as Ray Data calls it: one that goes through a shard's rows gives their number.

    What is meant for people comes back as data (:func:`qzhou.errors.to_json`).
    """

    def __init__(self, work: Callable[..., Any], plan: Plan) -> None:
        self._work, self._plan = work, plan

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist(
            [self._done(item) for item in batch["item"].to_pylist()], schema=DONE
        )

    def _done(self, packed: bytes) -> dict[str, Any]:
        item = ray.cloudpickle.loads(packed)
        try:
            rows = self._work(self._plan, item) or 0
        except QzhouError as error:
            return {"error": to_json(error), "rows": 0, "dataset": ""}
        return {"error": "", "rows": rows, "dataset": item.dataset if rows else ""}


def _index(plan: Plan, texts: Mapping[str, Iterable[str]]) -> Index:
    """The n-grams of what is held out, and of the mteb tasks that the recipe names."""
    builder = IndexBuilder(plan.recipe.transform.contamination)
    with_held_out = [shard for shard in plan.shards if plan.dataset(shard.dataset).eval_fraction]
    _each("index", plan, with_held_out, index_shard, is_indexed)
    for shard in with_held_out:
        builder.add(shard.dataset, indexed(plan, shard))
    for task, own in texts.items():
        builder.add_texts(task, own)
    return builder.index()


def _survey(plan: Plan, shared: Any) -> None:
    def survey(plan: Plan, shard: Shard) -> None:
        survey_shard(plan, shard, ray.get(shared))

    _each("survey", plan, plan.shards, survey, is_surveyed)


def _write(plan: Plan, shared: Any) -> None:
    limits = sample_limits(plan)

    def write(plan: Plan, shard: Shard) -> None:
        write_shard(plan, shard, limits.get(shard.dataset), ray.get(shared))

    def corpus(plan: Plan, item: tuple[str, int]) -> None:
        write_corpus(plan, *item)

    def is_complete(plan: Plan, item: tuple[str, int]) -> bool:
        return is_corpus_written(plan, *item)

    _each("write", plan, plan.shards, write, is_written)
    collected = [
        one for one in plan.recipe.datasets if one.task == "retrieval" and one.rule != "qrels"
    ]
    parts = [(one.name, part) for one in collected for part in range(plan.partitions[one.name])]
    _each("corpora", plan, parts, corpus, is_complete)


def _counts(plan: Plan, dataset: Dataset) -> Tally:
    """What became of a dataset's rows, all of its shards together."""
    total = Tally(dataset.name)
    for shard in plan.shards_of(dataset.name):
        total.add(Tally.of(candidates_folder(plan, shard).read_json("summary.json")))
        total.add(written(plan, shard))
    return total


def _overlaps(plan: Plan) -> dict[str, Overlap]:
    found: dict[str, Overlap] = {}
    for shard in plan.shards:
        content = (plan.work / "overlaps").read_json(f"{shard.name}.json")
        found.setdefault(shard.dataset, Overlap(shard.dataset)).add(Overlap(**content))
    return found
