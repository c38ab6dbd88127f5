"""The transform stage on Ray Data: steps map functions over shards or buckets to files.

    shuffle        rows that belong together are brought together, where a rule needs it
    merge          what any of the steps has shuffled, where it would be read in too small pieces
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
import ray
import ray.cloudpickle

from qzhou.cluster.ray_data import PartSource, TableSink, stream, watched
from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import session
from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.data.overlap import Index, Overlap
from qzhou.data.records import TASKS, Manifest
from qzhou.data.storage import Folder
from qzhou.errors import DataError
from qzhou.run.files import NGRAMS, TRANSFORM
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import Progress, progress
from qzhou.transform.contamination.contamination_pass import check_shard, read_ngrams, sample_limits, write_ngrams
from qzhou.transform.contamination.index_builder import IndexBuilder
from qzhou.transform.conversion import ConvertRows, raw_rows, write_candidates
from qzhou.transform.deduplication.duplicates import compare_bucket
from qzhou.transform.layout import Layout, Shard, ShuffleTask, make_layout
from qzhou.transform.pieces import done_in, finished
from qzhou.transform.reading.discovery import RawInputs, find_inputs
from qzhou.transform.shuffling.merging import Merge, merged
from qzhou.transform.shuffling.shuffle import run_shuffle_task, shuffled
from qzhou.transform.writing import report
from qzhou.transform.writing.row_counts import RowCounts
from qzhou.transform.writing.shards import documents, selected_candidates, write_corpus, write_examples

Read = Callable[[Layout, Shard], Iterable[pa.Table]]
Change = Callable[[Layout], Callable[[pa.Table], Iterable[pa.Table]]]
Write = Callable[[Layout, Iterator[pa.Table]], None]
TaskTexts = Callable[[Sequence[str]], Mapping[str, Iterable[str]]]

# settings of a dataset that no row depends on
NO_PART_OF_A_ROW = {
    "instruction",
    "instruction_template",
    "symmetric",
    "query_prefix",
    "document_prefix",
    "license",
    "index",
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
    counts_tokens = any(one.max_tokens or one.chunk_tokens for one in recipe.datasets)
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
            for name, role in dict.fromkeys((task.dataset, task.role) for task in tasks):
                layout = _merged(layout, shuffled(name, role), layout.partitions[name])
        layout = _rows(layout, "convert", raw_rows, ConvertRows, write_candidates)
        if layout.finds_duplicates:
            layout = _merged(layout, "keys", layout.buckets, layout.piece_files(layout.shards, ".arrow"))
            buckets = {str(bucket): bucket for bucket in range(layout.buckets)}
            _each("compare", layout, buckets, compare_bucket)
            layout = _merged(layout, "duplicates", len(layout.shards))
        index = _index(layout, texts) if layout.compares_with_evaluation else None
        if index is not None:
            index.write(folder / NGRAMS.removeprefix(f"{TRANSFORM}/"))  # what an LLM writes is compared, too
        shared = ray.put(index)  # one copy a node, for all tasks
        if layout.has_contamination_pass:
            _each("contamination", layout, _named(layout.shards), partial(_check, shared))
        written = _write(layout, shared)
    layouts = {"convert": layout, "write": written}
    counts = {dataset.name: _counts(layouts, dataset) for dataset in recipe.datasets}
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
    for name, others in sorted(raw.no_documents.items()):
        held = ", ".join(f"{count} {ending}" for ending, count in others.most_common())
        line = f"transform: {name}: {others.total()} files are no documents and are left out: {held}"
        log_event(line, "no_documents", dataset=name, files=dict(others))
    for name, files in sorted(raw.without_negatives.items()):
        where = f"{files[0]}{f' and {len(files) - 1} others' if len(files) > 1 else ''}"
        line = (
            f"transform: {name}: the first rows of {where} have no negatives (columns.negative); mining finds some"
        )
        log_event(line, "no_negatives", dataset=name)


def _named(items: Iterable[Shard | ShuffleTask]) -> dict[str, Shard | ShuffleTask]:
    return {item.name: item for item in items}


def _rows(layout: Layout, step: str, read: Read, change: Change | None, write: Write) -> Layout:
    """A step that rows go through: what shards are read as, changed and written; where their pieces are then.

    Ray Data fuses it into one task a shard. Marks say which shards are done, and a killed
    run begins with the others.
    """
    marks = layout.marks(step)
    done = done_in(marks)
    whole = finished(done)
    waiting = [shard for shard in layout.shards if shard.number not in whole]
    for shard in waiting:  # what was half done would be cut otherwise now, perhaps
        for piece in done.pop(shard.number, ()):
            marks.remove(f"{piece.name}.json")
    common = layout.without_files()

    def look(bar: Progress) -> None:
        nonlocal done
        before, done = set(chain.from_iterable(done.values())), done_in(marks)
        new = set(chain.from_iterable(done.values())) - before
        rows = Counter[str]()
        for piece in new:
            rows[layout.shards[piece.shard].dataset] += piece.read
        if new:
            bar.advance(len({piece.shard for piece in new} & finished(done)), rows=+rows)

    _stream(
        step, layout, PartSource(waiting, read, common), change and change(common), partial(write, common), look
    )
    return replace(layout, pieces=done)


def _each(step: str, layout: Layout, items: Mapping[str, Any], work: Callable[..., Any]) -> None:
    """Do a step's work on every item that is not done, a task an item; ``items`` are by name."""
    marks = layout.marks(step)
    done = layout.finished(step)
    waiting = [one for one in items.items() if one[0] not in done]
    unseen = {name for name, _ in waiting}

    def look(bar: Progress) -> None:
        new = unseen & layout.finished(step)
        unseen.difference_update(new)
        if new:
            bar.advance(len(new))

    def read(layout: Layout, part: tuple[str, Any]) -> Iterator[pa.Table]:
        name, item = part
        work(layout, item)
        yield pa.table({"done": [name]})

    def write(tables: Iterator[pa.Table]) -> None:
        for table in tables:
            for name in table["done"].to_pylist():
                marks.write_json(f"{name}.json", {})

    _stream(step, layout, PartSource(waiting, read, layout.without_files()), None, write, look)


