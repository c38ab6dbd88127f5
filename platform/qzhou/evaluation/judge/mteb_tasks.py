"""Tasks and benchmarks of mteb by name, and the texts of a task."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import mteb
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from qzhou.errors import DataError, QzhouError, first_line

NOT_TEXTS = {"id", "_id", "query-id", "corpus-id", "label", "labels", "lang", "language"}
CONTAMINATION_TASKS = "transform.contamination.tasks"


def named_tasks(names: Sequence[str], *, setting: str) -> dict[str, list[Any]]:
    """Name -> the tasks of that benchmark, or the task of that name; none of them loaded.

    Args:
        names: Tasks or benchmarks of mteb, e.g. ``SciFact`` or ``MTEB(eng, v2)``.
        setting: The recipe's setting that names them, for the message.

    Raises:
        DataError: mteb has no such task or benchmark.
    """
    return {name: _tasks(name, setting) for name in names}


def _tasks(name: str, setting: str) -> list[Any]:
    with suppress(KeyError, ValueError):
        return list(mteb.get_benchmark(name).tasks)
    with suppress(KeyError, ValueError):
        return [mteb.get_task(name)]
    raise DataError(
        f"{setting}: mteb knows no task and no benchmark '{name}'; see mteb.get_tasks() and mteb.get_benchmarks()."
    )


def parts_of(task: Any) -> list[Any]:
    """The tasks whose mean score is that of an aggregate task, CQADupstackRetrieval for instance; else the task alone.

    Raises:
        DataError: It aggregates its parts in a way of its own.
    """
    if not isinstance(task, AbsTaskAggregate):
        return [task]
    if type(task).task_results_to_scores is not AbsTaskAggregate.task_results_to_scores:
        raise DataError(
            f"the task '{task.metadata.name}' of mteb has its own way to make one score of its parts; name those: "
            f"{', '.join(part.metadata.name for part in task.tasks)}"
        )
    return list(task.tasks)


def same_task(name: str, subsets: Sequence[str], splits: Sequence[str]) -> Any:
    """A task of mteb by name, on some of its subsets and splits; new, without data."""
    return mteb.get_task(name, hf_subsets=list(subsets) or None, eval_splits=list(splits) or None)


def load(task: Any, *, setting: str) -> None:
    """Load the data of a task where that has not been done.

    Raises:
        DataError: The data cannot be loaded; names the setting.
    """
    if getattr(task, "data_loaded", False):
        return
    try:
        task.load_data()
    except QzhouError:
        raise
    # Every task of mteb loads with code of its own.
    except Exception as error:  # noqa: BLE001
        raise DataError(
            f"{setting}: the data of '{task.metadata.name}' cannot be loaded: {first_line(error)}. Run where a hub can "
            "be reached (HF_ENDPOINT, HF_TOKEN), or take the task out."
        ) from None


def task_texts(names: Sequence[str]) -> dict[str, Iterable[str]]:
    """Task -> its texts, for the contamination check of training data; each task is loaded when it is iterated.

    Raises:
        DataError: There is no such task, or its data cannot be loaded.
    """
    found = named_tasks(names, setting=CONTAMINATION_TASKS)
    tasks = [part for group in found.values() for task in group for part in parts_of(task)]
    return {task.metadata.name: _loaded_texts(task) for task in tasks}


def _loaded_texts(task: Any) -> Iterator[str]:
    load(task, setting=CONTAMINATION_TASKS)
    yield from texts_of(task)


def texts_of(task: Any) -> Iterator[str]:
    """The texts that a loaded task scores: queries and relevant documents of retrieval, all texts of other types.

    The other documents of a corpus are distractors: training on them gives nothing away.
    """
    if getattr(task, "dataset", None) is None:
        return
    for subset in task.dataset.values():
        for split in subset.values() if isinstance(subset, Mapping) else [subset]:
            if isinstance(split, Mapping) and "corpus" in split:
                yield from _retrieval_texts(split)
            else:
                yield from _row_texts(split)


def corpora(task: Any) -> Iterator[Any]:
    """The corpora of a loaded retrieval task, one for each subset and split."""
    for subset in (task.dataset or {}).values():
        for split in subset.values() if hasattr(subset, "values") else ():
            if isinstance(split, dict) and "corpus" in split:
                yield split["corpus"]


def corpus_texts(corpus: Iterable[Any]) -> list[str]:
    """Title and text of each document, joined as mteb hands them to an encoder."""
    return [f"{row.get('title') or ''} {row['text']}".strip() for row in corpus]


def _retrieval_texts(split: Mapping[str, Any]) -> Iterator[str]:
    qrels = split["relevant_docs"].values()
    relevant = {document for grades in qrels for document, grade in grades.items() if grade > 0}
    yield from (row["text"] for row in split["queries"] if isinstance(row["text"], str))
    yield from corpus_texts(row for row in split["corpus"] if row["id"] in relevant)


def _row_texts(rows: Iterable[Any]) -> Iterator[str]:
    for row in rows:
        for name, value in row.items():
            if name not in NOT_TEXTS:
                yield from _flat(value)


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
