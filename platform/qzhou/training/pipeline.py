"""Training stages on Ray Train: a worker per rank, checkpoints by ``ray.train.report``."""

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

from qzhou.cluster.metrics import export_metrics
from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import our_error, session
from qzhou.config.recipe import Recipe
from qzhou.config.training import TrainingSection, TrainingStageName
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import QzhouError, TrainingError
from qzhou.run.run import Run
from qzhou.telemetry.events import log_event
from qzhou.training.recorder import StageRecorder
from qzhou.training.stages import train_stages

# Ray's 60 s is too short while nodes start or DeepSpeed compiles
START_TIMEOUT_S = "900"


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
    # Ray's patch repeats each line that workers print
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)
    with session(resources_for(run.recipe, "training")):
        trainer = _Trainer(
            _train_worker,
            train_loop_config=settings,
            torch_config=TorchConfig(timeout_s=1800),
            scaling_config=_scaling(run.recipe),
            run_config=_run_config(folder, run.recipe.training),
        )
        trainer.stop = _StopSignal(folder.uri)
        trainer.stop.clear()
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
        if trainer.stop.is_requested():
            raise KeyboardInterrupt
    return {"steps": int(result.metrics["step"])}


def _run_config(folder: Folder, training: TrainingSection) -> ray.train.RunConfig:
    return ray.train.RunConfig(
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        name="checkpoints",  # the same name again continues from its latest checkpoint
        storage_path=folder.uri,
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=training.keep_checkpoints),
        failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
    )


class _StopSignal:
    """A request to end a stage with a checkpoint, which reaches all ranks at the same step.

    1. The driver sets the request. 2. Rank 0 sees it at the end of a step and names the
    next step as the last one. 3. Every rank looks for that name at the end of each step.
    Ranks meet in the gradients of a step, so no rank can have passed the named step before
    the name was there.

    Args:
        folder: The address of the stage's folder.
    """

    def __init__(self, folder: str) -> None:
        self._requested = f"qzhou/stop/{folder}".encode()
        self._last_step = f"qzhou/last_step/{folder}".encode()

    def clear(self) -> None:
        _internal_kv_del(self._requested)
        _internal_kv_del(self._last_step)

    def request(self) -> None:
        _internal_kv_put(self._requested, b"1")

    def is_requested(self) -> bool:
        return bool(_internal_kv_get(self._requested))

    def is_last_step(self, step: int, rank: int) -> bool:
        """Whether the stage ends after ``step``; a rank asks at the end of the step."""
        last = _internal_kv_get(self._last_step)
        if rank == 0 and last is None and self.is_requested():
            _internal_kv_put(self._last_step, str(step + 1).encode())
        return bool(last == str(step).encode())


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray's has no types
    """A trainer that answers Ctrl-C, which also stops a job, with a checkpoint; the next Ctrl-C ends it at once."""

    stop: _StopSignal

    def _register_sigint_handler(self, controller: Any) -> None:
        super()._register_sigint_handler(controller)
        abort = signal.getsignal(signal.SIGINT)

        def request_stop(*_: object) -> None:
            signal.signal(signal.SIGINT, abort)
            self.stop.request()
            line = "training: stops after a checkpoint of the next step; Ctrl-C again ends it at once, without one"
            log_event(line, "stopping", level="warning")

        signal.signal(signal.SIGINT, request_stop)


def _scaling(recipe: Recipe) -> ray.train.ScalingConfig:
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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt; Ray Train's handler ends the process silently, and would stay for good."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _own_dashboard() -> Iterator[None]:
    """Make Ray Train look for its controller on the dashboard of this cluster.

    By default it asks the cluster that ``ray start`` last recorded on this machine. If that
    is another cluster, or a dead one, every training ends with twelve seconds of waiting
    and a traceback.
    """
    name = ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE
    address = _internal_kv_get(ray_constants.DASHBOARD_ADDRESS, namespace=ray_constants.KV_NAMESPACE_DASHBOARD)
    if address is None or name in os.environ:
        yield
        return
    ENV_VARS_TO_PROPAGATE.add(name)
    os.environ[name] = f"http://{address.decode()}"
    try:
        yield
    finally:
        del os.environ[name]


def _train_worker(settings: dict[str, Any]) -> None:
    """Train one rank; the driver prints the message of an error of ours."""
    # loads torch, which the driver and Ray Train's controller can do without
    from qzhou.training.worker import train_worker

    export_metrics()
    checkpoint = ray.train.get_checkpoint()
    try:
        with checkpoint.as_directory() if checkpoint else nullcontext() as local:
            train_worker(
                settings["recipe"],
                settings["stage"],
                Folder.open(settings["run_folder"]),
                mined=settings["mined"],
                recorder_type=RayRecorder,
                checkpoint=Path(local) if local else None,
            )
    except QzhouError:
        # this logger prints every traceback
        logging.getLogger("ray.train.v2._internal.util").disabled = True
        raise


class RayRecorder(StageRecorder):
    """Checkpoints go to Ray Train, which also reports preemption."""

    _was_preempted = False

    def stop_requested(self, step: int) -> bool:
        """Whether the driver was told to stop; the same answer on every rank."""
        return _StopSignal(self.folder.uri).is_last_step(step, self.engine.rank)

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
