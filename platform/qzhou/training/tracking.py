"""Where the metrics of a stage go: ``metrics.jsonl``, dashboards, and the trackers that the recipe names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qzhou.config.training import Tracker
from qzhou.data.storage import Folder
from qzhou.errors import SetupError
from qzhou.run.run import digest
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


class Sink:
    """Takes the metrics of one rank, one step after the other."""

    def log(self, metrics: Metrics) -> None:
        """Record what one step did; ``metrics["step"]`` says which."""
        raise NotImplementedError

    def flush(self) -> None:
        """Make durable what was logged so far; nothing to do for sinks that send each step at once."""


class MetricsFile(Sink):
    """``metrics.jsonl`` of a stage: one line for each step, also after restarts.

    On local filesystems a line is appended at the end of its step, so that ``tail -f`` follows the training. Object
    stores cannot append: there the whole file is written at each checkpoint.
    """

    def __init__(self, folder: Folder, first_step: int) -> None:
        """Drop the lines of steps from ``first_step`` on, which an earlier attempt did after its last checkpoint."""
        self._folder = folder
        self._lines: list[str] = []
        if folder.exists(METRICS_FILE):
            # a killed process can leave half a line at the end
            complete = folder.read_bytes(METRICS_FILE).decode().rpartition("\n")[0]
            before = complete.splitlines()
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


class Dashboard(Sink):
    """The metrics that dashboards show while a stage trains."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def log(self, metrics: Metrics) -> None:
        """Update the metrics, which Ray exports."""
        measure(TRAINING_LOSS, metrics["loss"], stage=self._stage, task=metrics["task"])
        for name, (metric, unit) in DASHBOARD_METRICS.items():
            if name in metrics:
                measure(metric, metrics[name] * unit, stage=self._stage)
        measure(TRAINING_STEPS, 1, stage=self._stage)
        measure(TRAINING_LAST_STEP, time.time(), stage=self._stage)


class TensorBoard(Sink):
    """Event files in ``tensorboard/`` of the stage."""

    def __init__(self, folder: Folder, first_step: int, scratch: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._target = folder / "tensorboard"
        self._local = Path(self._target.path) if folder.is_local else scratch
        self._writer = SummaryWriter(str(self._local), purge_step=first_step or None)

    def log(self, metrics: Metrics) -> None:
        """Add a point to each curve."""
        for name, value in _curves(metrics).items():
            self._writer.add_scalar(name, value, metrics["step"])

    def flush(self) -> None:
        """Write the event files, and upload them where the stage's folder is remote."""
        self._writer.flush()
        if not self._target.is_local:
            self._target.upload(self._local)


class WeightsAndBiases(Sink):
    """A run of the project ``qzhou``; WANDB_MODE, WANDB_PROJECT and the API key come from the environment."""

    def __init__(self, run_name: str, folder: Folder, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=wandb.Settings().project or "qzhou",
            name=f"{run_name}/{folder.name}",
            id=f"{run_name}-{folder.name}-{digest([folder.uri, settings])}",
            resume="allow",
            config=dict(settings),
        )

    def log(self, metrics: Metrics) -> None:
        """Send one step."""
        self._run.log(_curves(metrics), step=metrics["step"])


class MLflow(Sink):
    """A run of the experiment ``qzhou``; MLFLOW_TRACKING_URI comes from the environment."""

    def __init__(self, run_name: str, folder: Folder, settings: Mapping[str, Any]) -> None:
        import mlflow

        experiment = mlflow.set_experiment("qzhou").experiment_id
        self._client = mlflow.MlflowClient()
        tag = digest([folder.uri, settings])  # two runs may have the same name
        found = self._client.search_runs([experiment], f"tags.{STAGE_TAG} = '{tag}'")
        if found:
            self._id = found[0].info.run_id
            return
        run = self._client.create_run(
            experiment, run_name=f"{run_name}/{folder.name}", tags={STAGE_TAG: tag}
        )
        self._id = run.info.run_id
        for key, value in settings.items():
            self._client.log_param(self._id, key, str(value)[:500])

    def log(self, metrics: Metrics) -> None:
        """Send one step."""
        for name, value in _curves(metrics).items():
            self._client.log_metric(self._id, name, value, step=metrics["step"])


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

    Args:
        trackers: Names of ``training.trackers``.
        folder: The stage's folder.
        run_name: Shown by the trackers.
        settings: Shown beside the curves.
        first_step: The step with which this attempt begins.
        scratch: A local folder, for trackers that write files.

    Raises:
        SetupError: A tracker is not installed.
    """
    known: dict[Tracker, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoard(folder, first_step, scratch),
        "wandb": lambda: WeightsAndBiases(run_name, folder, settings),
        "mlflow": lambda: MLflow(run_name, folder, settings),
    }
    sinks: list[Sink] = [MetricsFile(folder, first_step), Dashboard(folder.name)]
    for tracker in trackers:
        try:
            sinks.append(known[tracker]())
        except ImportError as error:
            raise SetupError(
                f"training.trackers names {tracker}, which cannot be imported: {error}. pip install 'qzhou[trackers]'"
            ) from None
    return sinks


def _curves(metrics: Metrics) -> dict[str, float]:
    """Every number of a step by name, and the loss once more by dataset."""
    numbers = {
        name: value
        for name, value in metrics.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return numbers | {f"loss_of/{metrics['dataset']}": metrics["loss"]}
