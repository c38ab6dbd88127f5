"""The weights of several models merged into one model's: averaged, or two models interpolated on a sphere.

Models that were fine-tuned from one backbone lie in one basin of the loss, and what lies
between them is often better than each: model soups (arXiv:2203.05482). Qwen3-Embedding
interpolates checkpoints by slerp (arXiv:2506.05176; without it the 0.6B model loses 2.5
points of MTEB). EmbeddingGemma (arXiv:2509.20354) and llama-embed-nemotron-8b
(arXiv:2511.07025) average runs with different mixtures of data.

Models are read one at a time into a running result, so memory holds the result and one
model. Products are computed in float64 and the result is kept in float32: a model merged
with itself is itself.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from qzhou.errors import ModelError, RecipeError

Method = Literal["average", "slerp"]
State = Mapping[str, Tensor]

# Below this sine, slerp divides by rounding errors; there it differs from the straight line by the sine's square.
PARALLEL_SINE = 1e-6
# elements that are in float64 at a time: a whole embedding matrix of a 7B model would take 4 GB
BLOCK = 2**24
NAMES_SHOWN = 3  # by an error about weights


def merge_states(
    models: Iterable[tuple[str, State]], weights: Sequence[float], *, method: Method = "average"
) -> dict[str, Tensor]:
    """The weights of one model merged from several: new tensors, float32 or wider.

    A tensor of integers must be the same in all models, and is kept.

    Args:
        models: Name for errors, and weights by name; read once, in order, and not kept.
        weights: One for each model, not negative; only their proportions matter.
        method: ``average``: sum of w_i x_i over sum of w_i. ``slerp``: :func:`slerp` of two models, tensor by tensor,
            with t the second model's share. It takes exactly two models, because slerp of
            slerps depends on the order in which three are named, and nobody has shown which
            order is right.

    Raises:
        RecipeError: Weights without a positive sum, or not two models for slerp.
        ModelError: A model lacks weights, has them in another shape, or has weights that are NaN or infinite.
    """
    merged: dict[str, Tensor] = {}
    total, first, following = 0.0, "", iter(models)
    # zip() would hold a model while the next one is read
    for share in shares_of(weights, method=method):
        name, state = next(following)
        _refuse_infinite(name, state)
        total += share
        if not merged:
            first = name
            merged = {key: _copy(value) for key, value in state.items()}
        else:
            _refuse_other_weights(first, merged, name, state)
            for key, value in state.items():
                _move_towards(merged[key], value, share / total if total else 0.0, method)
        del state
    return merged


def shares_of(weights: Sequence[float], *, method: Method) -> list[float]:
    """The weights divided by their sum.

    Raises:
        RecipeError: One is negative or no number, all are zero, or slerp has not two.
    """
    shown = ", ".join(f"{weight:g}" for weight in weights)
    if not all(0 <= weight < math.inf for weight in weights):
        raise RecipeError(f"the weights are {shown}; a weight is a number, 0 or above")
    total = sum(weights)
    if total <= 0:
        raise RecipeError(f"the weights are {shown} and sum to {total:g}; at least one must be above 0")
    if method == "slerp" and len(weights) != 2:
        raise RecipeError(
            f"slerp is between two models, and {len(weights)} are named; of more, the result would depend on their "
            "order.\n       Take the average, or merge two of them, and then the result with the next."
        )
    return [weight / total for weight in weights]


def slerp(one: Tensor, other: Tensor, t: float) -> Tensor:
    """Spherical linear interpolation of two tensors of one shape, seen as vectors (Shoemake, SIGGRAPH 1985).

        sin((1 - t) a) / sin(a) * one + sin(t a) / sin(a) * other,   a their angle

    Between unit vectors the result is a unit vector; that of a straight line would be
    shorter. Without an angle (a tensor of zeros, parallel or opposite tensors) it is the
    straight line. The result is float32 or wider.

    Args:
        one: The result at t = 0.
        other: The result at t = 1.
        t: In [0, 1].
    """
    merged = _copy(one)
    _move_towards(merged, other, t, "slerp")
    return merged


def _copy(value: Tensor) -> Tensor:
    """A new tensor; numbers are kept in float32 at least."""
    dtype = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
    return value.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def _move_towards(merged: Tensor, other: Tensor, t: float, method: Method) -> None:
    """Interpolate in place: 0 leaves ``merged`` as it is, 1 makes it ``other``."""
    if not merged.is_floating_point():
        return
    mine, theirs = _coefficients(merged, other, t) if method == "slerp" else (1 - t, t)
    for part, towards in _blocks(merged, other):
        part.copy_(mine * part.double() + theirs * towards.double())


def _coefficients(one: Tensor, other: Tensor, t: float) -> tuple[float, float]:
    """The factors of both tensors in slerp."""
    dot = norm_one = norm_other = 0.0
    for part, towards in _blocks(one, other):
        left, right = part.double(), towards.double()
        dot += float(left @ right)
        norm_one += float(left @ left)
        norm_other += float(right @ right)
    if not norm_one or not norm_other:
        return 1 - t, t
    angle = math.acos(max(-1.0, min(1.0, dot / math.sqrt(norm_one * norm_other))))
    sine = math.sin(angle)
    if sine < PARALLEL_SINE:
        return 1 - t, t
    return math.sin((1 - t) * angle) / sine, math.sin(t * angle) / sine


def _blocks(one: Tensor, other: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Corresponding parts of two equal-shape tensors; those of ``one`` share its memory."""
    return zip(torch.split(one.view(-1), BLOCK), torch.split(other.reshape(-1), BLOCK), strict=True)


def _refuse_infinite(name: str, state: State) -> None:
    if bad := [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ModelError(f"'{name}' has weights that are no numbers (NaN or infinite): {_some(bad)}. Leave it out.")


def _refuse_other_weights(first: str, merged: State, name: str, state: State) -> None:
    for lacking, present, one, other in ((name, first, state, merged), (first, name, merged, state)):
        if missing := [key for key in other if key not in one]:
            raise ModelError(
                f"'{lacking}' lacks weights that '{present}' has: {_some(missing)}. Merge models of one backbone."
            )
    for key, value in state.items():
        if value.shape != merged[key].shape:
            raise ModelError(
                f"the weight {key} has the shape {list(merged[key].shape)} in '{first}' and {list(value.shape)} in "
                f"'{name}'. Merge models of one backbone."
            )
        if not value.is_floating_point() and not torch.equal(value, merged[key]):
            raise ModelError(f"{key}, which cannot be averaged, is another in '{first}' than in '{name}'")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
