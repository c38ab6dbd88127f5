"""The comparison: rows, and the table that a person reads."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

ModelName = Literal["bm25", "backbone", "stage1", "stage2"]
MODELS: tuple[ModelName, ...] = ("bm25", "backbone", "stage1", "stage2")
NOT_JUDGED = "not judged"

Results = Mapping[str, dict[str, Any]]  # task -> its main score and mteb's own result, or why it was not judged


@dataclass(frozen=True, slots=True)
class Row:
    """One score: ``n`` is what it is a mean over (queries, pairs or test texts)."""

    task: str
    type: str
    metric: str
    model: ModelName
    score: float
    n: int


def table(rows: Sequence[Row]) -> str:
    """Tasks down, models across, and what training gained over the untouched backbone."""
    grid = Table(title="Held-out evaluation (mteb)", title_justify="left")
    for heading in ("task", "metric", "n"):
        grid.add_column(heading, justify="right" if heading == "n" else "left")
    for model in MODELS:
        grid.add_column(model, justify="right")
    grid.add_column("stage2 - backbone", justify="right")
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        score = {row.model: row.score for row in of_task}
        cells = [f"{score[model]:.4f}" if model in score else "-" for model in MODELS]
        gained = f"{score['stage2'] - score['backbone']:+.4f}" if {"stage2", "backbone"} <= set(score) else "-"
        grid.add_row(task, of_task[0].metric, f"{of_task[0].n:,}", *cells, gained)
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(grid)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
