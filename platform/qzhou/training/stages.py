"""The two training stages of a run, whoever starts the ranks: Ray Train (``pipeline``) or ``torchrun``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.run.models import weights_fingerprint
from qzhou.run.run import Run, Stage

StageName = Literal["stage1", "stage2"]
Work = Callable[[Folder, StageName], Mapping[str, int]]

# How fast, where and how safely it is trained: what is learned does not depend on it
PACE = {
    *(
        "workers",
        "min_workers",
        "offload_optimizer",
        "micro_batch_tokens",
        "activation_tokens",
        "gradient_checkpointing",
    ),
    *(
        "loader_threads",
        "validate_every_steps",
        "trackers",
        "save_every_steps",
        "keep_checkpoints",
        "max_failures",
    ),
}


def both_stages(run: Run, work: Work) -> Manifest:
    """Retrieval first, then everything; a stage that is finished and unchanged is skipped.

    Args:
        work: Trains one stage in its folder and says what it made.

    Raises:
        DataError: Mining has not finished.
    """
    recipe = run.recipe
    mined = run.manifest("mining").fingerprint
    shared = {
        "training": recipe.training.model_dump(exclude={"stage1", "stage2", "seed", *PACE}),
        "model": recipe.model.model_dump(),
        "weights": weights_fingerprint(recipe.model.backbone),
        "prompts": {
            dataset.name: dataclasses.astuple(dataset.prompt) for dataset in recipe.datasets
        },
        "seed": recipe.training_seed,
    }

    def stage(name: StageName, inputs: Mapping[str, str]) -> Manifest:
        return run.stage(
            Stage(
                name=f"training/{name}",
                settings=shared | {"stage": getattr(recipe.training, name).model_dump()},
                inputs=inputs,
                code_of=("qzhou.training.rank",),
            ),
            lambda folder: work(folder, name),
        )

    first = stage("stage1", {"mining": mined})
    return stage("stage2", {"mining": mined, "stage1": first.fingerprint})
