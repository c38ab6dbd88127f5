"""The training loop of both stages; runs with or without Ray, on one rank or many.

One screen: next batch, loss and gradient, step, record, validate and save if due.
"""

import math
import resource
import sys
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qzhou.errors import TrainingError
from qzhou.telemetry.progress import progress
from qzhou.training.engine import Engine
from qzhou.training.gradient_cache import backward, embed
from qzhou.training.loader import PreparedBatch, TrainingStage, prefetch, prepare_batch
from qzhou.training.objectives import batch_metrics, loss_of
from qzhou.training.recorder import StageRecorder
from qzhou.training.schedule import learning_rate_at, soft_mask_weight_at

Metrics = dict[str, Any]


def train_stage(stage: TrainingStage, engine: Engine, recorder: StageRecorder, *, first_step: int) -> bool:
    """Whether training reached the stage's end; False if stopped, with a checkpoint.

    ``first_step`` is 0, or the step that a checkpoint had reached. A stage that keeps its
    best weights may end before its last step (``training.patience``).

    Raises:
        TrainingError: Non-finite loss or gradient; names step and dataset, keeps the batch.
    """
    steps, training, best = stage.plan.stage.steps, stage.recipe.training, stage.best
    if best is not None and best.is_final(first_step):
        return True
    if best is not None and stage.validate is not None and not first_step:
        best.offer(0, stage.validate(), engine)
    prepare = partial(prepare_batch, stage, engine)
    batches = prefetch(prepare, first_step, steps, threads=training.loader_threads)
    with progress(f"training: {stage.name}", total=steps - first_step, unit="steps") as bar:
        for batch, waited_s in batches:
            started = time.monotonic()
            step = batch.planned.step
            metrics = _step(stage, engine, recorder, batch)
            metrics |= _cost(batch, engine, waited_s, time.monotonic() - started + waited_s)
            every = training.validate_every_steps
            if stage.validate is not None and every and (step + 1 == steps or (step + 1) % every == 0):
                scores = stage.validate()
                metrics |= {f"validation_{name}": value for name, value in scores.items()}
                if best is not None:
                    best.offer(step + 1, scores, engine)
            finished = step + 1 == steps or (best is not None and best.is_final(step + 1))
            recorder.record(metrics)
            if engine.rank == 0:
                rows = {part.dataset: len(part.rows) for part in batch.planned.parts}
                bar.advance(1, f"loss {metrics['loss']:.4f} on {metrics['dataset']}", rows=rows)
            stopped = recorder.stop_requested(step) and not finished
            due = finished or stopped or (step + 1) % training.save_every_steps == 0
            if due or recorder.preempted():
                recorder.save(step + 1)
            if finished or stopped:
                return finished
    return True


def _step(stage: TrainingStage, engine: Engine, recorder: StageRecorder, batch: PreparedBatch) -> Metrics:
    """What one optimizer step did."""
    planned, training = batch.planned, stage.recipe.training
    teacher_ND = None
    if stage.teacher is not None and batch.for_teacher is not None:
        teacher_ND = embed(batch.for_teacher, stage.teacher.forward)
    of_batch: Metrics = {}

    def loss(vector_ND: Tensor) -> Tensor:
        value = loss_of(batch.batches, vector_ND, training, teacher_ND=teacher_ND, seed=planned.step)
        margin, listwise = training.loss.false_negative_margin, training.distillation.is_listwise
        of_batch.update(batch_metrics(batch.batches, vector_ND.detach(), margin=margin, listwise=listwise))
        if not math.isfinite(float(value.detach())):
            _refuse(stage, recorder, batch, f"the loss is {float(value.detach())}")
        return value

    forward = partial(engine.forward, soft_mask_weight=soft_mask_weight_at(planned.step, stage.plan.stage))
    value = backward(batch.sharded, forward, loss, engine)
    learning_rate = learning_rate_at(planned.step, stage.plan.stage)
    norm = engine.update(learning_rate)
    # a loss may be finite where its slope is not
    if not math.isfinite(norm):
        _refuse(stage, recorder, batch, f"the gradient's norm is {norm}")
    return {
        "step": planned.step,
        "task": planned.task,
        "dataset": planned.dataset,
        "rows": planned.size,
        "loss": round(float(value), 6),
        **of_batch,
        "gradient_norm": round(norm, 6),
        "learning_rate": learning_rate,
    }


def _cost(batch: PreparedBatch, engine: Engine, waited_s: float, seconds: float) -> Metrics:
    """What the step cost. ``gradient_cache_share`` is the share of padded tokens whose activations did not fit."""
    sharded = batch.sharded
    cached = len(sharded.micro_batches) - sharded.count_within(engine.activation_tokens)
    return {
        "tokens": sharded.tokens,
        "tokens_per_s": round(sharded.tokens / seconds, 1),
        "padding_share": round(sharded.padding_share, 4),
        "gradient_cache_share": round(sum(sharded.padded_tokens[:cached]) / sum(sharded.padded_tokens), 4),
        "loader_wait_share": round(waited_s / seconds, 4),
        "memory_gb": round(_memory_gb(), 3),
        "seconds": round(seconds, 4),
    }


def _memory_gb() -> float:
    """This rank's peak memory so far: the GPU's if there is one, else the process's."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _refuse(stage: TrainingStage, recorder: StageRecorder, batch: PreparedBatch, reason: str) -> None:
    planned = batch.planned
    rows = {part.dataset: part.rows.tolist() for part in planned.parts}
    texts = [texts for one in batch.batches for _, texts in one.text_groups]
    address = recorder.save_batch({"step": planned.step, "rows": rows, "texts": texts})
    raise TrainingError(
        f"{stage.name}: {reason} at step {planned.step} on '{planned.dataset}'; its batch is in {address}.\n"
        f"       Lower training.{stage.name}.learning_rate ({stage.plan.stage.learning_rate}) or raise "
        "training.temperature."
    )
