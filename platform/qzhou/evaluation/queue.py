"""Who does what next: the longest work first, and a worker keeps its model while there is work for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qzhou.evaluation.candidates import BM25
from qzhou.evaluation.messages import Candidate, Planned

HEALTH_CHARS = 120_000  # what encoding some texts for their statistics costs
LEXICAL = 0.05  # of the time of an encoder


@dataclass(frozen=True, slots=True)
class Work:
    """One call of a worker: ``encode`` a part of a corpus, ``judge``, or ``health``."""

    method: str
    candidate: Candidate
    plan: Planned
    start: int = 0
    count: int = 0

    @property
    def arguments(self) -> tuple[Any, ...]:
        part = (self.start, self.count) if self.method == "encode" else ()
        return (self.candidate, self.plan, *part)

    @property
    def chars(self) -> float:
        """How long it takes, beside other work."""
        if self.method == "health":
            return HEALTH_CHARS
        if self.method == "encode":
            return self.plan.chars * self.count / max(1, self.plan.documents)
        return self.plan.chars * (LEXICAL if self.candidate.name == BM25 else 1.0)

    def __str__(self) -> str:
        part = {"encode": f" documents {self.start:,} on", "health": ", spread of its vectors"}.get(
            self.method, ""
        )
        return f"{self.candidate.name} on {self.plan.name}{part}"


class Queue:
    """All work of the stage.

    A corpus above ``split_documents`` is encoded in parts, by whoever is free, before its task is judged.

    Args:
        models: To be judged.
        plans: On these tasks.
        split_documents: That one worker encodes at a time.
    """

    def __init__(
        self, models: Sequence[Candidate], plans: Sequence[Planned], split_documents: int
    ) -> None:
        self._waiting: dict[tuple[str, str], Work] = {}  # until its parts are there
        self._parts: dict[tuple[str, str], int] = {}
        self._ready: list[Work] = []
        self._last: dict[int, str] = {}
        for candidate in models:
            for plan in plans:
                self._add(candidate, plan, split_documents)
            if plans and candidate.name != BM25:
                some = min(
                    plans,
                    key=lambda plan: (not plan.dataset, plan.chars < HEALTH_CHARS, plan.chars),
                )
                self._ready.append(Work("health", candidate, some))
        self._ready.sort(key=lambda work: -work.chars)
        self._total = len(self._ready) + len(self._waiting)

    def __len__(self) -> int:
        return self._total

    def __bool__(self) -> bool:
        return bool(self._ready or self._waiting)

    def take(self, worker: object) -> Work | None:
        """The next work for a worker; None where everything that is left waits for others."""
        if not self._ready:
            return None
        model = self._last.get(id(worker))
        mine = [work for work in self._ready if work.candidate.name == model]
        work = mine[0] if mine else self._most_left()
        self._ready.remove(work)
        self._last[id(worker)] = work.candidate.name
        return work

    def finished(self, work: Work) -> None:
        """Make ready what waited for it."""
        if work.method != "encode":
            return
        key = work.candidate.name, work.plan.name
        self._parts[key] -= 1
        if not self._parts[key]:
            self._ready.insert(0, self._waiting.pop(key))

    def _most_left(self) -> Work:
        """The longest work of the model that has most of it and no worker yet, or else of all."""
        busy = set(self._last.values())
        left: dict[str, float] = {}
        for work in self._ready:
            left[work.candidate.name] = left.get(work.candidate.name, 0.0) + work.chars
        model = max(left, key=lambda name: (name not in busy, left[name]))
        return next(work for work in self._ready if work.candidate.name == model)

    def _add(self, candidate: Candidate, plan: Planned, split_documents: int) -> None:
        judge = Work("judge", candidate, plan)
        if plan.type != "Retrieval" or candidate.name == BM25 or plan.documents <= split_documents:
            if plan.type == "Retrieval" or candidate.name != BM25:
                self._ready.append(judge)
            return
        key = candidate.name, plan.name
        starts = range(0, plan.documents, split_documents)
        self._waiting[key], self._parts[key] = judge, len(starts)
        for start in starts:
            self._ready.append(
                Work("encode", candidate, plan, start, min(split_documents, plan.documents - start))
            )
