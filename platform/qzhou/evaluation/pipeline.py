"""The evaluation stage on Ray: workers that judge one model on one task at a time, longest first; a gate at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any

import ray

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import our_error, session
from qzhou.config.recipe import Recipe
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import DataError, first_line
from qzhou.evaluation.candidates import BACKBONE, BM25, STAGE1, STAGE2, candidates
from qzhou.evaluation.comparison import (
    Difference,
    Row,
    benchmark_means,
    benchmark_table,
    models_of,
    published_scores,
    seen_and_unseen,
    table,
)
from qzhou.evaluation.diagnosis import Facts, content, lines
from qzhou.evaluation.gate import Gate
from qzhou.evaluation.items import difference, interval
from qzhou.evaluation.messages import Candidate, Judged, Planned
from qzhou.evaluation.queue import Queue, Work
from qzhou.evaluation.report import PAGE, write_report
from qzhou.evaluation.trained import refuse_other_training
from qzhou.run.models import weights_fingerprint
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event, print_block
from qzhou.telemetry.progress import progress

NOTHING_HELD_OUT = (
    "evaluation: there is nothing to judge, because no dataset holds out enough and evaluation.tasks is empty. Give a "
    "dataset a eval_fraction above 0, or name tasks of mteb."
)
RETRIES = 2  # of a task whose worker died
# each is found by what it depends on, whatever else changes
KEPT = ("judged", "results", "vectors")

Scores = dict[tuple[str, str], Judged]  # (model, task)


def evaluate(recipe: Recipe, gate: Gate | None = None) -> Manifest:
    """Judge BM25, the untouched backbone, both stages and further models; write comparison, diagnosis and report.

    Args:
        recipe: Of the run.
        gate: What stage 2 has to reach.

    Raises:
        RecipeError: The models were trained with other settings.
        DataError: Training has not finished, or a task could not be judged; the others are kept.
        RegressionError: Stage 2 does not pass the gate.
    """
    refuse_other_training(recipe)
    run = with_arithmetic(Run.open(recipe))
    if gate is not None:
        gate.look(run.folder)
    manifest = run.stage(
        Stage(
            name="evaluation",
            settings={
                "evaluation": recipe.evaluation.model_dump(),
                "model": run.recipe.model.model_dump(),
                "prompts": {
                    dataset.name: dataclasses.astuple(dataset.prompt) for dataset in recipe.datasets
                },
                "kinds": {
                    dataset.name: [dataset.kinds, dataset.train_split_of]
                    for dataset in recipe.datasets
                },
                "seed": recipe.run.seed,
            },
            inputs={
                "transform": run.manifest("transform").fingerprint,
                "stage2": run.manifest("training/stage2").fingerprint,
                **{spec: weights_fingerprint(spec) for spec in recipe.evaluation.models},
            },
            code_of=("qzhou.evaluation.pipeline",),
            persistent=KEPT,
            shared=[f"judged/{one.name}" for one in candidates(recipe) if not one.trained],
        ),
        lambda folder: _work(run, folder),
    )
    if not run.folder.exists(PAGE):
        write_report(run)  # now that this stage has its manifest too
    found = (run.folder / "evaluation").read_json("comparison.json")
    rows = [Row(**row) for row in found["rows"]]
    differences = [Difference(**one) for one in found["differences"]]
    if rows:
        scores = [
            {"task": row.task, "model": row.model, "metric": row.metric, "score": row.score}
            for row in rows
        ]
        print_block(f"\n{table(rows, differences)}\n", "evaluation", "scores", scores=scores)
    else:
        log_event(NOTHING_HELD_OUT, "nothing_held_out", level="warning")
    for benchmark in found["benchmarks"]:
        print_block(
            f"{benchmark_table(benchmark)}\n", "evaluation", "benchmark", benchmark=benchmark
        )
    diagnosis = (run.folder / "evaluation").read_json("diagnosis.json")
    signs = [finding["sign"] for finding in diagnosis["findings"]]
    print_block(f"{lines(diagnosis)}\n", "evaluation", "diagnosis", signs=signs)
    if gate is not None:
        gate.check(rows, run.folder, seed=recipe.run.seed)
    return manifest


def _work(run: Run, folder: Folder) -> dict[str, int]:
    with session(resources_for(run.recipe, "evaluation")):
        workers = Workers(run)
        plans, refused = workers.plan()
        for task, reason in refused.items():
            log_event(
                f"evaluation: {task} is not judged: {reason}",
                "not_judged",
                level="warning",
                task=task,
            )
        models = candidates(run.recipe)
        queue = Queue(models, plans, run.recipe.evaluation.split_documents)
        scores, failed = workers.judged(queue)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(queue)} tasks could not be judged; the others are kept, and the same command goes "
            "on with the rest:\n       " + "\n       ".join(failed)
        )
    for (model, task), judged in scores.items():
        if judged.undefined:
            refused[f"{task} ({model})"] = judged.undefined
            line = f"evaluation: {model} on {task}: {judged.undefined}"
            log_event(line, "undefined", level="warning", task=task, model=model)
    rows = _rows(models, plans, scores, run.recipe.run.seed)
    comparison = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "differences": [
            dataclasses.asdict(one) for one in _differences(rows, scores, run.recipe.run.seed)
        ],
        "benchmarks": benchmark_means(rows, plans),
        "published": published_scores(rows, plans),
        "seen": seen_and_unseen(rows),
        "health": workers.found_health,
        "not_judged": refused,
    }
    folder.write_json("comparison.json", comparison)
    folder.write_json("diagnosis.json", content(Facts.read(run)))
    if run.folder.exists(PAGE):
        run.folder.remove(PAGE)  # it tells of an earlier evaluation
    return {"scores": len(rows)}


def judge_class() -> Callable[..., Any]:
    """What judges; imported where it is wanted, because mteb takes seconds to load."""
    from qzhou.evaluation.judging import Judge

    return Judge


class _Worker:
    """Loads mteb where it judges, and not in the driver."""

    def __init__(
        self, judge: Callable[[], Callable[..., Any]], recipe: Recipe, run_uri: str
    ) -> None:
        self._class, self._arguments = judge, (recipe, run_uri)

    @cached_property
    def _judge(self) -> Any:
        return self._class()(*self._arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._judge, method)(*arguments)


class Workers:
    """Actors that judge, one for each encoder that the recipe wants at the same time; inside a session.

    Args:
        run: Its recipe says what is judged and by how many.
    """

    def __init__(self, run: Run) -> None:
        cluster = run.recipe.cluster
        kind = ray.remote(_Worker).options(
            **resources_for(run.recipe, "evaluation").options,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        self._actors = [
            kind.remote(judge_class, run.recipe, run.folder.uri)
            for _ in range(cluster.encode_workers)
        ]
        self.found_health: dict[str, dict[str, float]] = {}

    def plan(self) -> tuple[list[Planned], dict[str, str]]:
        found: tuple[list[Planned], dict[str, str]] = ray.get(self._actors[0].call.remote("plan"))
        return found

    def warm_up(self, candidate: Candidate) -> None:
        """Load a model everywhere."""
        ray.get([actor.call.remote("load", candidate) for actor in self._actors])

    def judged(self, queue: Queue) -> tuple[Scores, list[str]]:
        """All scores, and a sentence for each work that failed."""
        scores: Scores = {}
        failed: list[str] = []
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
                    rows = self._take(work, ray.get(done), scores)
                except Exception as error:
                    failed.append(_said(error, work))
                queue.finished(work)
                bar.advance(1, str(work), rows=rows)
        return scores, failed

    def _take(self, work: Work, found: Any, scores: Scores) -> dict[str, int]:
        """Keep what a worker found; how many items it judged, by dataset or task."""
        if work.method == "health":
            self.found_health[work.candidate.name] = found
        elif work.method == "judge":
            scores[work.candidate.name, work.plan.name] = found
            if found.again and not found.undefined:
                said = {
                    "task": work.plan.name,
                    "model": work.candidate.name,
                    "metric": found.metric,
                    "score": found.score,
                }
                line = (
                    f"evaluation: {work}: {found.metric} {found.score:.4f}, {found.seconds:.1f} s"
                )
                log_event(line, "judged", **said, seconds=found.seconds)
            if found.again:
                return {work.plan.dataset or work.plan.name: found.n}
        return {}


def _said(error: BaseException, work: Work) -> str:
    """One sentence about work that failed."""
    return f"{work}: {our_error(error) or first_line(error)}"


def _rows(
    models: Sequence[Candidate], plans: Sequence[Planned], scores: Scores, seed: int
) -> list[Row]:
    """By task, and for each its models in order."""
    found = []
    for plan in sorted(plans, key=lambda plan: (bool(plan.benchmarks), plan.name)):
        for candidate in models:
            judged = scores.get((candidate.name, plan.name))
            if judged is None or judged.undefined:
                continue
            items = judged.made_of
            limits = interval(items, seed=seed) if items else None
            score = round(judged.score, 6)
            found.append(
                Row(
                    plan.name,
                    judged.type,
                    judged.metric,
                    candidate.name,
                    score,
                    judged.n,
                    low=round(limits.low, 6) if limits else score,
                    high=round(limits.high, 6) if limits else score,
                    seen=plan.seen,
                    seconds=judged.seconds,
                )
            )
    return found


def _differences(rows: Sequence[Row], scores: Scores, seed: int) -> Iterator[Difference]:
    """Any two models, of our own the later one first: stage 2, stage 1, further models, the backbone, BM25."""
    models = models_of(rows)
    late, early = (
        [one for one in own if one in models] for own in ((STAGE2, STAGE1), (BACKBONE, BM25))
    )
    order = [*late, *(one for one in models if one not in (*late, *early)), *early]
    for task in dict.fromkeys(row.task for row in rows):
        for model, against in combinations(order, 2):
            pair = [
                scores[one, task].made_of if (one, task) in scores else None
                for one in (model, against)
            ]
            if pair[0] is not None and pair[1] is not None:
                found = difference(pair[0], pair[1], seed=seed)
                if found is not None:
                    yield Difference.of(task, model, against, found)
