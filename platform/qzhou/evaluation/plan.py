"""Which tasks judge a run, and how long each is going to take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qzhou.config.dataset import Dataset, TaskKind
from qzhou.config.recipe import Recipe
from qzhou.data.records import EXAMPLE_TYPES, Document, Qrel, Query
from qzhou.data.storage import Folder, read_records
from qzhou.evaluation import tasks as local
from qzhou.evaluation.messages import Planned
from qzhou.evaluation.named import named_tasks
from qzhou.evaluation.texts import texts_of

SETTING = "evaluation.tasks"
MAKERS: Mapping[TaskKind, Callable[..., Any]] = {
    "sts": local.sts_task,
    "pair_classification": local.pair_classification_task,
    "classification": local.classification_task,
    "clustering": local.clustering_task,
}
UNKNOWN_CHARS = 10_000_000  # of a task of mteb that does not say how much text it has


def planned(recipe: Recipe, run_folder: Folder) -> tuple[list[Planned], dict[str, str]]:
    """All tasks, longest first; and dataset -> why it makes none.

    Raises:
        DataError: The recipe names a task that mteb does not have.
    """
    found: list[Planned] = []
    refused: dict[str, str] = {}
    for dataset in recipe.datasets:
        examples = list(_held_out(dataset, run_folder))
        for kind in dataset.kinds:
            if reason := local.not_judgeable(examples, kind):
                refused |= {task_name(dataset, kind): reason} if dataset.eval_fraction else {}
            else:
                found.append(_local_plan(dataset, kind, recipe, run_folder))
    found += _named_plans(recipe)
    return sorted(found, key=lambda one: -one.chars), refused


def task_name(dataset: Dataset, kind: TaskKind) -> str:
    """The dataset's own name, and for its second kind both."""
    return dataset.name if kind == dataset.kinds[0] else f"{dataset.name}_{kind}"


def built(plan: Planned, recipe: Recipe, run_folder: Folder) -> Any:
    """The task itself; one of mteb's has no data yet."""
    if plan.dataset:
        return _local_task(recipe.dataset(plan.dataset), plan.kind, recipe, run_folder)
    (task,) = next(iter(named_tasks([plan.name], setting=SETTING).values()))
    return task


def corpora(task: Any) -> Iterator[Any]:
    """The corpora of a loaded retrieval task, one for each subset and split."""
    for subset in (task.dataset or {}).values():
        for split in subset.values() if hasattr(subset, "values") else ():
            if isinstance(split, dict) and "corpus" in split:
                yield split["corpus"]


def _local_plan(dataset: Dataset, kind: TaskKind, recipe: Recipe, run_folder: Folder) -> Planned:
    trained = {name for one in recipe.trained_datasets for name in (one.name, *one.train_split_of)}
    task = _local_task(dataset, kind, recipe, run_folder)
    return Planned(
        name=task.metadata.name,
        type=task.metadata.type,
        dataset=dataset.name,
        kind=kind,
        chars=sum(map(len, texts_of(task)))
        + sum(len(row["text"]) for one in corpora(task) for row in one),
        documents=sum(map(len, corpora(task))),
        seen=dataset.name in trained,
    )


def _named_plans(recipe: Recipe) -> Iterator[Planned]:
    asked = named_tasks(recipe.evaluation.tasks, setting=SETTING)
    trained = {name for one in recipe.trained_datasets for name in one.train_split_of}
    tasks = {task.metadata.name: task for group in asked.values() for task in group}
    for name, task in tasks.items():
        chars, documents = _declared_size(task)
        yield Planned(
            name=name,
            type=task.metadata.type,
            dataset="",
            kind="retrieval",
            chars=chars,
            documents=documents,
            seen=name in trained,
            benchmarks=tuple(
                one
                for one, group in asked.items()
                if len(group) > 1 and name in {each.metadata.name for each in group}
            ),
        )


def _declared_size(task: Any) -> tuple[int, int]:
    """Characters and documents, as mteb ships them with a task, before its data is loaded."""
    chars = documents = 0
    for split in (task.metadata.descriptive_stats or {}).values():
        if isinstance(split, dict):
            chars += int(split.get("number_of_characters") or 0)
            documents += int(
                (split.get("documents_text_statistics") and split.get("num_documents")) or 0
            )
    return chars or UNKNOWN_CHARS, documents


def _held_out(dataset: Dataset, run_folder: Folder) -> Iterator[Any]:
    return read_records(
        run_folder / "transform" / "held_out" / dataset.task / dataset.name,
        EXAMPLE_TYPES[dataset.task],
    )


def _local_task(dataset: Dataset, kind: TaskKind, recipe: Recipe, run_folder: Folder) -> Any:
    settings, seed = recipe.evaluation, recipe.run.seed
    most = {"max_queries": settings.max_queries, "max_documents": settings.max_documents}
    examples: Sequence[Any] = list(_held_out(dataset, run_folder))
    if kind != "retrieval":
        name = task_name(dataset, kind)
        if kind == "reranking":
            return local.reranking_task(name, examples, max_queries=settings.max_queries, seed=seed)
        return MAKERS[kind](name, examples, max_rows=settings.max_rows, seed=seed)
    if dataset.rule == "qrels":
        place = run_folder / "transform"
        documents = read_records(place / "corpora" / dataset.name, Document)
        queries = list(read_records(place / "queries" / dataset.name, Query))
        qrels = read_records(place / "qrels" / dataset.name, Qrel)
        return local.judged_task(dataset.name, documents, queries, qrels, **most, seed=seed)
    return local.retrieval_task(dataset.name, examples, **most, seed=seed)
