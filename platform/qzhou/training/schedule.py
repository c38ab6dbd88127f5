"""What changes from step to step by itself: the learning rate, and the mask of a decoder that becomes an encoder."""

from __future__ import annotations

import math

from qzhou.config.training import StageSection


def learning_rate_at(step: int, stage: StageSection) -> float:
    """Linear warm-up to the peak, then the stage's decay to zero at its end, or none.

    The paper states peak and warm-up and nothing of the decay; linear is what its rivals report.
    """
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    if stage.lr_scheduler == "constant":
        return stage.learning_rate
    left = max(0.0, (stage.steps - step) / max(1, stage.steps - stage.warmup_steps))
    return stage.learning_rate * (
        left if stage.lr_scheduler == "linear" else (1 - math.cos(math.pi * left)) / 2
    )


def openness_at(step: int, stage: StageSection) -> float | None:
    """How far the causal mask has opened, in [0, 1); None where there is none (any more)."""
    return step / stage.soft_mask_steps if step < stage.soft_mask_steps else None
