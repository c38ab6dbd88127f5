"""Several models' weights to one model's: averaged, or two of them interpolated on a sphere. Pure: no files.

Fine-tuned from one backbone, models lie in one basin of the loss, and what lies between them is often better than each:
model soups (arXiv:2203.05482). The strongest embedding models end with it: Qwen3-Embedding interpolates checkpoints by
slerp (arXiv:2506.05176; without it the 0.6B model loses 2.5 points of MTEB), EmbeddingGemma (arXiv:2509.20354) and
llama-embed-nemotron-8b (arXiv:2511.07025) average runs with different mixtures of data.

Models are taken one at a time into a running result, so that memory holds the result and one model, however many there
are. Every product is of float64 numbers and the result is kept in float32: a model merged with itself is itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from qzhou.errors import ModelError, RecipeError

Method = Literal["average", "slerp"]
State = Mapping[str, Tensor]

# below, slerp divides by what rounding left; it differs from the straight line by its square
PARALLEL_SINE = 1e-6
# elements that are in float64 at a time: an embedding matrix of 7B models would take 4 GB
BLOCK = 2**24
NAMED = 3  # weights that an error shows


def merge_states(
    models: Iterable[tuple[str, State]], weights: Sequence[float], *, method: Method = "average"
) -> dict[str, Tensor]:
    """The weights of one model made of several.

    Args:
        models: Name for errors, and weights by name; read once, in order, and not kept.
        weights: One for each model, not negative; only their proportions matter.
        method: ``average``: sum of w_i x_i over sum of w_i. ``slerp``: :func:`slerp` of two models, tensor by tensor,
            with t the second model's share. It takes exactly two, because slerp of slerps depends on the order in
            which three are named, and nobody has shown which order is right; the average of any number does not.

    Returns: New tensors, float32 or wider. What is no floating point number is the same in all models, and kept.

    Raises:
        RecipeError: Weights without a positive sum, or not two models for slerp.
        ModelError: Weights that another model lacks, has in another shape, or that are no numbers.
    """
    shares = shares_of(weights, method=method)
    merged: dict[str, Tensor] = {}
    taken, first, following = 0.0, "", iter(models)
    for share in shares:  # not zip(), which would hold a model while the next one is read
        name, state = next(following)
        _refuse_what_is_no_number(name, state)
        taken += share
        if not merged:
            first = name
            merged = {key: _copy(value) for key, value in state.items()}
        else:
            _refuse_other_weights(first, merged, name, state)
            for key, value in state.items():
                _turn(merged[key], value, share / taken if taken else 0.0, method)
        del state
    return merged


def shares_of(weights: Sequence[float], *, method: Method) -> list[float]:
    """Weights that sum to 1.

    Raises:
        RecipeError: One is negative or no number, all are zero, or slerp is asked of other than two.
    """
    shown = ", ".join(f"{weight:g}" for weight in weights)
    if not all(0 <= weight < math.inf for weight in weights):
        raise RecipeError(f"the weights are {shown}; a weight is a number, 0 or above")
    if sum(weights) <= 0:
        raise RecipeError(
            f"the weights are {shown} and sum to {sum(weights):g}; at least one must be above 0"
        )
    if method == "slerp" and len(weights) != 2:
        raise RecipeError(
            f"slerp is between two models, and {len(weights)} are named; of more, the result would depend on their "
            "order.\n       Take the average, or merge two of them, and then the result with the next."
        )
    return [weight / sum(weights) for weight in weights]


def slerp(one: Tensor, other: Tensor, t: float) -> Tensor:
    """Spherical linear interpolation of two tensors of one shape, seen as vectors (Shoemake, SIGGRAPH 1985).

        sin((1 - t) a) / sin(a) * one + sin(t a) / sin(a) * other,   a the angle between them

    Between unit vectors it stays on the unit sphere, where a straight line cuts the corner. Where there is no angle, or
    hardly one (a tensor of zeros, parallel or opposite tensors), it is the straight line.

    Args:
        t: In [0, 1]; 0 gives ``one`` and 1 ``other``.

    Returns: A new tensor, float32 or wider.
    """
    merged = _copy(one)
    _turn(merged, other, t, "slerp")
    return merged


def _copy(value: Tensor) -> Tensor:
    """A tensor of its own; numbers are kept in float32 at least."""
    dtype = (
        torch.promote_types(value.dtype, torch.float32)
        if value.is_floating_point()
        else value.dtype
    )
    return value.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def _turn(merged: Tensor, other: Tensor, t: float, method: Method) -> None:
    """Move ``merged`` towards ``other``, in place."""
    if not merged.is_floating_point():
        return
    mine, theirs = _coefficients(merged, other, t) if method == "slerp" else (1 - t, t)
    for part, towards in _blocks(merged, other):
        part.copy_(mine * part.double() + theirs * towards.double())


def _coefficients(one: Tensor, other: Tensor, t: float) -> tuple[float, float]:
    """What slerp multiplies both with."""
    dot = norm_one = norm_other = 0.0
    for part, towards in _blocks(one, other):
        left, right = part.double(), towards.double()
        dot += float(left @ right)
        norm_one += float(left @ left)
        norm_other += float(right @ right)
    if not norm_one or not norm_other:
        return 1 - t, t
    angle = math.acos(max(-1.0, min(1.0, dot / math.sqrt(norm_one * norm_other))))
    if math.sin(angle) < PARALLEL_SINE:
        return 1 - t, t
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _blocks(one: Tensor, other: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Corresponding parts of two tensors of one shape; those of ``one`` share its memory."""
    return zip(torch.split(one.view(-1), BLOCK), torch.split(other.reshape(-1), BLOCK), strict=True)


def _refuse_what_is_no_number(name: str, state: State) -> None:
    bad = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if bad:
        raise ModelError(
            f"'{name}' has weights that are no numbers (NaN or infinite): {_some(bad)}. Leave it out."
        )


def _refuse_other_weights(first: str, merged: State, name: str, state: State) -> None:
    for here, these, there, those in ((name, state, first, merged), (first, merged, name, state)):
        if missing := [key for key in those if key not in these]:
            raise ModelError(
                f"'{here}' lacks weights that '{there}' has: {_some(missing)}. Merge models of one backbone."
            )
    for key, value in state.items():
        if value.shape != merged[key].shape:
            raise ModelError(
                f"the weight {key} has the shape {list(merged[key].shape)} in '{first}' and {list(value.shape)} in "
                f"'{name}'. Merge models of one backbone."
            )
        if not value.is_floating_point() and not torch.equal(value, merged[key]):
            raise ModelError(
                f"{key}, which cannot be averaged, is another in '{first}' than in '{name}'"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
