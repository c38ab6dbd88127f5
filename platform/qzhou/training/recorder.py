"""What a stage leaves while it trains: metrics, checkpoints, and a batch that training cannot go on with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.training.tracking import Metrics, Sink, open_sinks

if TYPE_CHECKING:
    from qzhou.training.engine import Engine


class StageRecorder:
    """Metrics and checkpoints of a training stage.

    Two subclasses write checkpoints: ``RayRecorder`` (:mod:`qzhou.training.pipeline`)
    reports them to Ray Train, and ``TorchrunRecorder`` (:mod:`qzhou.training.torchrun`)
    writes them into the stage's folder. The state itself comes from
    :meth:`qzhou.training.engine.Engine.save`.

    Every rank calls each method, and all ranks are at the same step. Rank 0 alone writes
    metrics.

    Attributes:
        last: Metrics of the last step, on every rank.
    """

    def __init__(self, recipe: Recipe, folder: Folder, engine: Engine, first_step: int) -> None:
        self.recipe, self.folder, self.engine = recipe, folder, engine
        self.last: Metrics = {}
        # removed together with this recorder
        self._scratch = tempfile.TemporaryDirectory(prefix="tracking-")
        self._sinks: list[Sink] = []
        if engine.rank == 0:
            self._sinks = open_sinks(
                recipe.training.trackers,
                folder,
                run_name=recipe.run.name,
                settings=recipe.training.model_dump(mode="json"),
                first_step=first_step,
                scratch=Path(self._scratch.name),
            )

    def record(self, metrics: Metrics) -> None:
        """Record what one step did."""
        self.last = metrics
        for sink in self._sinks:
            sink.log(metrics)

    def flush(self) -> None:
        """Make durable what was recorded so far."""
        for sink in self._sinks:
            sink.flush()

    def save(self, step: int) -> None:
        """Keep a checkpoint after ``step`` finished steps."""
        raise NotImplementedError

    def preempted(self) -> bool:
        """Whether a checkpoint is due because a node is about to leave; True once, on every rank at the same step."""
        return False

    def stop_requested(self, step: int) -> bool:
        """Whether the stage ends after this step; the same answer on every rank. Asked at the end of each step."""
        del step
        return False

    def save_batch(self, batch: Mapping[str, Any]) -> str:
        """The address of a batch whose loss or gradient is not finite."""
        self.flush()
        name = f"not_finite/step-{batch['step']:06d}.json"
        if self.engine.rank == 0:
            self.folder.write_json(name, dict(batch))
        return f"{self.folder.uri}/{name}"
