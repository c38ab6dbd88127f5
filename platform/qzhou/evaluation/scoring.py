"""The evaluation stage's work: score each model on each task, compare, diagnose the run."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from statistics import fmean

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import session
from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.errors import DataError
from qzhou.evaluation.changes import Changes, changes_between
from qzhou.evaluation.comparison import (
    Difference,
    Row,
    benchmark_means,
    models_of,
    published_scores,
    seen_and_unseen,
)
from qzhou.evaluation.diagnosis import Facts, diagnose
from qzhou.evaluation.judge.model_specs import BACKBONE, BM25, STAGE1, STAGE2, ModelSpec, models_to_score
from qzhou.evaluation.judge.per_example_scores import paired_difference, score_interval
from qzhou.evaluation.judge.task_scores import EvalTask, TaskScore
from qzhou.evaluation.judge.work_queue import WorkQueue
from qzhou.evaluation.judge.workers import MakeEvaluator, Results, Workers
from qzhou.run.files import RunFiles
from qzhou.run.run import Run
from qzhou.telemetry.events import log_event

Scores = dict[tuple[str, str], TaskScore]  # (model, task) -> score


def score_run(run: Run, folder: Folder, make_evaluator: MakeEvaluator) -> dict[str, int]:
    """Write ``comparison.json`` and ``diagnosis.json`` into the stage's folder; returns how many scores there are.

    Args:
        run: The run whose models are scored.
        folder: The folder of the stage.
        make_evaluator: Makes the evaluator in each worker.

    Raises:
        DataError: A task could not be scored; the scores of the others are kept.
    """
    models, seed = models_to_score(run.recipe), run.recipe.run.seed
    with session(resources_for(run.recipe, "evaluation")):
        workers = Workers(run, make_evaluator)
        tasks, not_judged = workers.tasks()
        for task, reason in not_judged.items():
            line = f"evaluation: {task} is not judged: {reason}"
            log_event(line, "not_judged", level="warning", task=task)
        _say_what_was_not_trained(run.recipe, tasks)
        queue = WorkQueue(models, tasks, run.recipe.evaluation.split_documents)
        results = workers.run(queue)
    if results.failed:
        raise DataError(
            f"{len(results.failed)} of {len(queue)} tasks could not be judged; the others are kept, and the same "
            "command goes on with the rest:\n       " + "\n       ".join(results.failed)
        )
    single = _rows(models, tasks, results.scores, seed)
    rows = [*single, *_aggregates(tasks, single)]
    comparison = {
        "rows": [asdict(row) for row in rows],
        "differences": [asdict(one) for one in _differences(rows, results.scores, seed)],
        "changes": [asdict(one) for one in _changes(tasks, results.scores)],
        "benchmarks": benchmark_means(rows, tasks),
        "published": published_scores(rows, tasks),
        "seen": seen_and_unseen(single),
        "health": results.health,
        "not_judged": not_judged | _undefined(results),
    }
    folder.write_json("comparison.json", comparison)
    diagnosis = diagnose(Facts.of(RunFiles(run.folder)))
    folder.write_json("diagnosis.json", asdict(diagnosis))
    return {"scores": len(rows)}


def _say_what_was_not_trained(recipe: Recipe, tasks: Sequence[EvalTask]) -> None:
    """A line about instructions that the trained models would read for the first time."""
    if recipe.trains_with_instructions:
        return
    named = recipe.evaluation.instructions
    unknown = [one.name for one in recipe.datasets if one.instruction.strip()]
    unknown += [one.name for one in tasks if not one.dataset and {one.name, *dict(one.aggregates)} & {*named}]
    if unknown:
        line = (
            f"evaluation: {', '.join(unknown)}: the trained models read an instruction before each query here, and "
            "nothing was trained with one, so they score lower than without. Take it out, or train with one."
        )
        log_event(line, "untrained_instruction", level="warning", tasks=unknown)
    if bare := [one.name for one in tasks if not one.dataset and one.name not in unknown]:
        line = f"evaluation: {len(bare)} tasks of mteb get no instruction, since nothing was trained with one"
        log_event(line, "without_instructions", tasks=bare)


def _undefined(results: Results) -> dict[str, str]:
    """Task and model -> why there is no score."""
    found = {}
    for (model, task), score in results.scores.items():
        if score.undefined:
            found[f"{task} ({model})"] = score.undefined
            line = f"evaluation: {model} on {task}: {score.undefined}"
            log_event(line, "undefined", level="warning", task=task, model=model)
    return found


def _rows(models: Sequence[ModelSpec], tasks: Sequence[EvalTask], scores: Scores, seed: int) -> list[Row]:
    """By task, for each its models in order; tasks of benchmarks come last."""
    found = []
    for task in sorted(tasks, key=lambda task: (bool(task.benchmarks or task.aggregates), task.name)):
        for model in models:
            scored = scores.get((model.name, task.name))
            if scored is None or scored.undefined:
                continue
            low = high = score = round(scored.score, 6)
            if scored.per_example:
                limits = score_interval(scored.per_example, seed=seed)
                low, high = round(limits.low, 6), round(limits.high, 6)
            row = Row(
                task=task.name,
                type=scored.type,
                metric=scored.metric,
                model=model.name,
                score=score,
                n=scored.n,
                low=low,
                high=high,
                seen=task.seen,
                seconds=scored.seconds,
            )
            found.append(row)
    return found


def _aggregates(tasks: Sequence[EvalTask], rows: Sequence[Row]) -> Iterator[Row]:
    """The rows of mteb's aggregate tasks: the mean over their parts, for models with a score on each."""
    parts: dict[str, list[str]] = {}
    for task in tasks:
        for aggregate in dict(task.aggregates):
            parts.setdefault(aggregate, []).append(task.name)
    for name, inside in parts.items():
        for model in models_of(rows):
            of_model = [row for row in rows if row.model == model and row.task in inside]
            if len(of_model) == len(inside):
                score = round(fmean(row.score for row in of_model), 6)
                yield replace(
                    of_model[0],
                    task=name,
                    score=score,
                    low=score,
                    high=score,
                    n=sum(row.n for row in of_model),
                    seen=any(row.seen for row in of_model),
                    seconds=sum(row.seconds for row in of_model),
                )


def _changes(tasks: Sequence[EvalTask], scores: Scores) -> Iterator[Changes]:
    """What training changed for the queries of the recipe's own tasks."""
    for task in tasks:
        after, before = scores.get((STAGE2, task.name)), scores.get((BACKBONE, task.name))
        found = changes_between(STAGE2, after, BACKBONE, before) if after and before else None
        if found is not None:
            log_event(
                f"evaluation: {task.name}: {found.line}",
                "changes",
                task=task.name,
                better=found.better,
                worse=found.worse,
            )
            yield found


def _differences(rows: Sequence[Row], scores: Scores, seed: int) -> Iterator[Difference]:
    """Between any two, the later first: stage 2, stage 1, other models, backbone, BM25."""
    models = models_of(rows)
    further = [one for one in models if one not in (STAGE2, STAGE1, BACKBONE, BM25)]
    order = [one for one in (STAGE2, STAGE1, *further, BACKBONE, BM25) if one in models]
    for task in dict.fromkeys(row.task for row in rows):
        scored = {model: scores[model, task].per_example for model in order if (model, task) in scores}
        known = {model: examples for model, examples in scored.items() if examples is not None}
        for model, against in combinations(known, 2):
            found = paired_difference(known[model], known[against], seed=seed)
            if found is not None:
                limits = round(found.low, 6), round(found.high, 6)
                yield Difference(task, model, against, round(found.value, 6), *limits)
