"""The comparison of models: scores, differences with their confidence, means beside published ones, printed tables."""

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

from qzhou.evaluation.judge.model_specs import BACKBONE, OWN_MODELS, STAGE2
from qzhou.evaluation.judge.task_scores import EvalTask

PUBLISHED = Path(__file__).parent / "published.toml"
WIDTH = 120


@dataclass(frozen=True, slots=True)
class Row:
    """The score of a model on a task.

    Attributes:
        n: How many queries, pairs or test texts the score is a mean over.
        low: Lower limit of the 95 % interval; the score where single examples are unknown.
        high: Upper limit, likewise.
        seen: Whether training had data of the same source.
        seconds: How long scoring took.
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
    """A model's lead over another on a task, with a paired bootstrap's 95 % interval."""

    task: str
    model: str
    against: str
    difference: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def rows_of(comparison: Mapping[str, Any]) -> list[Row]:
    """The scores in a ``comparison.json``."""
    return [Row(**one) for one in comparison.get("rows", [])]


def differences_of(comparison: Mapping[str, Any]) -> list[Difference]:
    """The differences in a ``comparison.json``."""
    return [Difference(**one) for one in comparison.get("differences", [])]


def gains(differences: Iterable[Difference]) -> list[Difference]:
    """By how much stage 2 leads the untouched backbone on each task."""
    return [one for one in differences if (one.model, one.against) == (STAGE2, BACKBONE)]


def models_of(rows: Sequence[Row]) -> list[str]:
    """The models that have a score: our own in their order, then the others."""
    found = dict.fromkeys(row.model for row in rows)
    return [*(one for one in OWN_MODELS if one in found), *(one for one in found if one not in OWN_MODELS)]


def benchmark_means(rows: Sequence[Row], tasks: Sequence[EvalTask]) -> list[dict[str, Any]]:
    """For each benchmark of the recipe, our models' means beside published ones in percent.

    ``judged`` is the number of its tasks that have scores. A model has a mean where it has
    a score on every task, because a mean over some of them is another number. Published
    means are left out where not all tasks have scores.
    """
    published = tomllib.loads(PUBLISHED.read_text("utf-8"))
    return [
        _benchmark(name, rows, tasks, published.get(name, {}))
        for name in dict.fromkeys(one for task in tasks for one in _benchmarks_of(task))
    ]


def _benchmarks_of(task: EvalTask) -> list[str]:
    return [*task.benchmarks, *(benchmark for _, benchmark in task.aggregates if benchmark)]


def _benchmark(
    name: str, rows: Sequence[Row], tasks: Sequence[EvalTask], published: Mapping[str, Any]
) -> dict[str, Any]:
    type_of = {task.name: task.type for task in tasks if name in task.benchmarks}
    for task in tasks:
        type_of |= {aggregate: task.type for aggregate, benchmark in task.aggregates if benchmark == name}
    inside = [row for row in rows if row.task in type_of]
    judged = {row.task for row in inside}
    types = published.get("types") or sorted({row.type for row in inside})
    models = [{"model": one, "ours": True, **_means(inside, one, types, type_of)} for one in models_of(inside)]
    if judged == set(type_of) and len(type_of) == published.get("tasks"):
        for one, means in published["models"].items():
            by_type = dict(zip(types, means, strict=False))
            overall = {"mean_task": means[-2], "mean_type": means[-1]}
            models.append({"model": one, "ours": False, "types": by_type, **overall})
    sizes = {"tasks": len(type_of), "judged": len(judged)}
    return {"benchmark": name, **sizes, "types": types, "models": models}


def _means(rows: Sequence[Row], model: str, types: Sequence[str], type_of: Mapping[str, str]) -> dict[str, Any]:
    score = {row.task: row.score for row in rows if row.model == model}
    by_type = {}
    for one in types:
        tasks = [task for task, own in type_of.items() if own == one]
        if tasks and score.keys() >= set(tasks):
            by_type[one] = _percent(score[task] for task in tasks)
    if score.keys() < type_of.keys():
        return {"types": by_type, "mean_task": None, "mean_type": None}
    mean_type = round(fmean(by_type.values()), 2) if by_type else None
    return {"types": by_type, "mean_task": _percent(score.values()), "mean_type": mean_type}


def published_scores(rows: Sequence[Row], tasks: Sequence[EvalTask]) -> list[dict[str, Any]]:
    """For each task of mteb that has published scores on the same data, stage 2's score beside them, in percent."""
    known: dict[str, dict[str, float]] = {}
    for board in tomllib.loads(PUBLISHED.read_text("utf-8")).values():
        for model, scores in board["scores"].items():
            known.setdefault(model, {}).update(scores)
    comparable = {task.name for task in tasks if task.is_published}
    found = []
    for row in rows:
        theirs = {model: scores[row.task] for model, scores in known.items() if row.task in scores}
        if row.model == STAGE2 and row.task in comparable and theirs:
            ours = round(100 * row.score, 2)
            found.append({"task": row.task, "type": row.type, STAGE2: ours, "published": theirs})
    return found


def seen_and_unseen(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each model's mean score on tasks whose training data was in the mix, and on the others, in percent."""
    found = []
    for model in models_of(rows):
        for seen in (True, False):
            scores = [row.score for row in rows if row.model == model and row.seen == seen]
            if scores:
                found.append({"model": model, "seen": seen, "tasks": len(scores), "mean": _percent(scores)})
    return found


def _percent(scores: Iterable[float]) -> float:
    return round(100 * fmean(scores), 2)


def table(rows: Sequence[Row], differences: Sequence[Difference] = ()) -> str:
    """Tasks down, models across, and what training gained over the backbone; * where that is significant."""
    grid = Table(title="Held-out evaluation (mteb)", title_justify="left")
    for heading in ("task", "metric", "n"):
        grid.add_column(heading, justify="right" if heading == "n" else "left", overflow="fold")
    models = models_of(rows)
    for model in models:
        grid.add_column(model, justify="right", overflow="fold")
    grid.add_column("stage2 - backbone", justify="right")
    significant = {one.task for one in gains(differences) if one.is_significant}
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        score = {row.model: row.score for row in of_task}
        cells = [f"{score[model]:.4f}" if model in score else "-" for model in models]
        has_both = STAGE2 in score and BACKBONE in score
        gain = f"{score[STAGE2] - score[BACKBONE]:+.4f}" if has_both else "-"
        mark = "*" if task in significant else ""
        grid.add_row(task, of_task[0].metric, f"{of_task[0].n:,}", *cells, gain + mark)
    if significant:
        grid.caption = "* outside the 95 % interval of a paired bootstrap"
        grid.caption_justify = "left"
    return printed(grid)


def benchmark_table(found: Mapping[str, Any]) -> str:
    """Models down, types across, as leaderboards print them."""
    title = found["benchmark"]
    if found["judged"] < found["tasks"]:
        title += f", {found['judged']} of {found['tasks']} tasks"
    grid = Table(title=title, title_justify="left")
    grid.add_column("model", no_wrap=True)
    for heading in (*found["types"], "mean (task)", "mean (type)"):
        grid.add_column(heading, justify="right", overflow="fold")
    for one in sorted(found["models"], key=lambda one: -(one["mean_task"] or 0)):
        means = [one["types"].get(each) for each in found["types"]]
        means += [one["mean_task"], one["mean_type"]]
        cells = [f"{mean:.2f}" if mean is not None else "-" for mean in means]
        grid.add_row(one["model"], *cells, style="bold" if one["ours"] else "")
    return printed(grid)


def printed(grid: Table) -> str:
    """A table as text of a fixed width."""
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False)
    console.print(grid)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