def _merged(layout: Layout, place: str, partitions: int, names: Sequence[str] | None = None) -> Layout:
    def each(step: str, tasks: Mapping[str, Merge], work: Callable[[Layout, Merge], None]) -> None:
        _each(step, layout, tasks, work)

    return merged(layout, place, partitions, each, names)


def _stream(
    step: str,
    layout: Layout,
    source: PartSource,
    change: Callable[[pa.Table], Iterable[pa.Table]] | None,
    write: Callable[[Iterator[pa.Table]], None],
    look: Callable[[Progress], None],
) -> None:
    """Run a step on Ray Data, and show what it has marked."""
    if not source.parts:
        return
    recipe = layout.recipe
    with progress(f"transform: {step}", total=len(source.parts), unit="shards") as bar:
        with watched(partial(look, bar)):
            stream(
                source,
                TableSink(write),
                through=change,
                options=resources_for(recipe, "transform").options,
                workers=recipe.cluster.transform.max_workers,
            )
        bar.advance(len(source.parts) - bar.done)  # shards without rows have no mark


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


def _write(layout: Layout, shared: Any) -> Layout:
    limits = ray.put(sample_limits(layout))  # once, and not with each shard

    def select(layout: Layout, shard: Shard) -> Iterator[pa.Table]:
        return selected_candidates(layout, ray.get(limits), shard)

    def write(layout: Layout, tables: Iterator[pa.Table]) -> None:
        write_examples(layout, ray.get(shared), tables)

    written = _rows(layout, "write", select, None, write)
    with_corpus = [one for one in layout.recipe.datasets if one.task == "retrieval" and one.rule != "qrels"]
    for dataset in with_corpus:
        files = written.piece_files(layout.shards_of(dataset.name), ".arrow")
        written = _merged(written, documents(dataset.name), layout.partitions[dataset.name], files)
    parts = [(one.name, part) for one in with_corpus for part in range(layout.partitions[one.name])]
    named = {f"{dataset}-{part}": (dataset, part) for dataset, part in parts}
    _each("corpora", written, named, lambda layout, item: write_corpus(layout, *item))
    return written


def _counts(layouts: Mapping[str, Layout], dataset: Dataset) -> RowCounts:
    """What became of a dataset's rows, all of its shards together; ``layouts`` by step."""
    total = RowCounts(dataset.name)
    for step, layout in layouts.items():
        for shard in layout.shards_of(dataset.name):
            for piece in layout.pieces.get(shard.number, ()):
                total.add(RowCounts.of(layout.marks(step).read_json(f"{piece.name}.json")))
    for name in (layout.work / "cut" / dataset.name).files(".json"):
        total.cut += (layout.work / "cut" / dataset.name).read_json(name).get("texts", 0)
    return total


def _overlaps(layout: Layout) -> dict[str, Overlap]:
    found: dict[str, Overlap] = {}
    folder = layout.work / "overlaps"
    for name in folder.files(".json"):
        one = Overlap(**folder.read_json(name))
        found.setdefault(one.dataset, Overlap(one.dataset)).add(one)
    return found
