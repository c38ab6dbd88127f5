"""What a run left that a diagnosis reads, as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qzhou.data.storage import Folder
from qzhou.evaluation.comparison import Difference, Row
from qzhou.evaluation.diagnosis.intervals import widest
from qzhou.evaluation.items import Interval
from qzhou.run.run import Run

COMPARISON = "evaluation/comparison.json"
METRICS = "training/{stage}/metrics.jsonl"
MINING, SYNTHESIS, TRANSFORM = (
    f"{stage}/report.json" for stage in ("mining", "synthesis", "transform")
)
STAGES = ("stage1", "stage2")

Step = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """Two models on one task, and by how much the second is ahead."""

    task: str
    metric: str
    before: float
    after: float
    apart: Interval

    def __str__(self) -> str:
        limits = f"{self.apart.value:+.4f}, 95 %: {self.apart.low:+.4f} to {self.apart.high:+.4f}"
        return f"{self.task} {self.metric} {self.before:.4f} -> {self.after:.4f} ({limits})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything is optional but the recipe: what is missing is empty.

    Attributes:
        settings: The resolved recipe, as JSON holds it.
        rows, differences, health: Of the comparison. Older runs have only rows.
        steps: Stage -> the lines of its metrics.
        mining: Dataset -> what was mined for it.
        synthesis, transform: What these stages say of themselves.
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
    def read(cls, run: Run) -> Facts:
        """From the run's folder."""
        found = _json(run.folder, COMPARISON)
        comparison: Mapping[str, Any] = found if isinstance(found, Mapping) else {"rows": found}
        known = {one.name for one in dataclasses.fields(Row)}
        rows = [
            {name: value for name, value in row.items() if name in known}
            for row in comparison.get("rows", [])
        ]
        return cls(
            settings=run.recipe.model_dump(mode="json"),
            rows=[Row(**row) for row in rows],
            differences=[Difference(**one) for one in comparison.get("differences", [])],
            health=comparison.get("health", {}),
            steps={stage: steps for stage in STAGES if (steps := _steps(run.folder, stage))},
            mining=_json(run.folder, MINING),
            synthesis=_json(run.folder, SYNTHESIS),
            transform=_json(run.folder, TRANSFORM),
        )

    def value(self, dotted: str) -> Any:
        """A setting of the recipe."""
        found: Any = self.settings
        for name in dotted.split("."):
            found = found[name]
        return found

    def setting(self, dotted: str) -> str:
        """A setting as a person reads it: its name and what it is now."""
        value = self.value(dotted)
        said = "off" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        return f"{dotted} (now {said})"

    def dataset(self, name: str) -> Mapping[str, Any]:
        """The recipe's entry of a dataset; empty for what is none."""
        return next((one for one in self.settings["datasets"] if one["name"] == name), {})

    def compared(self, model: str, against: str, types: frozenset[str]) -> list[Compared]:
        """Two models on all tasks of some of mteb's types on which both were judged."""
        score = {(row.task, row.model): row.score for row in self.rows}
        known = {(one.task, one.model, one.against): one for one in self.differences}
        found = []
        for row in self.rows:
            if row.model != model or row.type not in types or (row.task, against) not in score:
                continue
            before, one = score[row.task, against], known.get((row.task, model, against))
            apart = (
                Interval(one.difference, one.low, one.high)
                if one
                else widest(row.score - before, row.n)
            )
            found.append(Compared(row.task, row.metric, before, row.score, apart))
        return found

    def by_dataset(self, stage: str, task: str) -> dict[str, list[Step]]:
        """Dataset -> the steps of a stage that trained on it alone, in their order."""
        found: dict[str, list[Step]] = {}
        for step in self.steps.get(stage, ()):
            if step["task"] == task:
                found.setdefault(step["dataset"], []).append(step)
        return found


def _json(folder: Folder, name: str) -> Any:
    return folder.read_json(name) if folder.exists(name) else {}


def _steps(folder: Folder, stage: str) -> list[Step]:
    name = METRICS.format(stage=stage)
    content = folder.read_bytes(name).decode() if folder.exists(name) else ""
    return [json.loads(line) for line in content.splitlines()]
