"""Where the metrics of a stage go: ``metrics.jsonl``, dashboards, and the trackers that the recipe names."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qzhou.config.training import Tracker
from qzhou.data.records import digest
from qzhou.data.storage import Folder
from qzhou.errors import SetupError
from qzhou.run.files import complete_lines
from qzhou.telemetry.metrics import (
    TRAINING_GRADIENT,
    TRAINING_LAST_STEP,
    TRAINING_LOSS,
    TRAINING_MEMORY,
    TRAINING_PADDING,
    TRAINING_RATE,
    TRAINING_STEP,
    TRAINING_STEPS,
    TRAINING_TOKENS,
    TRAINING_WAIT,
    measure,
)

Metrics = Mapping[str, Any]
METRICS_FILE = "metrics.jsonl"
# name in metrics.jsonl -> metric of the dashboards, and how many of its units are one of ours
DASHBOARD_METRICS = {
    "tokens": (TRAINING_TOKENS, 1),
    "seconds": (TRAINING_STEP, 1),
    "padding_share": (TRAINING_PADDING, 1),
    "loader_wait_share": (TRAINING_WAIT, 1),
    "gradient_norm": (TRAINING_GRADIENT, 1),
    "learning_rate": (TRAINING_RATE, 1),
    "memory_gb": (TRAINING_MEMORY, 1e9),
}
STAGE_TAG = "qzhou_stage"  # of an MLflow run: a digest of its folder and settings


@dataclass(frozen=True, slots=True)
class Sink:
    """Takes the metrics of one rank, one step after the other.

    Attributes:
        log: Records what one step did; ``metrics["step"]`` says which.
        flush: Makes durable what was logged; does nothing where each step is sent at once.
    """

    log: Callable[[Metrics], None]
    flush: Callable[[], None] = lambda: None


class MetricsFile:
    """``metrics.jsonl`` of a stage: one line for each step, also after restarts.

    On local filesystems a line is appended at the end of its step, so that ``tail -f``
    follows the training. Object stores cannot append: there the whole file is written at
    each checkpoint.
    """

    def __init__(self, folder: Folder, first_step: int) -> None:
        """Drop the lines of steps from ``first_step`` on, which an earlier attempt did after its last checkpoint."""
        self._folder = folder
        before = complete_lines(folder, METRICS_FILE)
        self._lines = [line for line in before if json.loads(line)["step"] < first_step]
        if folder.is_local:
            self._write()

    def log(self, metrics: Metrics) -> None:
        """Append the line of one step."""
        line = json.dumps(dict(metrics))
        if not self._folder.is_local:
            self._lines.append(line)
            return
        with Path(self._folder.path, METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def flush(self) -> None:
        """Write the whole file where lines cannot be appended."""
        if not self._folder.is_local:
            self._write()

    def _write(self) -> None:
        content = "".join(line + "\n" for line in self._lines)
        self._folder.write_bytes(METRICS_FILE, content.encode())


def open_sinks(
    trackers: tuple[Tracker, ...],
    folder: Folder,
    *,
    run_name: str,
    settings: Mapping[str, Any],
    first_step: int,
    scratch: Path,
) -> list[Sink]:
    """``metrics.jsonl``, the dashboards and the trackers.

    Trackers show the settings beside the curves; those that write files use ``scratch``, a
    local folder, where the stage's folder is remote. ``first_step`` is the step with which
    this attempt begins.

    Raises:
        SetupError: A tracker is not installed.
    """
    known: dict[Tracker, Callable[[], Sink]] = {
        "tensorboard": lambda: _tensorboard(folder, first_step, scratch),
        "wandb": lambda: _wandb(run_name, folder, settings),
        "mlflow": lambda: _mlflow(run_name, folder, settings),
    }
    file = MetricsFile(folder, first_step)
    sinks = [Sink(file.log, file.flush), _dashboard(folder.name)]
    for tracker in trackers:
        try:
            sinks.append(known[tracker]())
        except ImportError as error:
            raise SetupError(
                f"training.trackers names {tracker}, which cannot be imported: {error}. pip install 'qzhou[trackers]'"
            ) from None
    return sinks


def _dashboard(stage: str) -> Sink:
    """The metrics that Ray exports while a stage trains."""

    def log(metrics: Metrics) -> None:
        measure(TRAINING_LOSS, metrics["loss"], stage=stage, task=metrics["task"])
        for name, (metric, unit) in DASHBOARD_METRICS.items():
            if name in metrics:
                measure(metric, metrics[name] * unit, stage=stage)
        measure(TRAINING_STEPS, 1, stage=stage)
        measure(TRAINING_LAST_STEP, time.time(), stage=stage)

    return Sink(log)


def _tensorboard(folder: Folder, first_step: int, scratch: Path) -> Sink:
    """Event files in ``tensorboard/`` of the stage; they are uploaded at checkpoints where the folder is remote."""
    from torch.utils.tensorboard import SummaryWriter

    target = folder / "tensorboard"
    local = Path(target.path) if folder.is_local else scratch
    writer = SummaryWriter(str(local), purge_step=first_step or None)

    def log(metrics: Metrics) -> None:
        for name, value in _curves(metrics).items():
            writer.add_scalar(name, value, metrics["step"])

    def flush() -> None:
        writer.flush()
        if not folder.is_local:
            target.upload(local)

    return Sink(log, flush)


def _wandb(run_name: str, folder: Folder, settings: Mapping[str, Any]) -> Sink:
    """A run of the project ``qzhou``; WANDB_MODE, WANDB_PROJECT and the API key come from the environment."""
    import wandb

    run = wandb.init(
        project=wandb.Settings().project or "qzhou",
        name=f"{run_name}/{folder.name}",
        id=f"{run_name}-{folder.name}-{digest([folder.uri, settings])}",
        resume="allow",
        config=dict(settings),
    )
    return Sink(lambda metrics: run.log(_curves(metrics), step=metrics["step"]))


def _mlflow(run_name: str, folder: Folder, settings: Mapping[str, Any]) -> Sink:
    """A run of the experiment ``qzhou``; MLFLOW_TRACKING_URI comes from the environment."""
    import mlflow

    experiment = mlflow.set_experiment("qzhou").experiment_id
    client = mlflow.MlflowClient()
    # a restart continues its run, and two runs may have the same name: a tag tells them apart
    tag = digest([folder.uri, settings])
    found = client.search_runs([experiment], f"tags.{STAGE_TAG} = '{tag}'")
    if found:
        run = found[0]
    else:
        name = f"{run_name}/{folder.name}"
        run = client.create_run(experiment, run_name=name, tags={STAGE_TAG: tag})
        for key, value in settings.items():
            client.log_param(run.info.run_id, key, str(value)[:500])

    def log(metrics: Metrics) -> None:
        for name, value in _curves(metrics).items():
            client.log_metric(run.info.run_id, name, value, step=metrics["step"])

    return Sink(log)


def _curves(metrics: Metrics) -> dict[str, float]:
    """Every number of a step by name, and the loss once more by dataset."""
    numbers = {
        name: value
        for name, value in metrics.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return numbers | {f"loss_of/{metrics['dataset']}": metrics["loss"]}
