"""What a model has to reach before it may replace another: floors, and no regression against an earlier run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qzhou.errors import DataError, RecipeError, RegressionError
from qzhou.evaluation.candidates import STAGE2
from qzhou.evaluation.comparison import Row
from qzhou.evaluation.items import difference
from qzhou.evaluation.messages import Judged
from qzhou.events import say
from qzhou.storage import Folder

LOWEST, HIGHEST = -1.0, 1.0  # of a main score; correlations fall below zero


@dataclass(frozen=True, slots=True)
class Gate:
    """What stage 2 has to reach.

    Attributes:
        floors: Task -> the least score.
        no_worse_than: Another run's folder, or its name beside this one; empty for none.
    """

    floors: Mapping[str, float] = field(default_factory=dict)
    no_worse_than: str = ""

    def check(self, rows: Sequence[Row], run_folder: Folder, *, seed: int) -> None:
        """Compare the rows of stage 2 with what is asked, and say what was compared.

        Raises:
            RecipeError: A floor names a task that was not judged.
            DataError: There is no such run, or it was judged on other data.
            RegressionError: A score is below its floor, or surely below that of the other run.
        """
        own = {row.task: row for row in rows if row.model == STAGE2}
        failures = [*self._below(own), *self._worse(own, run_folder, seed)]
        if failures:
            raise RegressionError("the model does not pass the gate:\n       " + "\n       ".join(failures))
        say("evaluate: the model passes the gate", "gate_passed")

    def _below(self, own: Mapping[str, Row]) -> list[str]:
        for task in self.floors:
            if task not in own:
                known = ", ".join(own) or "none"
                raise RecipeError(f"--fail-below: '{task}' is no task that was judged; those are: {known}")
        return [
            f"{task}: {own[task].metric} {own[task].score:.4f} is below the {floor:g} that --fail-below asks for"
            for task, floor in self.floors.items()
            if own[task].score < floor
        ]

    def _worse(self, own: Mapping[str, Row], run_folder: Folder, seed: int) -> list[str]:
        if not self.no_worse_than:
            return []
        found, failures = 0, []
        other = _other_run(self.no_worse_than, run_folder)
        for task, row in own.items():
            before, now = _judged(other, task), _judged(run_folder, task)
            if before is None or now is None or before.made_of is None or now.made_of is None:
                line = f"evaluate: {task} cannot be compared with {self.no_worse_than}, which was not judged on it"
                say(line, "gate_incomparable", level="warning", task=task)
                continue
            apart = difference(now.made_of, before.made_of, seed=seed)
            if apart is None:
                line = f"evaluate: {task} cannot be compared with {self.no_worse_than}, which was judged on other data"
                say(line, "gate_incomparable", level="warning", task=task)
                continue
            found += 1
            said = f"{row.metric} {before.score:.4f} -> {now.score:.4f} ({apart.low:+.4f} to {apart.high:+.4f})"
            line = f"evaluate: {task}, {self.no_worse_than} -> this run: {said}"
            say(line, "gate_compared", task=task, before=before.score, now=now.score, low=apart.low, high=apart.high)
            if apart.high < 0:
                failures.append(f"{task}: {said} is worse than {self.no_worse_than}, with 95 % confidence")
        for task in sorted(_judged_tasks(other) - set(own)):
            failures.append(f"{task}: {self.no_worse_than} has a score, and this run has none")
        if not found:
            raise DataError(f"--no-worse-than: no task of this run was judged on the same data in {other.uri}")
        return failures


def gate_of(fail_below: str, no_worse_than: str) -> Gate | None:
    """The gate that a command line asks for; None where it asks for nothing.

    Args:
        fail_below: ``docs_search=0.6,docs_package=0.4``.
        no_worse_than: A run.

    Raises:
        RecipeError: A floor is not ``TASK=SCORE``.
    """
    floors: dict[str, float] = {}
    for one in fail_below.split(",") if fail_below else ():
        task, _, score = (part.strip() for part in one.partition("="))
        try:
            floor = float(score)
        except ValueError:
            raise RecipeError(f"command line: --fail-below: '{one}' is not TASK=SCORE, as in docs_search=0.6") from None
        if task in floors:
            raise RecipeError(f"command line: --fail-below names '{task}' twice: {floors[task]:g} and {floor:g}")
        if not LOWEST <= floor <= HIGHEST:
            raise RecipeError(f"command line: --fail-below: no score is {floor:g}; they reach from -1 to 1")
        floors[task] = floor
    return Gate(floors, no_worse_than) if floors or no_worse_than else None


def _other_run(name: str, run_folder: Folder) -> Folder:
    parent = run_folder.uri.rstrip("/").rpartition("/")[0]
    places = [Folder.open(name)] if "/" in name else [Folder.open(parent) / name]
    for place in places:
        if (place / "evaluate" / "judged" / STAGE2).exists():
            return place
    raise DataError(
        f"--no-worse-than: {places[0].uri} holds no judged run; name the folder of a run whose jobs/evaluate.py is done"
    )


def _judged_tasks(run_folder: Folder) -> set[str]:
    """Tasks on which stage 2 of a run has a score."""
    place = run_folder / "evaluate"
    rows = place.read_json("comparison.json")["rows"] if place.exists("comparison.json") else ()
    return {row["task"] for row in rows if row["model"] == STAGE2}


def _judged(run_folder: Folder, task: str) -> Judged | None:
    place = run_folder / "evaluate" / "judged" / STAGE2
    return Judged(**place.read_json(f"{task}.json")) if place.exists(f"{task}.json") else None
