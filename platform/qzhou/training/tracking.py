"""Where the metrics of a stage go: ``metrics.jsonl``, and the trackers that the recipe names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from qzhou.config.training import Tracker
from qzhou.data.records import digest
from qzhou.data.storage import Folder
from qzhou.errors import SetupError
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
METRICS = "metrics.jsonl"
METERED = {  # name in metrics.jsonl -> the meter, and its units in one of ours
    "tokens": (TRAINING_TOKENS, 1),
    "seconds": (TRAINING_STEP, 1),
    "padding_share": (TRAINING_PADDING, 1),
    "loader_wait_share": (TRAINING_WAIT, 1),
    "gradient_norm": (TRAINING_GRADIENT, 1),
    "learning_rate": (TRAINING_RATE, 1),
    "memory_gb": (TRAINING_MEMORY, 1e9),
}
PLACE_TAG = "qzhou_stage"  # of an MLflow run: which folder and settings it is of


class Sink(Protocol):
    """Takes metrics of one rank."""

    def add(self, metrics: Metrics) -> None:
        """What one step did; ``metrics["step"]`` says which."""
        ...

    def keep(self) -> None:
        """Make what was added so far last."""
        ...


class MetricsFile:
    """``metrics.jsonl`` of a stage: one line a step, written whole so that any filesystem will do."""

    def __init__(self, folder: Folder, first_step: int) -> None:
        """Lines from ``first_step`` on, of an attempt that ended after its last checkpoint, are written again."""
        self._folder = folder
        before = folder.read_bytes(METRICS).decode().splitlines() if folder.exists(METRICS) else []
        self._lines = [line for line in before if json.loads(line)["step"] < first_step]

    def add(self, metrics: Metrics) -> None:
        self._lines.append(json.dumps(dict(metrics)))

    def keep(self) -> None:
        self._folder.write_bytes(METRICS, ("\n".join(self._lines) + "\n").encode())


class Meters:
    """What dashboards show of a stage while it trains."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def add(self, metrics: Metrics) -> None:
        measure(TRAINING_LOSS, metrics["loss"], stage=self._stage, task=metrics["task"])
        for name, (metric, unit) in METERED.items():
            if name in metrics:
                measure(metric, metrics[name] * unit, stage=self._stage)
        measure(TRAINING_STEPS, 1, stage=self._stage)
        measure(TRAINING_LAST_STEP, time.time(), stage=self._stage)

    def keep(self) -> None:
        pass  # Ray sends by itself


class TensorBoard:
    """Event files in ``tensorboard/`` of the stage; curves by dataset besides those of all steps."""

    def __init__(self, folder: Folder, first_step: int, scratch: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._target = folder / "tensorboard"
        self._place = Path(self._target.path) if folder.is_local else scratch
        self._writer = SummaryWriter(str(self._place), purge_step=first_step or None)

    def add(self, metrics: Metrics) -> None:
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, metrics["step"])
        self._writer.add_scalar(f"loss_of/{metrics['dataset']}", metrics["loss"], metrics["step"])

    def keep(self) -> None:
        self._writer.flush()
        if not self._target.is_local:
            self._target.upload(self._place)


class WeightsAndBiases:
    """A run of the project ``qzhou``; WANDB_MODE, WANDB_PROJECT and the API key come from the environment."""

    def __init__(self, name: str, stage: str, place: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=wandb.Settings().project or "qzhou",
            name=f"{name}/{stage}",
            id=f"{name}-{stage}-{digest([place, settings])}",
            resume="allow",
            config=dict(settings),
        )

    def add(self, metrics: Metrics) -> None:
        values = _numbers(metrics) | {f"loss_of/{metrics['dataset']}": metrics["loss"]}
        self._run.log(values, step=metrics["step"])

    def keep(self) -> None:
        pass  # sends by itself


class MLflow:
    """A run of the experiment ``qzhou``; MLFLOW_TRACKING_URI comes from the environment."""

    def __init__(self, name: str, stage: str, place: str, settings: Mapping[str, Any]) -> None:
        import mlflow

        experiment = mlflow.set_experiment("qzhou").experiment_id
        self._client = mlflow.MlflowClient()
        own = {PLACE_TAG: digest([place, settings])}  # two runs may have the same name
        [(tag, value)] = own.items()
        before = self._client.search_runs([experiment], filter_string=f"tags.{tag} = '{value}'")
        self._run = (
            before[0]
            if before
            else self._client.create_run(experiment, run_name=f"{name}/{stage}", tags=own)
        )
        if not before:
            for key, value in settings.items():
                self._client.log_param(self._run.info.run_id, key, str(value)[:500])

    def add(self, metrics: Metrics) -> None:
        for name, value in (
            _numbers(metrics) | {f"loss_of/{metrics['dataset']}": metrics["loss"]}
        ).items():
            self._client.log_metric(self._run.info.run_id, name, value, step=metrics["step"])

    def keep(self) -> None:
        pass  # sends by itself


def open_sinks(
    trackers: tuple[Tracker, ...],
    folder: Folder,
    *,
    name: str,
    stage: str,
    settings: Mapping[str, Any],
    first_step: int,
    scratch: Path,
) -> list[Sink]:
    """``metrics.jsonl``, the meters and the trackers.

    Args:
        folder: The stage's.
        name: Of the run.
        settings: Shown beside the curves.
        first_step: Where this attempt goes on.
        scratch: A local folder, for trackers that write files.

    Raises:
        SetupError: A tracker is not installed.
    """
    known: dict[Tracker, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoard(folder, first_step, scratch),
        "wandb": lambda: WeightsAndBiases(name, stage, folder.uri, settings),
        "mlflow": lambda: MLflow(name, stage, folder.uri, settings),
    }
    sinks: list[Sink] = [MetricsFile(folder, first_step), Meters(stage)]
    for tracker in trackers:
        try:
            sinks.append(known[tracker]())
        except ImportError as error:
            raise SetupError(
                f"training.trackers names {tracker}, which cannot be imported: {error}. pip install 'qzhou[trackers]'"
            ) from None
    return sinks


def _numbers(metrics: Metrics) -> dict[str, float]:
    return {
        name: value
        for name, value in metrics.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
