"""The training loop of both stages; runs with or without Ray, on one rank or many.

One screen: next batch, forward, loss, backward, step, record, save if due.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from qzhou.errors import TrainingError
from qzhou.learning import StageSection
from qzhou.progress import progress
from qzhou.recipe import Recipe
from qzhou.training.batches import TrainingSet, build_batch
from qzhou.training.engine import Engine
from qzhou.training.objectives import loss_of
from qzhou.training.plan import BatchPlan

Metrics = dict[str, Any]


def train_stage(
    engine: Engine,
    plan: BatchPlan,
    data: Mapping[str, TrainingSet],
    recipe: Recipe,
    *,
    label: str,
    first_step: int,
    save: Callable[[int, list[Metrics]], None],
) -> None:
    """Train from ``first_step`` to the end of the stage.

    Args:
        data: Dataset name -> its examples; every dataset of the plan.
        label: For progress and errors, e.g. ``stage1``.
        first_step: 0, or the step that a checkpoint had reached.
        save: Called on every rank with the number of finished steps and the metrics since the last
            call: at each save interval and after the last step.

    Raises:
        TrainingError: The loss is not finite; names step and dataset.
    """
    stage, training = plan.stage, recipe.training
    metrics: list[Metrics] = []
    with progress(f"train: {label}", total=stage.steps - first_step, unit="steps") as bar:
        for step in range(first_step, stage.steps):
            started = time.monotonic()
            planned = plan.at(step)
            batch = build_batch(
                planned,
                data[planned.dataset],
                negatives_per_query=training.negatives_per_query,
                seed=recipe.run.seed,
            )
            loss = loss_of(batch, engine.embed, recipe.model, training)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"{label}: the loss is {value} at step {step} on '{planned.dataset}'. Lower "
                    f"training.{label}.learning_rate ({stage.learning_rate}) or raise training.temperature."
                )
            learning_rate = learning_rate_at(step, stage)
            norm = engine.update(loss, learning_rate)
            metrics.append(
                {
                    "step": step,
                    "task": planned.task,
                    "dataset": planned.dataset,
                    "rows": len(planned.rows),
                    "loss": round(value, 6),
                    "gradient_norm": round(norm, 6),
                    "learning_rate": learning_rate,
                    "seconds": round(time.monotonic() - started, 4),
                }
            )
            if engine.rank == 0:
                bar.advance(1, f"loss {value:.4f} on {planned.dataset}")
            if (step + 1) % training.save_every_steps == 0 or step + 1 == stage.steps:
                save(step + 1, metrics)
                metrics = []


def learning_rate_at(step: int, stage: StageSection) -> float:
    """Linear warm-up to the peak, then linear decay to zero at the end of the stage.

    The paper states peak and warm-up and nothing of the decay; linear is what its rivals report.
    """
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    return stage.learning_rate * max(0.0, (stage.steps - step) / max(1, stage.steps - stage.warmup_steps))
