"""Training stages on Ray Train: a worker per rank, checkpoints by ``ray.train.report``."""

import logging
import os
import signal
import tempfile
import threading
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from qzhou.cluster.metrics import export_metrics
from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import our_error, session
from qzhou.config.recipe import Recipe
from qzhou.config.training import TrainingSection, TrainingStageName
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import DataError, QzhouError, RecipeError, SetupError, TrainingError
from qzhou.run.run import Run
from qzhou.telemetry.events import log_event
from qzhou.training.recorder import StageRecorder
from qzhou.training.signals import Signals
from qzhou.training.stages import made, train_stages

# Ray's 60 s is too short while nodes start or DeepSpeed compiles
START_TIMEOUT_S = "900"
PATIENCE_S = 1800  # of ranks that wait for each other
# errors that training again would only repeat; a storage or a model hub may have been away for a moment
REPEATED = (TrainingError, DataError, RecipeError, SetupError)


def train(recipe: Recipe) -> Manifest:
    """The manifest of the second stage, after both: retrieval first, then all tasks.

    Raises:
        DataError: Mining has not finished, or there is nothing to train on.
        TrainingError: A stage failed for good; the same job continues from checkpoints.
    """
    run = with_arithmetic(Run.open(recipe))
    return train_stages(run, partial(_train_stage, run))


def _train_stage(run: Run, folder: Folder, stage: TrainingStageName) -> dict[str, int]:
    settings = {
        "recipe": run.recipe,
        "stage": stage,
        "run_folder": run.folder.uri,
        "mined": run.manifest("mining").execution_id,
    }
    set_up_ray_train()
    with session(resources_for(run.recipe, "training")):
        signals = Signals()
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config=settings | {"signals": signals},
            torch_config=TorchConfig(timeout_s=PATIENCE_S),
            scaling_config=scaling_config(run.recipe),
            run_config=_run_config(folder, run.recipe.training),
        )
        try:
            with signals.printed():
                _fit(trainer, signals)
        except ray.train.TrainingFailedError as error:
            if our_error(error):
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise TrainingError(
                f"{stage} failed: {lines[-1].strip()}\n       The workers' traceback is above. "
                "The same job continues from the last checkpoint."
            ) from error
        if failure := signals.failure():
            raise failure
        if signals.was_requested:
            raise KeyboardInterrupt
    return made(folder, run.recipe, stage)


def set_up_ray_train() -> None:
    """Ray Train's settings of the environment, which the user's own precede."""
    # Ray's patch repeats each line that workers print
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)


def _fit(trainer: TorchTrainer, signals: Signals) -> ray.train.Result:
    """Train in a thread of its own, so that Ctrl-C, which also stops a job, is for us and not for Ray Train.

    The first one ends training with a checkpoint, the next one at once.
    """
    done: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            done.set_exception(error)

    threading.Thread(target=fit, daemon=True, name="training").start()
    if threading.current_thread() is not threading.main_thread():
        return done.result()
    before = signal.getsignal(signal.SIGINT)

    def request_stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signals.request_stop()
        line = "training: stops after a checkpoint of the next step; Ctrl-C again ends it at once, without one"
        log_event(line, "stopping", level="warning")

    signal.signal(signal.SIGINT, request_stop)
    try:
        return done.result()
    finally:
        signal.signal(signal.SIGINT, before)


def _run_config(folder: Folder, training: TrainingSection) -> ray.train.RunConfig:
    return ray.train.RunConfig(
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        name="checkpoints",  # the same name again continues from its latest checkpoint
        storage_path=folder.uri,
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=training.keep_checkpoints),
        failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
    )


def scaling_config(recipe: Recipe) -> ray.train.ScalingConfig:
    """The workers that train, and what each of them gets."""
    asked = resources_for(recipe, "training")
    most = recipe.training.workers
    resources = {name: amount for name, amount in asked.bundle.items() if ":" not in name}
    return ray.train.ScalingConfig(
        num_workers=most if asked.workers == most else (asked.workers, most),
        use_gpu=recipe.cluster.gpu,
        resources_per_worker=resources,
        accelerator_type=asked.accelerator_type or None,
        label_selector=dict(asked.labels) or None,
    )


def _train_worker(settings: dict[str, Any]) -> None:
    """Train one rank; the driver prints the message of an error of ours."""
    # the driver and Ray Train's controller can do without
    import torch

    from qzhou.training.worker import Resume, train_worker

    export_metrics()
    signals: Signals = settings["signals"]
    signals.speak()
    if signals.failure():
        return  # the driver knows why, and Ray Train starts the ranks again whatever the reason
    halvings = signals.halvings()
    logging.getLogger().setLevel(logging.WARNING)  # that a rank has reported a checkpoint is no news
    checkpoint = ray.train.get_checkpoint()
    try:
        with checkpoint.as_directory() if checkpoint else nullcontext() as local:
            train_worker(
                settings["recipe"],
                settings["stage"],
                Folder.open(settings["run_folder"]),
                mined=settings["mined"],
                make_recorder=partial(RayRecorder, signals),
                resume=Resume(Path(local) if local else None, halvings),
            )
    except QzhouError as error:
        # it prints every traceback
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        if isinstance(error, REPEATED):
            signals.fail(error)
        raise
    except torch.OutOfMemoryError:
        signals.halve(halvings)
        line = "training: a GPU has no memory left; what ranks hold is halved where they start again"
        log_event(line, "out_of_memory", level="warning")
        raise


class RayRecorder(StageRecorder):
    """Checkpoints go to Ray Train, which also reports preemption."""

    def __init__(self, signals: Signals, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._signals, self._was_preempted = signals, False

    def stop_requested(self, step: int) -> bool:
        """Whether the driver was told to stop; the same answer on every rank."""
        return self._signals.is_last_step(step, self.engine.rank)

    def preempted(self) -> bool:
        """Whether Ray Train reports that a node is about to leave; True once."""
        if self._was_preempted or ray.train.get_preemption_info() is None:
            return False
        self._was_preempted = True
        line = "training: a node is about to leave the cluster; a checkpoint is written now"
        log_event(line, "node_leaves", level="warning")
        return True

    def save(self, step: int) -> None:
        """Report a checkpoint to Ray Train."""
        self.flush()
        # Ray uploads this folder while training goes on, and removes it
        local = tempfile.mkdtemp()
        self.engine.save(Path(local), step)
        ray.train.report(
            {"step": step, "loss": self.last["loss"]},
            checkpoint=ray.train.Checkpoint.from_directory(local),
            checkpoint_dir_name=f"step_{step:06d}",
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
