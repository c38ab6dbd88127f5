"""The texts of mteb tasks, for the search of training data that shows what they ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qzhou.errors import DataError, first_line
from qzhou.evaluation.named import named_tasks

NOT_TEXTS = {"id", "_id", "query-id", "corpus-id", "label", "labels", "lang", "language"}


def task_texts(names: Sequence[str]) -> dict[str, Iterable[str]]:
    """Task -> its texts, loaded when they are asked for.

    Args:
        names: mteb tasks or benchmarks, e.g. ``SciFact`` or ``MTEB(eng, v2)``.

    Raises:
        DataError: There is no such task, or its data cannot be loaded.
    """
    found = named_tasks(names, setting="transform.contamination.tasks")
    return {task.metadata.name: _loaded(task) for tasks in found.values() for task in tasks}


def texts_of(task: Any) -> Iterator[str]:
    """What a loaded task judges: queries and relevant documents of retrieval, every text of the others.

    Other documents of a corpus are distractors: that one was trained on shows nothing.
    """
    if getattr(task, "dataset", None) is None:
        return
    for subset in task.dataset.values():
        splits = subset.values() if isinstance(subset, Mapping) else [subset]
        for split in splits:
            yield from (
                _of_retrieval(split)
                if isinstance(split, Mapping) and "corpus" in split
                else _strings(split)
            )


def _loaded(task: Any) -> Iterator[str]:
    if not getattr(task, "data_loaded", False):
        try:
            task.load_data()
        except Exception as error:  # each task loads in its own way
            raise DataError(
                f"transform.contamination.tasks: the data of '{task.metadata.name}' cannot be loaded: "
                f"{first_line(error)}. Run where a hub can be reached (HF_ENDPOINT, HF_TOKEN), or take the task out."
            ) from None
    yield from texts_of(task)


def _of_retrieval(split: Mapping[str, Any]) -> Iterator[str]:
    relevant = {
        one
        for judged in split["relevant_docs"].values()
        for one, grade in judged.items()
        if grade > 0
    }
    yield from (row["text"] for row in split["queries"] if isinstance(row["text"], str))
    for row in split["corpus"]:
        if row["id"] in relevant:
            yield f"{row.get('title') or ''} {row['text']}".strip()


def _strings(rows: Iterable[Any]) -> Iterator[str]:
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
