"""The order of work: longest first; a worker keeps its model while that has work left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qzhou.evaluation.judge.model_specs import BM25, ModelSpec
from qzhou.evaluation.judge.task_scores import EvalTask

HEALTH_CHARS = 120_000  # about as many as the texts of the embedding health have
BM25_COST = 0.05  # of an encoder's time

Method = Literal["encode", "score", "embedding_health"]


@dataclass(frozen=True, slots=True)
class Work:
    """One call of a method of :class:`~qzhou.evaluation.judge.evaluator.Evaluator`.

    Attributes:
        start: The first document, where a part of a corpus is encoded.
        count: The number of documents.
    """

    method: Method
    model: ModelSpec
    task: EvalTask
    start: int = 0
    count: int = 0

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the method is called with."""
        part = (self.start, self.count) if self.method == "encode" else ()
        return (self.model, self.task, *part)

    @property
    def cost(self) -> float:
        """How long it takes beside other work, in characters that an encoder reads."""
        if self.method == "embedding_health":
            return HEALTH_CHARS
        if self.method == "encode":
            return self.task.chars * self.count / max(1, self.task.documents)
        return self.task.chars * (BM25_COST if self.model.name == BM25 else 1.0)

    def __str__(self) -> str:
        what = f"{self.model.name} on {self.task.name}"
        if self.method == "encode":
            return f"{what}, documents from {self.start:,}"
        return f"{what}, embedding health" if self.method == "embedding_health" else what


class WorkQueue:
    """All work of an evaluation.

    Several workers encode the parts of a corpus above ``split_documents`` before its task
    is scored.

    Args:
        models: The models to score.
        tasks: The tasks on which they are scored.
        split_documents: How many documents one worker encodes at a time.
    """

    def __init__(self, models: Sequence[ModelSpec], tasks: Sequence[EvalTask], split_documents: int) -> None:
        self._ready: list[Work] = []
        # (model, task) -> the scoring that waits, and how many parts of its corpus are missing
        self._waiting: dict[tuple[str, str], Work] = {}
        self._missing_parts: dict[tuple[str, str], int] = {}
        self._model_of_worker: dict[int, str] = {}
        for model in models:
            for task in tasks:
                if task.type == "Retrieval" or model.name != BM25:
                    self._add(model, task, split_documents)
            if tasks and model.name != BM25:
                self._ready.append(Work("embedding_health", model, min(tasks, key=_health_order)))
        self._ready.sort(key=lambda work: -work.cost)
        self._total = len(self._ready) + len(self._waiting)

    def __len__(self) -> int:
        return self._total

    def __bool__(self) -> bool:
        return bool(self._ready or self._waiting)

    def take(self, worker: object) -> Work | None:
        """The next work for a worker; None where all that is left waits for other work."""
        if not self._ready:
            return None
        model = self._model_of_worker.get(id(worker))
        own = next((work for work in self._ready if work.model.name == model), None)
        work = own or self._longest_of_busiest_model()
        self._ready.remove(work)
        self._model_of_worker[id(worker)] = work.model.name
        return work

    def finished(self, work: Work) -> None:
        """Release the scoring that waited for this work."""
        if work.method != "encode":
            return
        key = work.model.name, work.task.name
        self._missing_parts[key] -= 1
        if not self._missing_parts[key]:
            self._ready.insert(0, self._waiting.pop(key))

    def _longest_of_busiest_model(self) -> Work:
        """Longest work of the model with most left, models without a worker first."""
        loaded = set(self._model_of_worker.values())
        left: dict[str, float] = {}
        for work in self._ready:
            left[work.model.name] = left.get(work.model.name, 0.0) + work.cost
        model = max(left, key=lambda name: (name not in loaded, left[name]))
        return next(work for work in self._ready if work.model.name == model)

    def _add(self, model: ModelSpec, task: EvalTask, split_documents: int) -> None:
        score = Work("score", model, task)
        if task.type != "Retrieval" or model.name == BM25 or task.documents <= split_documents:
            self._ready.append(score)
            return
        key = model.name, task.name
        starts = range(0, task.documents, split_documents)
        self._waiting[key], self._missing_parts[key] = score, len(starts)
        for start in starts:
            count = min(split_documents, task.documents - start)
            self._ready.append(Work("encode", model, task, start, count))


def _health_order(task: EvalTask) -> tuple[bool, bool, int]:
    """Own data before mteb's, then the smallest task that has enough text."""
    return not task.dataset, task.chars < HEALTH_CHARS, task.chars
