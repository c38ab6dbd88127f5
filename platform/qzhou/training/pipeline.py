"""The training stages on Ray Train: a worker per rank, checkpoints through ``ray.train.report``."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
from ray._private import ray_constants
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import our_error, session
from qzhou.config.recipe import Recipe
from qzhou.config.training import TrainingSection
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import QzhouError, TrainingError
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event
from qzhou.training.notes import Notes
from qzhou.training.stages import StageName, both_stages

START_TIMEOUT_S = "900"  # Ray's 60 s is too short while nodes come up or DeepSpeed compiles


def train(recipe: Recipe) -> Manifest:
    """Both stages: retrieval first, then everything.

    Raises:
        DataError: Mining has not finished, or there is nothing to train on.
        TrainingError: A stage failed for good; its checkpoints are kept and the same job continues.
    """
    run = Run.open(recipe)
    return both_stages(run, partial(_work, run))


def export(recipe: Recipe) -> Manifest:
    """Put the trained model where people and servers look for it, and check it against sentence-transformers.

    Raises:
        DataError: Training has not finished.
        TrainingError: The exported folder does not give the encoder's vectors.
    """
    run = Run.open(recipe)
    return run.stage(
        Stage(
            name="model",
            settings={"model": recipe.model.model_dump(), "prompts": recipe.prompts},
            inputs={"stage2": run.manifest("training/stage2").fingerprint},
            code_of=("qzhou.training.pipeline",),
        ),
        lambda folder: _export(run, folder),
    )


def _work(run: Run, folder: Folder, stage: StageName) -> dict[str, int]:
    training = run.recipe.training
    settings = {
        "recipe": with_arithmetic(run).recipe,
        "stage": stage,
        "run_folder": run.folder.uri,
        "mined": run.manifest("mining").execution_id,
    }
    # it repeats each line that workers print
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)
    with session(resources_for(run.recipe, "training")):
        stop = _Stop(folder.uri)
        stop.forget()
        trainer = _Trainer(
            _rank,
            train_loop_config=settings,
            torch_config=TorchConfig(timeout_s=1800),
            scaling_config=_scaling(run.recipe),
            run_config=ray.train.RunConfig(
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
                name="checkpoints",  # the same name again continues from its latest checkpoint
                storage_path=folder.uri,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=training.keep_checkpoints),
                failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            ),
        )
        trainer.stop = stop
        try:
            with _interruptible(), _own_dashboard():
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            if our_error(error):
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise TrainingError(
                f"{stage} failed: {lines[-1].strip()}\n       The workers' traceback is above. "
                "The same job continues from the last checkpoint."
            ) from error
        if stop.is_asked():
            raise KeyboardInterrupt
    return {"steps": int(result.metrics["step"])}


class _Stop:
    """How all ranks learn, after the same step, that somebody wants the stage to end with a checkpoint.

    The driver asks. Rank 0 hears it at the end of a step and names the next one, and every rank looks at the end of
    each: they meet in its gradients, so nobody can have passed the named step before the name was there.

    Args:
        folder: Of the stage.
    """

    def __init__(self, folder: str) -> None:
        self._asked, self._last = (
            f"qzhou/{what}/{folder}".encode() for what in ("stop", "last_step")
        )

    def forget(self) -> None:
        for key in (self._asked, self._last):
            _internal_kv_del(key)

    def ask(self) -> None:
        _internal_kv_put(self._asked, b"1")

    def is_asked(self) -> bool:
        return bool(_internal_kv_get(self._asked))

    def is_after(self, step: int, rank: int) -> bool:
        """Whether ``step`` was the last one; for a rank at its end."""
        named = _internal_kv_get(self._last)
        if rank == 0 and named is None and self.is_asked():
            _internal_kv_put(self._last, str(step + 1).encode())
        return bool(named == str(step).encode())


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray's has no types
    """Ctrl-C, which is what stops a job too, asks for a checkpoint; the next one ends training as Ray does."""

    stop: _Stop

    def _register_sigint_handler(self, controller: Any) -> None:
        super()._register_sigint_handler(controller)
        at_once = signal.getsignal(signal.SIGINT)

        def resources_for(*_: object) -> None:
            signal.signal(signal.SIGINT, at_once)
            self.stop.ask()
            line = "training: stops after a checkpoint of the next step; Ctrl-C again ends it at once, without one"
            log_event(line, "stopping", level="warning")

        signal.signal(signal.SIGINT, resources_for)


def _scaling(recipe: Recipe) -> ray.train.ScalingConfig:
    asked = resources_for(recipe, "training")
    return ray.train.ScalingConfig(
        num_workers=_workers(recipe.training),
        use_gpu=recipe.cluster.gpu,
        resources_per_worker={
            name: amount for name, amount in asked.bundle.items() if ":" not in name
        },
        accelerator_type=asked.accelerator_type or None,
        label_selector=dict(asked.labels) or None,
    )


def _workers(training: TrainingSection) -> int | tuple[int, int]:
    """How many ranks; from fewest to most where training may go on with fewer."""
    fewest = training.min_workers or training.workers
    return training.workers if fewest == training.workers else (fewest, training.workers)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as everywhere else: Ray Train's own handler ends the process without a word, and stays for good."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _own_dashboard() -> Iterator[None]:
    """Have Ray Train ask this cluster's dashboard whether its controller lives.

    Left alone it asks the cluster that ``ray start`` last left a note of on this machine. Where that one is another, or
    gone, every training would end with twelve seconds of waiting and a traceback.
    """
    name = ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE
    place = _internal_kv_get(
        ray_constants.DASHBOARD_ADDRESS, namespace=ray_constants.KV_NAMESPACE_DASHBOARD
    )
    if place is None or name in os.environ:
        yield
        return
    ENV_VARS_TO_PROPAGATE.add(name)
    os.environ[name] = f"http://{place.decode()}"
    try:
        yield
    finally:
        del os.environ[name]


def _export(run: Run, folder: Folder) -> dict[str, int]:
    from qzhou.encoder.export import checked_parity

    recipe = run.recipe
    with (run.folder / "training" / "stage2" / "model").local_copy() as trained:
        folder.upload(trained)
        lowest = checked_parity(
            trained, name=folder.uri, max_tokens=recipe.model.max_document_tokens
        )
        config = json.loads((trained / "config.json").read_text("utf-8"))
    line = (
        f"model: SentenceTransformer and the encoder agree in float32 (lowest cosine {lowest:.6f})"
    )
    log_event(line, "exported", lowest_cosine=lowest)
    return {"dimensions": int(config["hidden_size"])}


def _rank(settings: dict[str, Any]) -> None:
    """What each worker does; an error of ours is left to the driver's one message."""
    from qzhou.training.rank import (
        train_rank,  # loads torch, which the driver and Ray Train's controller can do without
    )

    export_metrics()
    recipe: Recipe = settings["recipe"]
    name: StageName = settings["stage"]
    run_folder, checkpoint = Folder.open(settings["run_folder"]), ray.train.get_checkpoint()
    try:
        with checkpoint.as_directory() if checkpoint else nullcontext() as place:
            train_rank(
                recipe,
                name,
                run_folder,
                mined=settings["mined"],
                keeper_of=lambda engine, first_step: _Keeper(
                    recipe, run_folder / "training" / name, engine, first_step
                ),
                checkpoint=Path(place) if place else None,
            )
    except QzhouError:
        # it prints every traceback
        logging.getLogger("ray.train.v2._internal.util").disabled = True
        raise


class _Keeper(Notes):
    """Notes to the stage's folder, checkpoints to Ray Train."""

    _left = False

    def stopping(self, step: int) -> bool:
        return _Stop(self.folder.uri).is_after(step, self.engine.rank)

    def leaving(self) -> bool:
        if self._left or ray.train.get_preemption_info() is None:
            return False
        self._left = True
        log_event(
            "training: a node is about to leave the cluster; a checkpoint is written now",
            "node_leaves",
            level="warning",
        )
        return True

    def save(self, step: int) -> None:
        self.keep()
        place = tempfile.mkdtemp()  # Ray uploads it while training goes on, and removes it
        self.engine.save(Path(place), step)
        ray.train.report(
            {"step": step, "loss": self.last["loss"]},
            checkpoint=ray.train.Checkpoint.from_directory(place),
            checkpoint_dir_name=f"step_{step:06d}",
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
