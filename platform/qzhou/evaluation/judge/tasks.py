"""The tasks on which a recipe's models are scored, their sizes, and how each is built."""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qzhou.config.dataset import Dataset, TaskKind
from qzhou.config.recipe import Recipe
from qzhou.data.records import EXAMPLE_TYPES, Document, Qrel, Query
from qzhou.data.storage import Folder, read_records
from qzhou.errors import DataError
from qzhou.evaluation.comparison import PUBLISHED
from qzhou.evaluation.judge import local_tasks
from qzhou.evaluation.judge.mteb_tasks import corpora, named_tasks, parts_of, same_task, texts_of
from qzhou.evaluation.judge.task_scores import EvalTask
from qzhou.run.files import HELD_OUT_DOCUMENTS, TRANSFORM, held_out_places

SETTING = "evaluation.tasks"
BUILDERS: Mapping[TaskKind, Callable[..., Any]] = {
    "sts": local_tasks.sts_task,
    "pair_classification": local_tasks.pair_classification_task,
    "classification": local_tasks.classification_task,
    "clustering": local_tasks.clustering_task,
}
SYNTHETIC = "synthetic"  # ends the names of tasks whose queries are no people's
UNKNOWN_CHARS = 10_000_000  # assumed for a task of mteb that does not declare its size


def eval_tasks(recipe: Recipe, run_folder: Folder) -> tuple[list[EvalTask], dict[str, str]]:
    """All tasks, longest first; and for each task that cannot be made the reason.

    Raises:
        DataError: The recipe names a task that mteb does not have.
    """
    found: list[EvalTask] = []
    refused: dict[str, str] = {}
    for dataset in recipe.datasets:
        examples = list(_held_out(dataset, run_folder))
        for kind in dataset.kinds:
            reason = local_tasks.why_no_task(examples, kind)
            if not reason:
                found.append(_sized_local_task(dataset, kind, recipe, run_folder))
            elif dataset.eval_fraction:
                refused[task_name(dataset, kind)] = reason
    groups = named_tasks(recipe.evaluation.tasks, setting=SETTING)
    found += _sized_mteb_tasks(groups, recipe)
    known = {task.name for task in found}
    refused |= {name: reason for name, reason in _private_tasks(groups).items() if name not in known}
    return sorted(found, key=lambda task: -task.chars), refused


def task_name(dataset: Dataset, kind: TaskKind) -> str:
    """The name of the dataset, for its further kinds of tasks followed by the kind, and "synthetic" where it is."""
    kinds = [] if kind == dataset.kinds[0] else [kind]
    return "_".join([dataset.name, *kinds, *([SYNTHETIC] if dataset.has_written_queries else [])])


def build_task(task: EvalTask, recipe: Recipe, run_folder: Folder) -> Any:
    """The task as an object of mteb; a task of mteb's own has no data yet."""
    if task.dataset:
        return _local_task(recipe.dataset(task.dataset), task.kind, recipe, run_folder)
    return same_task(task.name, task.subsets, task.splits)


def check_tasks(recipe: Recipe) -> None:
    """Refuse tasks that mteb does not have, or that two benchmarks judge on other data; nothing is loaded.

    Raises:
        DataError: The recipe names such a task.
    """
    list(_sized_mteb_tasks(named_tasks(recipe.evaluation.tasks, setting=SETTING), recipe))


def query_instructions(task: EvalTask, recipe: Recipe, run_folder: Folder) -> dict[str, str]:
    """Query -> its own instruction; of queries with the same text the first one's, as :func:`build_task` keeps them."""
    dataset = recipe.dataset(task.dataset) if task.dataset else None
    if dataset is None or "instruction" not in dataset.columns:
        return {}
    found = {one.query: one.instruction for one in reversed(list(_held_out(dataset, run_folder)))}
    return {query: instruction for query, instruction in found.items() if instruction}


def _sized_local_task(dataset: Dataset, kind: TaskKind, recipe: Recipe, run_folder: Folder) -> EvalTask:
    trained = {name for one in recipe.trained_datasets for name in (one.name, *one.train_split_of)}
    task = _local_task(dataset, kind, recipe, run_folder)
    chars = sum(map(len, texts_of(task))) + sum(len(row["text"]) for corpus in corpora(task) for row in corpus)
    return EvalTask(
        name=task.metadata.name,
        type=task.metadata.type,
        dataset=dataset.name,
        kind=kind,
        chars=chars,
        documents=sum(map(len, corpora(task))),
        seen=dataset.name in trained,
    )


