"""Both stages without Ray, on ranks that ``torchrun`` started: for clusters that have a scheduler of their own.

The run's folder, its fingerprints and the model are those of
:mod:`qzhou.training.pipeline`; checkpoints are not.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from qzhou.config.recipe import Recipe
from qzhou.config.training import TrainingStageName
from qzhou.data.records import digest
from qzhou.data.storage import Folder
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.run.run import Run
from qzhou.training.node_copies import cache_folder, folder_of_node
from qzhou.training.recorder import StageRecorder
from qzhou.training.stages import made, train_stages
from qzhou.training.worker import Resume, train_worker

CHECKPOINTS, COMPLETE = "torchrun_checkpoints", "complete.json"
# other ranks wait so long for rank 0 to write the model of a stage
TIMEOUT = timedelta(hours=2)


def train(recipe: Recipe) -> None:
    """Train both stages, on every rank. Rank 0 decides what is left, and the others follow.

    Raises:
        DataError: Mining has not finished, or there is nothing to train on.
        TrainingError: A stage failed; the same command continues from its checkpoints.
    """
    with _process_group(gpu=recipe.cluster.gpu):
        if dist.get_rank() == 0:
            _lead(recipe)
            return
        while stage := _from_rank_0(None):
            _train_stage(**stage)


def _lead(recipe: Recipe) -> None:
    """Tell the other ranks which stages to train, and train with them."""
    run = with_arithmetic(Run.open(recipe))

    def train_stage(folder: Folder, stage: TrainingStageName) -> Mapping[str, int]:
        arguments = {
            "recipe": run.recipe,  # with the arithmetic that rank 0 has decided for all
            "run_folder": run.folder.uri,
            "stage": stage,
            "mined": run.manifest("mining").execution_id,
            "checkpoint": _latest(folder / CHECKPOINTS),
        }
        _train_stage(**_from_rank_0(arguments))
        return made(folder, recipe, stage)

    train_stages(run, train_stage)
    _from_rank_0({})


@contextmanager
def _process_group(*, gpu: bool) -> Iterator[None]:
    """The group of all ranks; address, rank and world size come from the environment."""
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=TIMEOUT)
    yield
    # not after an error: torchrun ends the ranks that still wait for this one
    dist.destroy_process_group()


def _from_rank_0(message: dict[str, Any] | None) -> dict[str, Any]:
    """The message of rank 0, on every rank."""
    box = [message]
    dist.broadcast_object_list(box, src=0)
    return box[0] or {}


def _train_stage(*, recipe: Recipe, run_folder: str, stage: TrainingStageName, mined: str, checkpoint: str) -> None:
    with _checkpoint_of_node(run_folder, checkpoint, mined) as local:
        train_worker(
            recipe,
            stage,
            Folder.open(run_folder),
            mined=mined,
            make_recorder=TorchrunRecorder,
            resume=Resume(local),
        )


def _checkpoint_of_node(run_folder: str, checkpoint: str, mined: str) -> AbstractContextManager[Path | None]:
    """A checkpoint on this machine, copied once a node: each rank reads its own part, and some read all."""
    if not checkpoint:
        return nullcontext()
    source = Folder.open(checkpoint)
    # another attempt at the stage, with other settings, may have left a checkpoint of the same name
    made = digest([checkpoint, source.read_json(COMPLETE)])
    place = cache_folder(Folder.open(run_folder), mined) / f"checkpoint-{made}"
    return folder_of_node(source, place, removes=os.environ["LOCAL_RANK"] == "0")


def _complete(checkpoints: Folder) -> list[str]:
    """Names of the checkpoints that every rank finished writing, oldest first."""
    names = checkpoints.folders() if checkpoints.exists() else []
    return sorted(name for name in names if (checkpoints / name).exists(COMPLETE))


def _latest(checkpoints: Folder) -> str:
    """The address of the last complete checkpoint; empty if there is none."""
    names = _complete(checkpoints)
    return (checkpoints / names[-1]).uri if names else ""


class TorchrunRecorder(StageRecorder):
    """Checkpoints go to the stage's folder. torchrun reports no preemption, and ends its ranks at once."""

    def save(self, step: int) -> None:
        """Write a checkpoint into the stage's folder."""
        self.flush()
        checkpoints = self.folder / CHECKPOINTS
        target = checkpoints / f"step_{step:09d}"
        # another number of ranks may have begun it
        if self.engine.rank == 0 and target.exists():
            target.delete()
        dist.barrier()
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as place:
            self.engine.save(Path(place), step)
            Folder.open(place).copy_to(target)
        dist.barrier()
        if self.engine.rank == 0:
            said = {"step": step, "loss": self.last["loss"], "workers": self.engine.world, "id": uuid.uuid4().hex}
            target.write_json(COMPLETE, said)
            for name in _complete(checkpoints)[: -self.recipe.training.keep_checkpoints]:
                (checkpoints / name).delete()
