"""What the driver and the workers that judge tell each other. Loads neither mteb nor torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qzhou.config.dataset import TaskKind
from qzhou.evaluation.items import Items


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be judged.

    Attributes:
        name: In tables and file names.
        spec: Named like a backbone, or an URL; below the run's folder where ``trained``.
        trained: By this run.
    """

    name: str
    spec: str = ""
    trained: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """A task to be judged on.

    Attributes:
        name: Of the mteb task.
        type: mteb's: Retrieval, STS, ...
        dataset: Of the recipe; empty for a task of mteb's own.
        kind: What is made of the dataset's held-out examples; without a dataset nothing is meant by it.
        chars: Of all its texts: how long it takes, compared with others.
        documents: Of its corpus; 0 where there is none or it is not known before loading.
        seen: Training had data of the same source.
        benchmarks: Of mteb that it belongs to, as far as the recipe names them.
    """

    name: str
    type: str
    dataset: str
    kind: TaskKind
    chars: int
    documents: int
    seen: bool
    benchmarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """A model's score on a task.

    Attributes:
        key: Of everything that the score depends on; another key is another score.
        n: What it is a mean over: queries, pairs or test texts.
        data: The revision of the task's data.
        items: What it is made of (:class:`~qzhou.evaluation.items.Items`); empty where the task does not tell.
        seconds: That judging took.
        encoded: Texts of corpora that had no vectors yet.
        again: It was judged in this run of the stage, and not found.
        undefined: Why there is no score; empty where there is one.
    """

    key: str
    task: str
    type: str
    metric: str
    score: float
    n: int
    data: str = ""
    items: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    encoded: int = 0
    again: bool = True
    undefined: str = ""

    @property
    def made_of(self) -> Items | None:
        return Items.read(self.items) if self.items else None
