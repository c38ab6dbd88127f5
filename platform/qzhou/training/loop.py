"""The training loop of both stages; runs with or without Ray, on one rank or many.

One screen: next batch, loss and gradient, step, record, validate and save if due.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from qzhou.config.recipe import Recipe
from qzhou.errors import TrainingError
from qzhou.telemetry.progress import progress
from qzhou.training.data import TrainingSet
from qzhou.training.engine import Engine
from qzhou.training.gradient_cache import backward, embed
from qzhou.training.loader import Preparation, Prepared, ahead
from qzhou.training.objectives import figures, loss_of
from qzhou.training.plan import BatchPlan
from qzhou.training.schedule import learning_rate_at, openness_at
from qzhou.training.teacher import Teacher

Metrics = dict[str, Any]


class Keeper(Protocol):
    """Where a stage's metrics and checkpoints go. Every rank calls it; all ranks are at the same step."""

    def record(self, metrics: Metrics) -> None:
        """What one step did."""
        ...

    def leaving(self) -> bool:
        """Whether a node is about to go, so that a checkpoint is due now: once, and the same answer on every rank."""
        ...

    def stopping(self, step: int) -> bool:
        """Whether somebody stops the stage after this step: asked at its end, and the same answer on every rank."""
        ...

    def save(self, step: int) -> None:
        """Keep a checkpoint after ``step`` finished steps."""
        ...

    def refuse(self, batch: Mapping[str, Any]) -> str:
        """Keep a batch whose loss is not finite, and say where."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """What one stage trains on.

    Attributes:
        name: For progress and errors, e.g. ``stage1``.
        data: Dataset name -> its examples; every dataset of the plan.
        validate: Gives figures of the model as it is; every rank calls it.
    """

    name: str
    plan: BatchPlan
    data: Mapping[str, TrainingSet]
    recipe: Recipe
    tokenizer: Any
    teacher: Teacher | None = None
    validate: Callable[[], Mapping[str, float]] | None = None


def train_stage(stage: Stage, engine: Engine, keeper: Keeper, *, first_step: int) -> bool:
    """Train from ``first_step`` to the end of the stage.

    Args:
        first_step: 0, or the step that a checkpoint had reached.

    Returns: Whether it got there; else somebody stopped it, with a checkpoint.

    Raises:
        TrainingError: The loss is not finite; names step and dataset, and the batch is kept.
    """
    settings, training = stage.plan.stage, stage.recipe.training
    prepare = Preparation(
        stage.plan,
        stage.data,
        stage.recipe,
        stage.tokenizer,
        engine.rank,
        engine.world,
        engine.micro_batch_tokens,
        stage.teacher.tokenizer if stage.teacher else None,
    )
    with progress(
        f"training: {stage.name}", total=settings.steps - first_step, unit="steps"
    ) as bar:
        for prepared, waited_s in ahead(
            prepare, first_step, settings.steps, threads=training.loader_threads
        ):
            step, started = prepared.planned.step, time.monotonic()
            metrics = _step(stage, engine, keeper, prepared)
            metrics |= _pace(prepared, engine, waited_s, time.monotonic() - started + waited_s)
            due = training.validate_every_steps
            if (
                stage.validate is not None
                and due
                and ((step + 1) % due == 0 or step + 1 == settings.steps)
            ):
                metrics |= {f"validation_{name}": value for name, value in stage.validate().items()}
            keeper.record(metrics)
            if engine.rank == 0:
                rows = {part.dataset: len(part.rows) for part in prepared.planned.parts}
                bar.advance(1, f"loss {metrics['loss']:.4f} on {metrics['dataset']}", rows=rows)
            finished = step + 1 == settings.steps
            stopped = keeper.stopping(step) and not finished
            if (
                (step + 1) % training.save_every_steps == 0
                or finished
                or stopped
                or keeper.leaving()
            ):
                keeper.save(step + 1)
            if stopped:
                return False
    return True


def _step(stage: Stage, engine: Engine, keeper: Keeper, prepared: Prepared) -> Metrics:
    """One optimizer step, and what it did."""
    planned, settings = prepared.planned, stage.plan.stage
    openness = openness_at(planned.step, settings)
    teacher_ND = None
    if stage.teacher is not None and prepared.teacher_deal is not None:
        teacher_ND = embed(prepared.teacher_deal, stage.teacher.forward)
    seen: Metrics = {}

    def loss(vector_ND: Tensor) -> Tensor:
        value = loss_of(
            prepared.batches,
            vector_ND,
            stage.recipe.training,
            teacher_ND=teacher_ND,
            seed=planned.step,
        )
        margin = stage.recipe.training.loss.false_negative_margin
        seen.update(figures(prepared.batches, vector_ND.detach(), margin=margin))
        if not math.isfinite(float(value.detach())):
            _refuse(stage, keeper, prepared, f"the loss is {float(value.detach())}")
        return value

    found = backward(
        prepared.deal,
        partial(engine.forward, openness=openness),
        engine.backward,
        loss,
        rank=engine.rank,
        held=engine.activation_tokens,
    )
    learning_rate = learning_rate_at(planned.step, settings)
    norm = engine.update(learning_rate)
    if not math.isfinite(norm):  # a loss may be finite where its slope is not
        _refuse(stage, keeper, prepared, f"the gradient's norm is {norm}")
    return {
        "step": planned.step,
        "task": planned.task,
        "dataset": planned.dataset,
        "rows": planned.size,
        "loss": round(float(found), 6),
        **seen,
        "gradient_norm": round(norm, 6),
        "learning_rate": learning_rate,
    }


def _pace(prepared: Prepared, engine: Engine, waited_s: float, seconds: float) -> Metrics:
    """What the step cost. ``encoded_twice`` is the share of the padded tokens that did not fit into memory at once."""
    dealt = prepared.deal
    twice = sum(dealt.padded[: len(dealt.chunks) - dealt.held(engine.activation_tokens)])
    return {
        "tokens": dealt.tokens,
        "tokens_per_s": round(dealt.tokens / seconds, 1),
        "padding_share": round(dealt.padding_share, 4),
        "encoded_twice": round(twice / sum(dealt.padded), 4),
        "loader_wait_share": round(waited_s / seconds, 4),
        "memory_gb": round(_memory_gb(), 3),
        "seconds": round(seconds, 4),
    }


def _memory_gb() -> float:
    """Highest memory of this rank so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _refuse(stage: Stage, keeper: Keeper, prepared: Prepared, why: str) -> None:
    planned = prepared.planned
    place = keeper.refuse(
        {
            "step": planned.step,
            "rows": {part.dataset: part.rows.tolist() for part in planned.parts},
            "texts": [texts for batch in prepared.batches for _, texts in batch.kinds],
        },
    )
    raise TrainingError(
        f"{stage.name}: {why} at step {planned.step} on '{planned.dataset}'; its batch is in {place}.\n"
        f"       Lower training.{stage.name}.learning_rate ({stage.plan.stage.learning_rate}) or raise "
        "training.temperature."
    )
