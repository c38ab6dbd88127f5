"""What a diagnosis knows of a run, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qzhou.evaluation.comparison import Difference, Row, differences_of, rows_of
from qzhou.evaluation.intervals import Interval, worst_case_interval
from qzhou.run.files import RunFiles

Step = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """The scores of two models on one task, and by how much the second leads."""

    task: str
    metric: str
    before: float
    after: float
    change: Interval

    def __str__(self) -> str:
        limits = f"{self.change.value:+.4f}, 95 %: {self.change.low:+.4f} to {self.change.high:+.4f}"
        return f"{self.task} {self.metric} {self.before:.4f} -> {self.after:.4f} ({limits})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The files of a run that checks look at; all but the recipe may be empty.

    Attributes:
        settings: The resolved recipe as JSON.
        rows: The scores.
        differences: The differences between models.
        health: Model -> its embedding health.
        steps: ``stage1`` and ``stage2`` -> the metrics of each step.
        mining: Dataset -> the report of its mining.
        synthesis: The report of the synthesis.
        transform: The report of the transform.
    """

    settings: Mapping[str, Any]
    rows: Sequence[Row] = ()
    differences: Sequence[Difference] = ()
    health: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    steps: Mapping[str, Sequence[Step]] = field(default_factory=dict)
    mining: Mapping[str, Any] = field(default_factory=dict)
    synthesis: Mapping[str, Any] = field(default_factory=dict)
    transform: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, files: RunFiles) -> Facts:
        """The facts of a run folder."""
        return cls(
            settings=files.recipe,
            rows=rows_of(files.comparison),
            differences=differences_of(files.comparison),
            health=files.comparison.get("health", {}),
            steps=files.metrics,
            mining=files.mining,
            synthesis=files.synthesis,
            transform=files.transform,
        )

    def value(self, dotted: str) -> Any:
        """The value of a setting, by its name with dots."""
        found: Any = self.settings
        for name in dotted.split("."):
            found = found[name]
        return found

    def setting(self, dotted: str) -> str:
        """A setting with its value, as messages show it."""
        value = self.value(dotted)
        if value is None:
            return f"{dotted} (now off)"
        return f"{dotted} (now {f'{value:g}' if isinstance(value, float) else value})"

    def dataset(self, name: str) -> Mapping[str, Any]:
        """The recipe's entry of a dataset; empty where there is none of that name."""
        return next((one for one in self.settings["datasets"] if one["name"] == name), {})

    def changes(self, before: str, after: str, types: frozenset[str]) -> list[ScoreChange]:
        """How the scores differ between two models, on all tasks of some of mteb's types that have both scores."""
        score = {(row.task, row.model): row.score for row in self.rows}
        known = {
            one.task: Interval(one.difference, one.low, one.high)
            for one in self.differences
            if (one.model, one.against) == (after, before)
        }
        found = []
        for row in self.rows:
            earlier = score.get((row.task, before))
            if row.model == after and row.type in types and earlier is not None:
                change = known.get(row.task) or worst_case_interval(row.score - earlier, row.n)
                found.append(ScoreChange(row.task, row.metric, earlier, row.score, change))
        return found

    @property
    def first_stage(self) -> str:
        """The stage that trains first: ``stage2`` where the recipe leaves stage 1 out."""
        return "stage1" if self.value("training.stage1.steps") else "stage2"

    def steps_by_dataset(self, stage: str, task: str) -> dict[str, list[Step]]:
        """Dataset -> the steps of a stage that trained on it for a task, in their order."""
        return by_dataset(self.steps.get(stage, ()), task)


def by_dataset(steps: Sequence[Step], task: str) -> dict[str, list[Step]]:
    """Dataset -> those of some steps that trained on it for a task, in their order."""
    found: dict[str, list[Step]] = {}
    for step in steps:
        if step["task"] == task:
            found.setdefault(step["dataset"], []).append(step)
    return found
