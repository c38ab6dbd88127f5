"""An experiment's outcome: scores by variant and seed, differences to baseline, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rich.table import Table

from qzhou.data.storage import Folder
from qzhou.evaluation.comparison import Row, printed, rows_of
from qzhou.evaluation.intervals import Interval
from qzhou.evaluation.judge.model_specs import STAGE2
from qzhou.evaluation.judge.per_example_scores import PerExampleScores, pooled_difference
from qzhou.evaluation.judge.task_scores import TaskScore
from qzhou.experiments.settings import Experiment, Score
from qzhou.experiments.statistics import Spread, over_seeds
from qzhou.run.files import RunFiles

ONE_SEED = "one seed: nothing is known of how far other seeds would lie apart"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the trained model of one trial scored.

    Attributes:
        rows: Task -> its score.
        items: Task -> what the score is made of, where that is known.
    """

    variant: str
    seed: int
    rows: Mapping[str, Row]
    items: Mapping[str, PerExampleScores]

    @classmethod
    def read(cls, variant: str, seed: int, run: Folder) -> Outcome:
        """From the folder of a finished trial."""
        files = RunFiles(run)
        rows = {row.task: row for row in rows_of(files.comparison) if row.model == STAGE2}
        scores = {task: TaskScore.read(files, STAGE2, task) for task in rows}
        items = {task: one.per_example for task, one in scores.items() if one is not None and one.per_example}
        return cls(variant, seed, rows, items)

    def tasks(self, score: Score) -> list[str]:
        """The tasks that a score is the mean of."""
        return sorted(row.task for row in self.rows.values() if score.task == row.task or score.type == row.type)


@dataclass(frozen=True, slots=True)
class Line:
    """One variant in a comparison.

    Attributes:
        scores: Seed -> score, of the seeds that have one on every task.
        spread: Over seeds; None where a seed has no score: the mean of those that did not collapse is no mean.
        difference: To the baseline, paired by seed; None for the baseline itself, and where no seed is common to both.
        by_items: The same difference over the items of those seeds' tasks (paired bootstrap); None where the two were
            not judged on the same.
        undefined: Tasks on which seeds have no score, in words; empty where all have all.
    """

    variant: str
    scores: Mapping[int, float]
    spread: Spread | None
    difference: Spread | None = None
    by_items: Interval | None = None
    undefined: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All variants by one score."""

    score: str
    metric: str
    tasks: tuple[str, ...]
    baseline: str
    lines: tuple[Line, ...]


def compared(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[Comparison]:
    """By each score of an experiment, what the finished trials say; variants without one are left out."""
    return [_compared(experiment, score, outcomes) for score in experiment.scores]


def as_json(
    experiment: Experiment, comparisons: Sequence[Comparison], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Content of ``results.json``: the comparisons, every trial's score on every task."""
    return {
        "experiment": experiment.model_dump(mode="json"),
        "comparisons": [asdict(one) for one in comparisons],
        "trials": [
            {
                "variant": one.variant,
                "seed": one.seed,
                "scores": {row.task: {"metric": row.metric, "score": row.score} for row in one.rows.values()},
            }
            for one in outcomes
        ],
    }


def table(comparison: Comparison) -> str:
    """Variants down; * where an interval of a difference leaves out zero."""
    if not comparison.lines:
        return f"{comparison.score}: no finished trial was judged by it"
    grid = Table(title=f"{comparison.score} ({comparison.metric})", title_justify="left")
    grid.add_column("variant")
    over = "95 % over seeds"
    for heading in ("seeds", "mean", over, f"- {comparison.baseline}", over, "95 % over items"):
        grid.add_column(heading, justify="right")
    for line in comparison.lines:
        spread, difference = line.spread, line.difference
        cells = [str(len(line.scores)), f"{spread.mean:.4f}" if spread else "-", _limits(spread, "")]
        cells += [f"{difference.mean:+.4f}" if difference else "-", _limits(difference, "+")]
        grid.add_row(line.variant, *cells, _limits(line.by_items, "+"))
    seeds = max((len(line.scores) for line in comparison.lines), default=0)
    notes = ["* leaves out zero; differences are paired by seed, and by item (bootstrap)"]
    notes += [] if seeds > 1 else [ONE_SEED]
    notes += [f"{line.variant} {line.undefined}, so it has no mean" for line in comparison.lines if line.undefined]
    grid.caption, grid.caption_justify = "\n".join(notes), "left"
    return printed(grid)


def _compared(experiment: Experiment, score: Score, outcomes: Sequence[Outcome]) -> Comparison:
    metric_of = {task: one.rows[task].metric for one in outcomes for task in one.tasks(score)}
    tasks, metrics = sorted(metric_of), sorted(set(metric_of.values()))
    by_variant: dict[str, dict[int, Outcome]] = {variant.name: {} for variant in experiment.variants}
    for one in outcomes if tasks else ():
        by_variant[one.variant][one.seed] = one
    base = by_variant[experiment.baseline]
    if any(one.tasks(score) != tasks for one in base.values()):
        base = {}  # without a score of its own on every task it is nothing to compare with
    lines = [
        _line(name, own, {} if name == experiment.baseline else base, score, tasks)
        for name, own in by_variant.items()
        if own
    ]
    return Comparison(score.label, ", ".join(metrics), tuple(tasks), experiment.baseline, tuple(lines))


def _line(
    name: str, own: Mapping[int, Outcome], base: Mapping[int, Outcome], score: Score, tasks: Sequence[str]
) -> Line:
    scores = {seed: _score(one, score) for seed, one in sorted(own.items()) if one.tasks(score) == tasks}
    lacking = {task: [seed for seed in sorted(own) if task not in own[seed].rows] for task in tasks}
    if any(lacking.values()):
        said = (f"{task} (seed {', '.join(map(str, seeds))})" for task, seeds in lacking.items() if seeds)
        return Line(name, scores, None, undefined=f"has no score on {', '.join(said)}")
    both = [seed for seed in scores if seed in base]
    spread = over_seeds(list(scores.values()))
    if not both:
        return Line(name, scores, spread)
    difference = over_seeds([scores[seed] - _score(base[seed], score) for seed in both])
    by_items = _by_items([own[seed] for seed in both], [base[seed] for seed in both], score)
    return Line(name, scores, spread, difference, by_items)


def _score(outcome: Outcome, score: Score) -> float:
    return fmean(outcome.rows[task].score for task in outcome.tasks(score))


def _by_items(own: Sequence[Outcome], base: Sequence[Outcome], score: Score) -> Interval | None:
    """None where a task has no items, or the trials were judged on other data."""
    tasks = own[0].tasks(score)
    if not all(set(tasks) <= set(one.items) for one in (*own, *base)):
        return None
    paired = [([one.items[task] for one in own], [one.items[task] for one in base]) for task in tasks]
    return pooled_difference(paired, seed=0)


def _limits(found: Spread | Interval | None, sign: str) -> str:
    """Both limits; marked where they leave out zero, if they are of a difference."""
    if found is None or found.low is None or found.high is None:
        return "-"
    mark = "*" if sign and (found.low > 0 or found.high < 0) else ""
    return f"{found.low:{sign}.4f} to {found.high:{sign}.4f}{mark}"
