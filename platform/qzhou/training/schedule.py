"""Schedules by step: learning rate, and the soft mask of a decoder becoming an encoder."""

import math

from qzhou.config.training import StageSection


def learning_rate_at(step: int, stage: StageSection) -> float:
    """A step's learning rate: linear warm-up to the peak, then decay to zero, or no decay.

    The paper states peak and warm-up but no decay; other reports state a linear one.
    """
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    if stage.lr_scheduler == "constant":
        return stage.learning_rate
    left = max(0.0, (stage.steps - step) / max(1, stage.steps - stage.warmup_steps))
    if stage.lr_scheduler == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return stage.learning_rate * left


def soft_mask_weight_at(step: int, stage: StageSection) -> float | None:
    """Weight of attention to later tokens, in [0, 1); None after the soft mask's steps."""
    return step / stage.soft_mask_steps if step < stage.soft_mask_steps else None
