"""An experiment: its trials side by side as far as the cluster carries them, else one after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qzhou.cluster.relay import Relay
from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import our_error, session
from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.encoder.model_check import check_models
from qzhou.errors import QzhouError, TrainingError, first_line, from_json, to_json
from qzhou.evaluation.pipeline import evaluate
from qzhou.experiments.page import results_page
from qzhou.experiments.results import Comparison, Outcome, as_json, compared, table
from qzhou.experiments.settings import TrialGrid
from qzhou.mining.pipeline import mine
from qzhou.run.files import TRAINING_STAGES
from qzhou.run.run import Run
from qzhou.synthesis.pipeline import synthesize
from qzhou.telemetry.events import log_event, print_block
from qzhou.training.pipeline import train
from qzhou.transform.pipeline import transform

HEADROOM_CPUS = 1  # of a trial, for the tasks that read while its workers hold theirs
# of a trial whose process died, for want of memory say; it goes on from its finished stages
RESTARTS = 2


def run_experiment(grid: TrialGrid) -> list[Comparison]:
    """Run every trial, compare, and leave ``results.json`` and ``results.html`` in the experiment's folder.

    A trial is a run folder of its own. What two trials would make alike is made by one of
    them (:mod:`qzhou.run.sharing`), and finished trials only say so: the same command goes
    on after any death.

    Raises:
        QzhouError: Trials failed; the others are finished and compared.
    """
    said: set[str] = set()
    trials = []
    for trial in grid.trials:
        # what is said of one backbone is said once
        backbone = trial.recipe.model.model_dump_json()
        trials.append(replace(trial, recipe=check_models(trial.recipe, quiet=backbone in said)))
        said.add(backbone)
    grid = replace(grid, trials=tuple(trials))
    folder = Folder.open(grid.storage).create()
    with session():
        failed = _run_trials(grid)
    outcomes = [
        Outcome.read(one.variant, one.seed, folder / one.name) for one in grid.trials if one.name not in failed
    ]
    comparisons = compared(grid.experiment, outcomes)
    folder.write_json("results.json", as_json(grid.experiment, comparisons, outcomes))
    folder.write_bytes("results.html", results_page(grid.experiment.name, comparisons).encode())
    for comparison in comparisons:
        print_block(f"\n{table(comparison)}", "experiment", "comparison")
    block = f"\nresults: {folder.uri}/results.json, {folder.uri}/results.html"
    print_block(block, "experiment", "results", folder=folder.uri)
    if failed:
        raise combined_error(failed, len(grid.trials))
    return comparisons


def max_parallel_trials(recipes: Sequence[Recipe], resources: Mapping[str, float]) -> int:
    """How many trials a cluster carries at the same time, at least one.

    A stage takes its actors one by one, so two trials that both got half of what they need
    would wait for ever: a trial begins only where there is room for the hungriest stage of
    every trial that runs.

    Args:
        recipes: Of all trials.
        resources: Of the cluster, as Ray names them.
    """
    hungriest: dict[str, float] = {}
    for recipe in recipes:
        for asked, workers in (
            (resources_for(recipe, "mining"), recipe.cluster.encode_workers),
            (resources_for(recipe, "training"), recipe.training.workers),
        ):
            for name, amount in asked.bundle.items():
                hungriest[name] = max(hungriest.get(name, 0), amount * workers)
    hungriest["CPU"] += HEADROOM_CPUS
    return max(1, int(min(resources.get(name, 0) // amount for name, amount in hungriest.items())))


def _run_trials(grid: TrialGrid) -> dict[str, QzhouError]:
    """The error of each trial that failed, by the name of the trial."""
    waiting = {one.name: one.recipe for one in grid.trials}
    most = grid.experiment.trials_at_once or max_parallel_trials(list(waiting.values()), ray.cluster_resources())
    line = f"experiment: {grid.experiment.name}: {len(waiting)} trials, {most} at a time"
    log_event(line, "trials", trials=len(waiting), at_a_time=most)
    place = _Place()
    # a process on the node that the command was given on, as for any job; its stages ask for what they need
    here = NodeAffinitySchedulingStrategy(place.node, soft=False)
    process = ray.remote(num_cpus=0, max_retries=RESTARTS, scheduling_strategy=here)(_whole_run)
    running: dict[Any, str] = {}
    failed = {}
    with Relay().printed() as relay:
        while waiting or running:
            while waiting and len(running) < most:
                name = next(iter(waiting))
                running[process.remote(waiting.pop(name), place, relay)] = name
            (done,), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(done)
            try:
                if said := ray.get(done):
                    failed[name] = from_json(said)
            except ray.exceptions.RayError as error:
                failed[name] = our_error(error) or TrainingError(first_line(error))
    return failed


class _Place:
    """Where the command was given: what its relative paths and variables mean to trials."""

    def __init__(self) -> None:
        self.node = ray.get_runtime_context().get_node_id()
        self.folder = str(Path.cwd())
        self.environment = dict(os.environ)

    def enter(self) -> None:
        os.chdir(self.folder)
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)


def _whole_run(recipe: Recipe, started_in: _Place, relay: Relay) -> str:
    """A trial's stages that its scores need; errors meant for people come back as text."""
    started_in.enter()
    relay.speak()
    name = recipe.run.name
    log_event(f"experiment: {name}: started", "trial_started", trial=name)
    try:
        with session():
            transform(recipe, _task_texts(recipe))
            synthesize(recipe)
            mine(recipe)
            train(recipe)
            evaluate(recipe)
    except QzhouError as error:
        log_event(f"experiment: {name}: failed: {error}", "trial_failed", level="error", trial=name)
        return to_json(error)
    run = Run.open(recipe)
    for stage in TRAINING_STAGES.values():
        # nothing goes on from them, and they are many
        (run.folder / stage / "checkpoints").delete()
    log_event(f"experiment: {name}: finished", "trial_done", trial=name)
    return ""


def _task_texts(recipe: Recipe) -> Any:
    if not recipe.transform.contamination.tasks:
        return None
    from qzhou.evaluation.judge.mteb_tasks import task_texts  # mteb takes seconds to load

    return task_texts


def combined_error(failed: Mapping[str, QzhouError], trials: int) -> QzhouError:
    """One error for all trials that failed, of their kind if that is one; those that failed alike are named once.

    Args:
        failed: Trial -> its error; at least one.
        trials: How many there are in all.
    """
    alike: dict[str, list[str]] = {}
    for name, error in failed.items():
        alike.setdefault(str(error), []).append(name)
    told = "".join(f"\n       {', '.join(names)}: {said}" for said, names in alike.items())
    kinds = {type(error) for error in failed.values()}
    kind = kinds.pop() if len(kinds) == 1 else TrainingError
    return kind(f"{len(failed)} of {trials} trials failed; the same command goes on with them:{told}")
