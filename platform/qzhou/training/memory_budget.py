"""How many tokens' activations a GPU holds, found before the first step: the longest batch may come after days.

The largest step that the budgets of an engine allow is tried. Where it does not fit, every
rank halves its budgets, those that had room too, so that all ranks keep making the same
forward passes.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from qzhou.telemetry.events import log_event
from qzhou.training.engine import Engine
from qzhou.training.sharding import Ids

LEAST_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Trial:
    """What the largest step needs.

    Attributes:
        longest: Tokens of the longest text of the recipe, which is a pass of its own where budgets are smaller.
        later_bytes: Memory that is taken by the first optimizer step, and is free before.
        soft_mask_weight: Of a step with a soft mask, whose bias takes memory too.
    """

    longest: int
    later_bytes: int = 0
    soft_mask_weight: float | None = None


def fit_budgets(engine: Engine, trial: Trial, device: torch.device) -> None:
    """Halve an engine's budgets until its largest step fits into the memory of every rank.

    Gradients are as before: zeros are added to them. A text that is longer than a pass is
    one of its own, whatever the budgets: where it does not fit, a line says so.

    Args:
        engine: Whose budgets are tried, and changed.
        trial: What is tried.
        device: Of the ranks.
    """
    asked = engine.activation_tokens, engine.micro_batch_tokens
    if not _fit_everywhere(engine, [[[0] * trial.longest]], trial, device) and engine.rank == 0:
        line = (
            f"training: one text of {trial.longest:,} tokens does not fit into a GPU's memory beside the model; "
            "training ends where there is one. Lower model.max_document_tokens, or set "
            "training.gradient_checkpointing, a higher training.zero_stage or training.offload_optimizer."
        )
        log_event(line, "text_too_long", level="warning")
    while not _fit_everywhere(engine, _largest_step(engine, trial), trial, device) and halve_budgets(engine):
        pass
    if (engine.activation_tokens, engine.micro_batch_tokens) != asked and engine.rank == 0:
        log_event(
            f"training: activations of {asked[0]:,} tokens do not fit into a GPU's memory beside the model: "
            f"{engine.activation_tokens:,} are held, {engine.micro_batch_tokens:,} in one pass; texts beyond are "
            "encoded twice. The result is the same.",
            "budgets_halved",
            level="warning",
            activation_tokens=engine.activation_tokens,
            micro_batch_tokens=engine.micro_batch_tokens,
        )


def halve_budgets(engine: Engine) -> bool:
    """Whether the budgets of an engine could be halved; first those of what is held, then those of a pass."""
    if engine.activation_tokens > engine.micro_batch_tokens:
        engine.activation_tokens = max(engine.micro_batch_tokens, engine.activation_tokens // 2)
        return True
    if engine.micro_batch_tokens // 2 < LEAST_TOKENS:
        return False
    engine.micro_batch_tokens //= 2
    engine.activation_tokens = engine.micro_batch_tokens
    return True


def _largest_step(engine: Engine, trial: Trial) -> list[list[Ids]]:
    """Token ids of as many passes, with as many tokens each, as the budgets of an engine allow."""
    length = min(trial.longest, engine.micro_batch_tokens)
    passes = max(1, engine.activation_tokens // engine.micro_batch_tokens)
    return [[[0] * length] * (engine.micro_batch_tokens // length)] * passes


def _fit_everywhere(engine: Engine, passes: list[list[Ids]], trial: Trial, device: torch.device) -> bool:
    failed = torch.tensor(float(not _fit(engine, passes, trial, device)), device=device)
    if engine.world > 1:
        dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    return not failed.item()


def _fit(engine: Engine, passes: list[list[Ids]], trial: Trial, device: torch.device) -> bool:
    """Whether this rank has memory for passes whose activations are all held, and their backward pass."""
    try:
        later = torch.empty(trial.later_bytes, dtype=torch.uint8, device=device)
        vectors = torch.cat([engine.forward(texts, trial.soft_mask_weight) for texts in passes])
        engine.backward((vectors * 0).sum(), last=False)
        del later
    except torch.OutOfMemoryError:
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True
