"""How many tokens' activations a GPU holds, found before the first step: the longest batch may come after days.

The largest step that the budgets of an engine allow is tried. Where it does not fit, every
rank halves its budgets, those that had room too, so that all ranks keep making the same
forward passes.
"""

import torch
import torch.distributed as dist

from qzhou.telemetry.events import log_event
from qzhou.training.engine import Engine

LEAST_TOKENS = 256


def fit_budgets(engine: Engine, *, longest: int, device: torch.device) -> None:
    """Halve an engine's budgets until its largest step fits into the memory of every rank.

    Gradients are as before: zeros are added to them. Where not even the smallest step fits,
    the budgets stay at their least, and training says what it lacks.

    Args:
        engine: Whose budgets are tried, and changed.
        longest: Tokens of the longest text of the recipe.
        device: Of the ranks.
    """
    asked = engine.activation_tokens, engine.micro_batch_tokens
    while not _fits_everywhere(engine, longest, device) and halve_budgets(engine):
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


def _fits_everywhere(engine: Engine, longest: int, device: torch.device) -> bool:
    failed = torch.tensor(float(not _fits(engine, longest)), device=device)
    if engine.world > 1:
        dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    return not failed.item()


def _fits(engine: Engine, longest: int) -> bool:
    """Whether this rank has memory for the largest step: passes whose activations are all held, and their backward."""
    length = min(longest, engine.micro_batch_tokens)
    one_pass = [[0] * length] * max(1, engine.micro_batch_tokens // length)
    passes = max(1, engine.activation_tokens // engine.micro_batch_tokens)
    try:
        vectors = torch.cat([engine.forward(one_pass) for _ in range(passes)])
        engine.backward((vectors * 0).sum(), last=False)
    except torch.OutOfMemoryError:
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True
