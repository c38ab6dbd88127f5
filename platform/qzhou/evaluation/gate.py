"""What a model has to reach before it may replace another: floors, and no regression against an earlier run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qzhou.data.storage import Folder
from qzhou.errors import DataError, RecipeError, RegressionError
from qzhou.evaluation.candidates import STAGE2
from qzhou.evaluation.comparison import Row
from qzhou.evaluation.diagnosis.intervals import widest
from qzhou.evaluation.items import Interval, difference
from qzhou.evaluation.messages import Judged
from qzhou.telemetry.events import log_event

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

    def look(self, run_folder: Folder) -> None:
        """Refuse before anything is judged what could not be compared afterwards.

        Raises:
            RecipeError: The other run is this one.
            DataError: There is no such run.
        """
        if self.no_worse_than:
            _other_run(self.no_worse_than, run_folder)

    def check(self, rows: Sequence[Row], run_folder: Folder, *, seed: int) -> None:
        """Compare the rows of stage 2 with what is asked, and say what was compared.

        Raises:
            RecipeError: A floor names a task that was not judged, or the other run is this one.
            DataError: There is no such run, or it was judged on other data.
            RegressionError: A score is below its floor, or surely below that of the other run.
        """
        own = {row.task: row for row in rows if row.model == STAGE2}
        failures = [*self._below(own, run_folder), *self._worse(own, run_folder, seed)]
        if failures:
            raise RegressionError(
                "the model does not pass the gate:\n       " + "\n       ".join(failures)
            )
        log_event("evaluation: the model passes the gate", "gate_passed")

    def _below(self, own: Mapping[str, Row], run_folder: Folder) -> list[str]:
        failures = []
        for task, floor in self.floors.items():
            now = _judged(run_folder, task)
            if task not in own and (now is None or not now.undefined):
                known = ", ".join(own) or "none"
                raise RecipeError(
                    f"--fail-below: '{task}' is no task that was judged; those are: {known}"
                )
            if task not in own:
                failures.append(f"{task}: it has no score: {now.undefined if now else ''}")
            elif own[task].score < floor:
                said = f"{own[task].metric} {own[task].score:.4f} is below the {floor:g} that --fail-below asks for"
                failures.append(f"{task}: {said}")
        return failures

    def _worse(self, own: Mapping[str, Row], run_folder: Folder, seed: int) -> list[str]:
        if not self.no_worse_than:
            return []
        found, failures = 0, []
        other = _other_run(self.no_worse_than, run_folder)
        for task, row in own.items():
            before, now = _judged(other, task), _judged(run_folder, task)
            apart = _apart(before, now, seed) if before and now else None
            if before is None or now is None or apart is None:
                why = "was judged on other data" if before else "was not judged on it"
                line = (
                    f"evaluation: {task} cannot be compared with {self.no_worse_than}, which {why}"
                )
                log_event(line, "gate_incomparable", level="warning", task=task)
                continue
            found += 1
            said = f"{row.metric} {before.score:.4f} -> {now.score:.4f} ({apart.low:+.4f} to {apart.high:+.4f})"
            line = f"evaluation: {task}, {self.no_worse_than} -> this run: {said}"
            log_event(
                line,
                "gate_compared",
                task=task,
                before=before.score,
                now=now.score,
                low=apart.low,
                high=apart.high,
            )
            if apart.high < 0:
                failures.append(
                    f"{task}: {said} is worse than {self.no_worse_than}, with 95 % confidence"
                )
        for task in sorted(_judged_tasks(other) - set(own)):
            failures.append(f"{task}: {self.no_worse_than} has a score, and this run has none")
        if not found:
            raise DataError(
                f"--no-worse-than: no task of this run was judged on the same data in {other.uri}"
            )
        return failures


def floors_of(text: str) -> dict[str, float]:
    """Task -> the least score, from ``docs_search=0.6,docs_package=0.4`` on a command line.

    Raises:
        RecipeError: A floor is not ``TASK=SCORE``.
    """
    floors: dict[str, float] = {}
    for one in text.split(","):
        task, _, score = (part.strip() for part in one.partition("="))
        try:
            floor = float(score)
            if not task:
                raise ValueError
        except ValueError:
            raise RecipeError(
                f"command line: --fail-below: '{one}' is not TASK=SCORE, as in docs_search=0.6"
            ) from None
        if task in floors:
            raise RecipeError(
                f"command line: --fail-below names '{task}' twice: {floors[task]:g} and {floor:g}"
            )
        if not LOWEST <= floor <= HIGHEST:
            raise RecipeError(
                f"command line: --fail-below: no score is {floor:g}; they reach from -1 to 1"
            )
        floors[task] = floor
    return floors


def _apart(before: Judged, now: Judged, seed: int) -> Interval | None:
    """By how much a score rose; of tasks without items by their number alone. None where the data was another."""
    if now.made_of is not None and before.made_of is not None:
        return difference(now.made_of, before.made_of, seed=seed)
    if before.undefined or before.data != now.data:
        return None
    return widest(now.score - before.score, min(before.n, now.n))


def _other_run(name: str, run_folder: Folder) -> Folder:
    parent = run_folder.uri.rstrip("/").rpartition("/")[0]
    places = [Folder.open(name)] if "/" in name else [Folder.open(parent) / name]
    for place in places:
        if place.uri.rstrip("/") == run_folder.uri.rstrip("/"):
            raise RecipeError(
                f"--no-worse-than: {name} is this run itself, which is no worse whatever it is"
            )
        if (place / "evaluation" / "judged" / STAGE2).exists():
            return place
    raise DataError(
        f"--no-worse-than: {places[0].uri} holds no judged run; name the folder of a run whose jobs/evaluate.py is done"
    )


def _judged_tasks(run_folder: Folder) -> set[str]:
    """Tasks on which stage 2 of a run has a score."""
    place = run_folder / "evaluation"
    rows = place.read_json("comparison.json")["rows"] if place.exists("comparison.json") else ()
    return {row["task"] for row in rows if row["model"] == STAGE2}


def _judged(run_folder: Folder, task: str) -> Judged | None:
    place = run_folder / "evaluation" / "judged" / STAGE2
    return Judged(**place.read_json(f"{task}.json")) if place.exists(f"{task}.json") else None
