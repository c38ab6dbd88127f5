"""Both stages without Ray, on ranks that ``torchrun`` started: for clusters that have a scheduler of their own.

The run's folder, its fingerprints and the model are those of :mod:`qzhou.training.pipeline`; checkpoints are not.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.run.run import Run
from qzhou.training.notes import Notes
from qzhou.training.rank import train_rank
from qzhou.training.stages import StageName, both_stages

CHECKPOINTS, COMPLETE = "torchrun_checkpoints", "complete.json"
PATIENCE = timedelta(hours=2)  # for rank 0 to write the model of a stage


def train(recipe: Recipe) -> None:
    """Both stages; every rank calls it. Rank 0 decides what is left to train, and the others follow.

    Raises:
        DataError: Mining has not finished, or there is nothing to train on.
        TrainingError: A stage failed; its checkpoints are kept and the same command continues.
    """
    with _process_group(gpu=recipe.cluster.gpu):
        if dist.get_rank():
            while told := _shared(None):
                _train(recipe, **told)
            return
        run = Run.open(recipe)

        def work(folder: Folder, stage: StageName) -> Mapping[str, int]:
            told = {
                "run_folder": run.folder.uri,
                "stage": stage,
                "mined": run.manifest("mining").execution_id,
            }
            _train(recipe, **_shared(told | {"checkpoint": _latest(folder / CHECKPOINTS)}))
            return {"steps": getattr(recipe.training, stage).steps}

        both_stages(run, work)
        _shared({})


@contextmanager
def _process_group(*, gpu: bool) -> Iterator[None]:
    """Of all ranks; address, rank and world size come from the environment."""
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    yield
    # not after an error: torchrun ends the ranks that still wait for this one
    dist.destroy_process_group()


def _shared(said: dict[str, Any] | None) -> dict[str, Any]:
    """What rank 0 says, on every rank."""
    box = [said]
    dist.broadcast_object_list(box, src=0)
    return box[0] or {}


def _train(
    recipe: Recipe, *, run_folder: str, stage: StageName, mined: str, checkpoint: str
) -> None:
    folder = Folder.open(run_folder)
    with Folder.open(checkpoint).local_copy() if checkpoint else nullcontext() as place:
        train_rank(
            recipe,
            stage,
            folder,
            mined=mined,
            keeper_of=lambda engine, first_step: _Keeper(
                recipe, folder / "training" / stage, engine, first_step
            ),
            checkpoint=place,
        )


def _complete(checkpoints: Folder) -> list[str]:
    """Names of the checkpoints that every rank finished writing, oldest first."""
    names = checkpoints.folders() if checkpoints.exists() else []
    return sorted(name for name in names if (checkpoints / name).exists(COMPLETE))


def _latest(checkpoints: Folder) -> str:
    """Where to go on; empty: at the beginning."""
    names = _complete(checkpoints)
    return (checkpoints / names[-1]).uri if names else ""


class _Keeper(Notes):
    """Notes and checkpoints to the stage's folder."""

    def leaving(self) -> bool:
        return False  # torchrun is not told

    def stopping(self, _: int) -> bool:
        return False  # it ends its ranks at once

    def save(self, step: int) -> None:
        self.keep()
        checkpoints = self.folder / CHECKPOINTS
        target = checkpoints / f"step_{step:09d}"
        if self.engine.rank == 0 and target.exists():  # another number of ranks may have begun it
            target.delete()
        dist.barrier()
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as place:
            self.engine.save(Path(place), step)
            Folder.open(place).copy_to(target)
        dist.barrier()
        if self.engine.rank == 0:
            target.write_json(
                COMPLETE, {"step": step, "loss": self.last["loss"], "workers": self.engine.world}
            )
            for name in _complete(checkpoints)[: -self.recipe.training.keep_checkpoints]:
                (checkpoints / name).delete()
