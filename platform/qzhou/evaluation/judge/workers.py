"""Ray actors that score models, each one model on one task at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import our_error
from qzhou.config.recipe import Recipe
from qzhou.errors import first_line
from qzhou.evaluation.judge.model_specs import ModelSpec
from qzhou.evaluation.judge.task_scores import EvalTask, TaskScore
from qzhou.evaluation.judge.work_queue import Work, WorkQueue
from qzhou.run.run import Run
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress

if TYPE_CHECKING:
    from qzhou.evaluation.judge.evaluator import Evaluator

RETRIES = 2  # of a task whose worker died

MakeEvaluator = Callable[[Recipe, str], "Evaluator"]


def make_evaluator(recipe: Recipe, run_uri: str) -> Evaluator:
    """An evaluator; mteb is imported here, because that takes seconds and the driver does not need it."""
    from qzhou.evaluation.judge.evaluator import Evaluator

    return Evaluator(recipe, run_uri)


class _Worker:
    """The actor: makes its evaluator at the first call."""

    def __init__(self, make: MakeEvaluator, recipe: Recipe, run_uri: str) -> None:
        self._make, self._arguments = make, (recipe, run_uri)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return self._make(*self._arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._evaluator, method)(*arguments)


@dataclass(frozen=True, slots=True)
class Results:
    """What the workers have found.

    Attributes:
        scores: (Model, task) -> score.
        health: Model -> its embedding health.
        failed: A sentence for each work that failed.
    """

    scores: dict[tuple[str, str], TaskScore] = field(default_factory=dict)
    health: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


class Workers:
    """As many actors as the recipe asks for; to be used inside a session.

    Args:
        run: The run to evaluate.
        make: Makes the evaluator in each actor.
    """

    def __init__(self, run: Run, make: MakeEvaluator = make_evaluator) -> None:
        options = resources_for(run.recipe, "evaluation").options
        kind = ray.remote(_Worker).options(**options, max_restarts=-1, max_task_retries=RETRIES)
        count = run.recipe.cluster.encode_workers
        self._actors = [kind.remote(make, run.recipe, run.folder.uri) for _ in range(count)]

    def tasks(self) -> tuple[list[EvalTask], dict[str, str]]:
        """All tasks, longest first; and for each task that cannot be made the reason."""
        found: tuple[list[EvalTask], dict[str, str]] = ray.get(self._actors[0].call.remote("tasks"))
        return found

    def load(self, model: ModelSpec) -> None:
        """Have every worker load a model, so that a benchmark does not measure that."""
        ray.get([actor.call.remote("load", model) for actor in self._actors])

    def run(self, queue: WorkQueue) -> Results:
        """The results of all work in the queue; failed work does not stop the rest."""
        results = Results()
        running: dict[Any, tuple[Any, Work]] = {}
        idle = list(self._actors)
        with progress("evaluation", total=len(queue), unit="tasks") as bar:
            while queue or running:
                while idle and (work := queue.take(idle[-1])) is not None:
                    actor = idle.pop()
                    running[actor.call.remote(work.method, *work.arguments)] = actor, work
                (done, *_), _ = ray.wait(list(running))
                actor, work = running.pop(done)
                idle.append(actor)
                rows: dict[str, int] = {}
                try:
                    rows = _add(results, work, ray.get(done))
                # The code of mteb's tasks, or the death of an actor, may raise anything.
                except Exception as error:  # noqa: BLE001
                    results.failed.append(f"{work}: {our_error(error) or first_line(error)}")
                queue.finished(work)
                bar.advance(1, str(work), rows=rows)
        return results


def _add(results: Results, work: Work, found: Any) -> dict[str, int]:
    """Add what a worker found; returns dataset or task -> how many examples were scored."""
    model, task = work.model.name, work.task
    if work.method == "embedding_health":
        results.health[model] = found
    if work.method != "score":
        return {}
    results.scores[model, task.name] = found
    if not found.computed:
        return {}
    if not found.undefined:
        what = {"task": task.name, "model": model, "metric": found.metric, "score": found.score}
        line = f"evaluation: {work}: {found.metric} {found.score:.4f}, {found.seconds:.1f} s"
        log_event(line, "judged", **what, seconds=found.seconds)
    return {task.dataset or task.name: found.n}
