"""What a stage writes down while it trains: metrics, and the batch that it stops at."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.training.tracking import Metrics, open_sinks

if TYPE_CHECKING:
    from qzhou.training.engine import Engine


class Notes:
    """Metrics and refused batches of a stage, written by rank 0 into the stage's folder and to the trackers.

    Attributes:
        last: Metrics of the last step, on every rank.
    """

    def __init__(self, recipe: Recipe, folder: Folder, engine: Engine, first_step: int) -> None:
        self.recipe, self.folder, self.engine = recipe, folder, engine
        self.last: Metrics = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="tracking-")  # goes with these notes
        self._sinks = (
            open_sinks(
                recipe.training.trackers,
                folder,
                name=recipe.run.name,
                stage=folder.name,
                settings=recipe.training.model_dump(mode="json"),
                first_step=first_step,
                scratch=Path(self._scratch.name),
            )
            if engine.rank == 0
            else []
        )

    def record(self, metrics: Metrics) -> None:
        self.last = metrics
        for sink in self._sinks:
            sink.add(metrics)

    def keep(self) -> None:
        """Make what was recorded so far last."""
        for sink in self._sinks:
            sink.keep()

    def refuse(self, batch: Mapping[str, Any]) -> str:
        self.keep()
        name = f"not_finite/step-{batch['step']:06d}.json"
        if self.engine.rank == 0:
            self.folder.write_json(name, dict(batch))
        return f"{self.folder.uri}/{name}"
