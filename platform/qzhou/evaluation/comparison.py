"""The comparison: rows, differences with their confidence, means beside published ones, and the tables of them."""

from __future__ import annotations

import io
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from qzhou.evaluation.candidates import BACKBONE, OWN, STAGE2
from qzhou.evaluation.items import Interval
from qzhou.evaluation.messages import Planned

PUBLISHED = Path(__file__).parent / "published.toml"
WIDTH = 120


@dataclass(frozen=True, slots=True)
class Row:
    """One score.

    Attributes:
        n: What it is a mean over: queries, pairs or test texts.
        low, high: Its 95 % confidence interval; the score itself where its items are not known.
        seen: Training had data of the same source.
        seconds: That judging took.
    """

    task: str
    type: str
    metric: str
    model: str
    score: float
    n: int
    low: float = 0.0
    high: float = 0.0
    seen: bool = True
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much a model is ahead of another on a task (paired bootstrap, 95 %)."""

    task: str
    model: str
    against: str
    difference: float
    low: float
    high: float

    @classmethod
    def of(cls, task: str, model: str, against: str, found: Interval) -> Difference:
        values = (round(one, 6) for one in (found.value, found.low, found.high))
        return cls(task, model, against, *values)

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def models_of(rows: Sequence[Row]) -> list[str]:
    """The models that were judged: our own in their order, then the others."""
    found = dict.fromkeys(row.model for row in rows)
    return [one for one in OWN if one in found] + [one for one in found if one not in OWN]


def benchmark_means(rows: Sequence[Row], plans: Sequence[Planned]) -> list[dict[str, Any]]:
    """For each benchmark of mteb that the recipe names: means of our models, beside published ones.

    Scores are in percent, as benchmarks print them. ``judged`` says how many of the benchmark's tasks were. A model has
    a mean where it has a score on all tasks that it is over: one over some of them is another number. Where not all
    tasks were judged, published ones are left out.
    """
    published = tomllib.loads(PUBLISHED.read_text("utf-8"))
    found = []
    for name in dict.fromkeys(one for plan in plans for one in plan.benchmarks):
        tasks = {plan.name: plan.type for plan in plans if name in plan.benchmarks}
        inside = [row for row in rows if row.task in tasks]
        judged = {row.task for row in inside}
        known = published.get(name, {})
        types = known.get("types") or sorted({row.type for row in inside})
        models = [
            {"model": one, "ours": True, **_means(inside, one, types, tasks)}
            for one in models_of(inside)
        ]
        if judged == set(tasks) and len(tasks) == known.get("tasks"):
            models += [
                {"model": one, "ours": False, "types": dict(zip(types, means, strict=False))}
                | {"mean_task": means[-2], "mean_type": means[-1]}
                for one, means in known["models"].items()
            ]
        found.append(
            {
                "benchmark": name,
                "tasks": len(tasks),
                "judged": len(judged),
                "types": types,
                "models": models,
            }
        )
    return found


def published_scores(rows: Sequence[Row], plans: Sequence[Planned]) -> list[dict[str, Any]]:
    """For each task of mteb's own on which stage 2 was judged: its score beside published ones, in percent."""
    known: dict[str, dict[str, float]] = {}
    for board in tomllib.loads(PUBLISHED.read_text("utf-8")).values():
        for model, scores in board["scores"].items():
            known.setdefault(model, {}).update(scores)
    named = {plan.name for plan in plans if not plan.dataset}
    found = []
    for row in rows:
        theirs = {model: scores[row.task] for model, scores in known.items() if row.task in scores}
        if row.model == STAGE2 and row.task in named and theirs:
            found.append(
                {
                    "task": row.task,
                    "type": row.type,
                    STAGE2: round(100 * row.score, 2),
                    "published": theirs,
                }
            )
    return found


def _means(
    rows: Sequence[Row], model: str, types: Sequence[str], type_of: Mapping[str, str]
) -> dict[str, Any]:
    score = {row.task: row.score for row in rows if row.model == model}
    by_type = {}
    for one in types:
        tasks = [task for task, own in type_of.items() if own == one]
        if tasks and score.keys() >= set(tasks):
            by_type[one] = round(100 * fmean(score[task] for task in tasks), 2)
    if score.keys() < type_of.keys():
        return {"types": by_type, "mean_task": None, "mean_type": None}
    return {
        "types": by_type,
        "mean_task": _mean(score.values()),
        "mean_type": _mean(by_type.values(), 1),
    }


def seen_and_unseen(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean score of each model on tasks whose training data was in the mix, and on the others, in percent."""
    return [
        {"model": model, "seen": seen, "tasks": len(own), "mean": _mean(row.score for row in own)}
        for model in models_of(rows)
        for seen in (True, False)
        if (own := [row for row in rows if row.model == model and row.seen == seen])
    ]


def _mean(values: Iterable[float], times: float = 100) -> float | None:
    known = list(values)
    return round(times * fmean(known), 2) if known else None


def table(rows: Sequence[Row], differences: Sequence[Difference] = ()) -> str:
    """Tasks down, models across, and what training gained over the untouched backbone; * where that is sure."""
    grid = Table(title="Held-out evaluation (mteb)", title_justify="left")
    for heading in ("task", "metric", "n"):
        grid.add_column(heading, justify="right" if heading == "n" else "left", overflow="fold")
    models = [*OWN, *(one for one in models_of(rows) if one not in OWN)]
    for model in models:
        grid.add_column(model, justify="right", overflow="fold")
    grid.add_column("stage2 - backbone", justify="right")
    sure = {
        one.task
        for one in differences
        if (one.model, one.against) == (STAGE2, BACKBONE) and one.sure
    }
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        score = {row.model: row.score for row in of_task}
        cells = [f"{score[model]:.4f}" if model in score else "-" for model in models]
        gained = (
            f"{score[STAGE2] - score[BACKBONE]:+.4f}" if {STAGE2, BACKBONE} <= set(score) else "-"
        )
        mark = "*" if task in sure else ""
        grid.add_row(task, of_task[0].metric, f"{of_task[0].n:,}", *cells, gained + mark)
    if sure:
        grid.caption, grid.caption_justify = (
            "* outside the 95 % interval of a paired bootstrap",
            "left",
        )
    return _printed(grid)


def benchmark_table(found: Mapping[str, Any]) -> str:
    """Models down, types across, as boards print them."""
    whole = (
        ""
        if found["judged"] == found["tasks"]
        else f", {found['judged']} of {found['tasks']} tasks"
    )
    grid = Table(title=f"{found['benchmark']}{whole}", title_justify="left")
    grid.add_column("model", no_wrap=True)
    for heading in (*found["types"], "mean (task)", "mean (type)"):
        grid.add_column(heading, justify="right", overflow="fold")
    for one in sorted(found["models"], key=lambda one: -(one["mean_task"] or 0)):
        means = [one["types"].get(each) for each in found["types"]] + [
            one["mean_task"],
            one["mean_type"],
        ]
        cells = [f"{mean:.2f}" if mean is not None else "-" for mean in means]
        grid.add_row(one["model"], *cells, style="bold" if one["ours"] else "")
    return _printed(grid)


def _printed(grid: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False)
    console.print(grid)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
