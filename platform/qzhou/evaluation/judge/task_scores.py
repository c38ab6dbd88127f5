"""Tasks and scores that driver and evaluation workers exchange. Loads no mteb, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from qzhou.config.dataset import TaskKind
from qzhou.evaluation.judge.per_example_scores import PerExampleScores
from qzhou.run.files import RunFiles


@dataclass(frozen=True, slots=True)
class EvalTask:
    """A task of mteb on which models are scored.

    Attributes:
        name: Its name in mteb.
        type: Its type in mteb: Retrieval, STS, ...
        dataset: The recipe's dataset whose held-out examples it is made of; empty for a task of mteb's own.
        kind: The kind of task that is made of the dataset; without a dataset it has no meaning.
        chars: Characters of all its texts, as a measure of how long it takes.
        documents: Documents in its corpus; 0 where there is none, or where mteb does not tell before loading.
        seen: Whether training had data of the same source.
        benchmarks: Those benchmarks of the recipe to which it belongs.
        subsets: Of mteb's data, languages for instance; those of the benchmark, which often has not all.
        splits: Likewise.
        aggregates: Tasks of mteb whose scores are means over this one and others, each with its benchmark or "".
        is_published: Whether a board of published scores has just these subsets and splits.
    """

    name: str
    type: str
    dataset: str
    kind: TaskKind
    chars: int
    documents: int
    seen: bool
    benchmarks: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    aggregates: tuple[tuple[str, str], ...] = ()
    is_published: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model found first for a query, for people to read; long texts are cut.

    Attributes:
        id: Of the query, as in :class:`PerExampleScores`.
        found: The text that the model ranks first; empty where it finds none.
        positive: A text of the highest grade.
    """

    id: str
    query: str
    found: str
    positive: str


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The score of one model on one task.

    Attributes:
        key: Digest of everything that the score depends on.
        n: How many queries, pairs or test texts the score is a mean over.
        data_revision: The revision of the task's data.
        per_example: Scores of single examples; None where mteb's predictions tell none.
        seconds: How long scoring took.
        encoded_texts: Documents whose vectors were not in the store yet.
        computed: Whether this run of the stage computed it, or read it from the run folder.
        undefined: Why there is no score; empty where there is one.
        answers: Of retrieval on a dataset of the recipe, one for each query; empty of other tasks.
    """

    key: str
    task: str
    type: str
    metric: str
    score: float
    n: int
    data_revision: str = ""
    per_example: PerExampleScores | None = None
    seconds: float = 0.0
    encoded_texts: int = 0
    computed: bool = True
    undefined: str = ""
    answers: tuple[Answer, ...] = ()

    @classmethod
    def read(cls, files: RunFiles, model: str, task: str) -> TaskScore | None:
        """The score that a run folder holds; None where it has none."""
        found = files.task_score(model, task)
        if found is None:
            return None
        examples = found["per_example"]
        known = PerExampleScores.from_json(examples) if examples else None
        answers = tuple(Answer(**one) for one in found.get("answers", ()))
        return cls(**{**found, "per_example": known, "answers": answers})