def _private_tasks(groups: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Tasks of benchmarks whose data nobody but mteb has, and why they are not judged."""
    return {
        task.metadata.name: f"its data is private; who has access names it in {SETTING} besides {name}"
        for name, group in groups.items()
        for task in group
        if not task.metadata.is_public
    }


def _sized_mteb_tasks(groups: Mapping[str, Sequence[Any]], recipe: Recipe) -> Iterator[EvalTask]:
    found: dict[str, EvalTask] = {}
    named_by: dict[str, str] = {}
    published = _published_tasks() if groups else set()
    trained = {name for one in recipe.trained_datasets for name in one.train_split_of}
    for name, group in groups.items():
        benchmark = name if len(group) > 1 else ""
        public = [task for task in group if task.metadata.is_public or not benchmark]
        if len(public) < len(group):
            benchmark = f"{name}, its {len(public)} public tasks"
        for task in public:
            for part in parts_of(task):
                one = _mteb_task(part)
                known = found.get(one.name, one)
                if (known.subsets, known.splits) != (one.subsets, one.splits):
                    raise DataError(
                        f"{SETTING}: '{one.name}' is judged on {_data_of(known)} for {named_by[one.name]}, and on "
                        f"{_data_of(one)} for {name}. A run has one score for it: judge the other in a run of its own."
                    )
                named_by[one.name] = name
                if part is task:
                    known = replace(known, benchmarks=(*known.benchmarks, *([benchmark] if benchmark else [])))
                else:
                    known = replace(known, aggregates=(*known.aggregates, (task.metadata.name, benchmark)))
                found[one.name] = replace(
                    known,
                    seen=bool(trained & {one.name, *(aggregate for aggregate, _ in known.aggregates)}),
                    is_published=(one.name, one.subsets, one.splits) in published,
                )
    yield from found.values()


def _mteb_task(task: Any) -> EvalTask:
    chars, documents = _declared_size(task)
    return EvalTask(
        name=task.metadata.name,
        type=task.metadata.type,
        dataset="",
        kind="retrieval",
        chars=chars,
        documents=documents,
        seen=False,
        subsets=tuple(task.hf_subsets),
        splits=tuple(task.eval_splits),
    )


def _data_of(task: EvalTask) -> str:
    return f"{', '.join(task.subsets)} ({', '.join(task.splits)})"


def _published_tasks() -> set[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Name, subsets and splits of the tasks for which there are published scores."""
    groups = named_tasks(list(tomllib.loads(PUBLISHED.read_text("utf-8"))), setting=SETTING).values()
    return {
        (task.metadata.name, tuple(task.hf_subsets), tuple(task.eval_splits)) for group in groups for task in group
    }


def _declared_size(task: Any) -> tuple[int, int]:
    """Characters and documents of a task, as mteb declares them before loading its data."""
    chars = documents = 0
    for split in (task.metadata.descriptive_stats or {}).values():
        if isinstance(split, dict):
            chars += int(split.get("number_of_characters") or 0)
            if split.get("documents_text_statistics"):
                documents += int(split.get("num_documents") or 0)
    return chars or UNKNOWN_CHARS, documents


def _held_out(dataset: Dataset, run_folder: Folder) -> Iterator[Any]:
    for place in held_out_places(run_folder, dataset.task, dataset.name):
        yield from read_records(place, EXAMPLE_TYPES[dataset.task])


def _others(dataset: Dataset, run_folder: Folder) -> Iterator[str]:
    """The documents beside those that held-out queries ask for, of a dataset that is a collection of documents."""
    if dataset.has_written_queries:
        for folder in (f"{TRANSFORM}/corpora", HELD_OUT_DOCUMENTS):
            for one in read_records(run_folder / folder / dataset.name, Document):
                yield one.text


def _local_task(dataset: Dataset, kind: TaskKind, recipe: Recipe, run_folder: Folder) -> Any:
    settings, seed = recipe.evaluation, recipe.run.seed
    name, examples = task_name(dataset, kind), list(_held_out(dataset, run_folder))
    if kind == "reranking":
        return local_tasks.reranking_task(name, examples, max_queries=settings.max_queries, seed=seed)
    if kind != "retrieval":
        return BUILDERS[kind](name, examples, max_rows=settings.max_rows, seed=seed)
    sizes = {"max_queries": settings.max_queries, "max_documents": settings.max_documents}
    if dataset.rule != "qrels":
        return local_tasks.retrieval_task(name, examples, _others(dataset, run_folder), **sizes, seed=seed)
    place = run_folder / TRANSFORM
    documents = read_records(place / "corpora" / dataset.name, Document)
    queries = list(read_records(place / "queries" / dataset.name, Query))
    qrels = read_records(place / "qrels" / dataset.name, Qrel)
    return local_tasks.qrels_task(name, (documents, queries, qrels), **sizes, seed=seed)
