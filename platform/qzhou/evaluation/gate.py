"""The release gate: least scores, and no regression against an earlier run, before a model may replace another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qzhou.data.storage import Folder
from qzhou.errors import DataError, RecipeError, RegressionError
from qzhou.evaluation.comparison import Row
from qzhou.evaluation.intervals import Interval, widened, worst_case_interval
from qzhou.evaluation.judge.model_specs import STAGE2
from qzhou.evaluation.judge.per_example_scores import paired_difference
from qzhou.evaluation.judge.task_scores import TaskScore
from qzhou.run.files import SCORES, RunFiles
from qzhou.telemetry.events import log_event

LOWEST, HIGHEST = -1.0, 1.0  # of a main score; correlations fall below zero


@dataclass(frozen=True, slots=True)
class Gate:
    """What stage 2 has to reach.

    Attributes:
        thresholds: Task -> the least score.
        no_worse_than: Another run's folder, or its name if beside this run; empty for none.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    no_worse_than: str = ""

    def refuse_unknown_run(self, run_folder: Folder) -> None:
        """Fail before any model is scored if the other run cannot be compared afterwards.

        Raises:
            RecipeError: The other run is this one.
            DataError: There is no such run.
        """
        if self.no_worse_than:
            _other_run(self.no_worse_than, run_folder)

    def check(self, rows: Sequence[Row], run_folder: Folder, *, seed: int) -> None:
        """Compare the scores of stage 2 with the thresholds and the other run, and log what was compared.

        Args:
            rows: The scores of this run.
            run_folder: The folder of this run.
            seed: Seed of the bootstrap.

        Raises:
            RecipeError: A threshold's task has no score, or the other run is this one.
            DataError: There is no such run, or it was scored on other data.
            RegressionError: A score is below its threshold, or significantly below that of the other run.
        """
        own = {row.task: row for row in rows if row.model == STAGE2}
        files = RunFiles(run_folder)
        failures = [*self._below(own, files), *self._worse(own, files, seed)]
        if failures:
            listed = "\n       ".join(failures)
            raise RegressionError(f"the model does not pass the gate:\n       {listed}")
        log_event("evaluation: the model passes the gate", "gate_passed")

    def _below(self, own: Mapping[str, Row], files: RunFiles) -> Iterator[str]:
        for task, least in self.thresholds.items():
            if task in own:
                row = own[task]
                if row.score < least:
                    yield f"{task}: {row.metric} {row.score:.4f} is below the {least:g} that --fail-below asks for"
                continue
            now = TaskScore.read(files, STAGE2, task)
            if now is None or not now.undefined:
                known = ", ".join(own) or "none"
                raise RecipeError(f"--fail-below: '{task}' is no task that was judged; those are: {known}")
            yield f"{task}: it has no score: {now.undefined}"

    def _worse(self, own: Mapping[str, Row], files: RunFiles, seed: int) -> list[str]:
        if not self.no_worse_than:
            return []
        name, failures = self.no_worse_than, []
        other = RunFiles(_other_run(name, files.folder))
        changes: dict[str, tuple[TaskScore, TaskScore, Interval]] = {}
        for task in own:
            before, now = TaskScore.read(other, STAGE2, task), TaskScore.read(files, STAGE2, task)
            if before is None and now is None:
                continue  # a mean over tasks that are compared one by one
            change = _change(before, now, seed) if before and now else None
            if before is None or now is None or change is None:
                why = "was judged on other data" if before else "was not judged on it"
                line = f"evaluation: {task} cannot be compared with {name}, which {why}"
                log_event(line, "gate_incomparable", level="warning", task=task)
                continue
            changes[task] = before, now, change
        for task, (before, now, single) in changes.items():
            # of 41 tasks one would be "worse" by chance in 28 of 40 pairs of equal models
            change = widened(single, len(changes))
            limits = f"{change.low:+.4f} to {change.high:+.4f}"
            scores = f"{now.metric} {before.score:.4f} -> {now.score:.4f} ({limits})"
            line = f"evaluation: {task}, {name} -> this run: {scores}"
            log_event(
                line, "gate_compared", task=task, before=before.score, now=now.score,
                low=change.low, high=change.high,
            )  # fmt: skip
            if change.high < 0:
                together = f" of all {len(changes)} comparisons together" if len(changes) > 1 else ""
                failures.append(f"{task}: {scores} is worse than {name}, with 95 % confidence{together}")
        theirs = {row["task"] for row in other.comparison.get("rows", ()) if row["model"] == STAGE2}
        failures += [f"{task}: {name} has a score, and this run has none" for task in sorted(theirs - set(own))]
        if not changes:
            raise DataError(
                f"--no-worse-than: no task of this run was judged on the same data in {other.folder.uri}"
            )
        return failures


def thresholds_of(text: str) -> dict[str, float]:
    """Task -> the least score, from ``docs_search=0.6,docs_package=0.4`` on a command line.

    Raises:
        RecipeError: A part of the text is not ``TASK=SCORE``.
    """
    found: dict[str, float] = {}
    for one in text.split(","):
        task, _, score = (part.strip() for part in one.partition("="))
        try:
            least = float(score)
        except ValueError:
            task = ""
        if not task:
            raise RecipeError(f"command line: --fail-below: '{one}' is not TASK=SCORE, as in docs_search=0.6")
        if task in found:
            raise RecipeError(f"command line: --fail-below names '{task}' twice: {found[task]:g} and {least:g}")
        if not LOWEST <= least <= HIGHEST:
            raise RecipeError(f"command line: --fail-below: no score is {least:g}; they reach from -1 to 1")
        found[task] = least
    return found


def _change(before: TaskScore, now: TaskScore, seed: int) -> Interval | None:
    """By how much a score rose, without single examples by their number alone; None where the data differs."""
    ours, theirs = now.per_example, before.per_example
    if ours is not None and theirs is not None:
        return paired_difference(ours, theirs, seed=seed)
    if before.undefined or before.data_revision != now.data_revision:
        return None
    return worst_case_interval(now.score - before.score, min(before.n, now.n))


def _other_run(name: str, run_folder: Folder) -> Folder:
    """The folder of another run that has scores."""
    place = Folder.open(name) if "/" in name else run_folder.parent / name
    if place.uri.rstrip("/") == run_folder.uri.rstrip("/"):
        raise RecipeError(f"--no-worse-than: {name} is this run itself, which is no worse whatever it is")
    if not (place / SCORES / STAGE2).exists():
        raise DataError(
            f"--no-worse-than: {place.uri} holds no judged run; name the folder of a run for which `qzhou evaluate` "
            "has finished"
        )
    return place
