"""The two training stages of a run, for whoever starts the ranks: Ray Train (``pipeline``) or ``torchrun``."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from qzhou.config.recipe import Recipe
from qzhou.config.training import TrainingStageName
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.run.files import TRAINING_STAGES
from qzhou.run.models import weights_fingerprint
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event

BEST = "best.json"  # in a stage's folder: its best validation so far
# settings of speed, place and safety; what a model learns does not depend on them
SPEED_SETTINGS = {
    "workers", "min_workers", "zero_stage", "offload_optimizer", "micro_batch_tokens",
    "min_all_reduce_gb_per_s", "activation_tokens", "gradient_checkpointing", "loader_threads",
    "validate_every_steps", "trackers", "save_every_steps", "keep_checkpoints", "max_failures",
}  # fmt: skip


def learning_settings(recipe: Recipe, stage: TrainingStageName) -> dict[str, dict[str, Any]]:
    """The settings of a recipe that what a stage learns depends on: table of the recipe -> its settings."""
    speed = SPEED_SETTINGS - ({"validate_every_steps"} if recipe.training.select == "best" else set())
    both = recipe.training.model_dump(exclude={"stage1", "stage2", "seed", *speed})
    own = {stage: getattr(recipe.training, stage).model_dump()}
    return {"training": both | own, "model": recipe.model.settings_for(recipe.training.distillation.teacher)}


def made(folder: Folder, recipe: Recipe, stage: TrainingStageName) -> dict[str, int]:
    """What a finished stage reports: its steps, and how many of them its weights have seen, if those were chosen."""
    steps = int(getattr(recipe.training, stage).steps)
    if not folder.exists(BEST):
        return {"steps": steps}
    best = folder.read_json(BEST)
    return {"steps": int(best.get("trained", steps)), "of them in the kept weights": int(best["step"])}


def train_stages(run: Run, train_stage: Callable[[Folder, TrainingStageName], Mapping[str, int]]) -> Manifest:
    """The manifest of stage 2; a stage that is finished and unchanged is skipped, and so is stage 1 without steps.

    Args:
        run: Whose mined examples are trained on.
        train_stage: Trains a stage in its folder and returns what it made: name -> count.

    Raises:
        DataError: Mining has not finished.
    """
    recipe = run.recipe
    mined = run.manifest("mining").fingerprint
    shared = {
        "weights": weights_fingerprint(recipe.model.backbone),
        "prompts": {one.name: dataclasses.astuple(one.prompt) for one in recipe.datasets},
        "seed": recipe.training_seed,
    }

    def stage(name: TrainingStageName, inputs: Mapping[str, str]) -> Manifest:
        return run.stage(
            Stage(
                name=TRAINING_STAGES[name],
                settings=shared | learning_settings(recipe, name),
                inputs=inputs,
                code_of=("qzhou.training.worker",),
                # it decides where metrics and checkpoints go, and no weight
                without=("qzhou.training.recorder",),
            ),
            lambda folder: train_stage(folder, name),
        )

    inputs = {"mining": mined}
    if "stage1" in recipe.training.stages:
        inputs = inputs | {"stage1": stage("stage1", inputs).fingerprint}
    else:
        line = "training/stage1: left out (training.stage1.steps is 0); stage 2 starts from the backbone"
        log_event(line, "stage_left_out")
    return stage("stage2", inputs)
