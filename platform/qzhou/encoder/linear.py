"""Dense layers in float32 on CPUs for which torch's own choice of library is slow.

torch multiplies float32 matrices with MKL, which takes its slow path on processors that are not Intel's: on an AMD EPYC
with AVX-512 it reaches 95 GFLOP/s a core where oneDNN, which torch carries too, reaches 210 (LOG.md). Which one is
faster is measured when a model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 512  # of the matrix with which the two are compared
ROUNDS = 4
FASTER = 1.2  # times; below, nothing is changed


class OneDnnLinear(nn.Linear):
    """A dense layer that computes with oneDNN, its gradients too."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return _one_dnn(input, self.weight, self.bias)
        found: Tensor = _WithGradient.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


class _WithGradient(torch.autograd.Function):
    """``y = x W^T + b``; ``dx = dy W``, ``dW = dy^T x``, ``db`` the sum of ``dy``."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(given, weight)
        ctx.has_bias = bias is not None
        return _one_dnn(given, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        given, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_given = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_given = _one_dnn(rows, weight.t().contiguous(), None).view(given.shape)
        if ctx.needs_input_grad[1]:
            columns = given.reshape(-1, given.shape[-1]).t().contiguous()
            of_weight = _one_dnn(rows.t().contiguous(), columns, None)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_given, of_weight, of_bias


def take_faster_linear(model: nn.Module) -> bool:
    """Let a model's dense layers compute with oneDNN, if that is faster here and gives the same.

    Args:
        model: On a CPU; its layers of float32 change in place, their weights and names do not.

    Returns: Whether they did.
    """
    layers = [
        one
        for one in model.modules()
        if type(one) is nn.Linear and one.weight.dtype == torch.float32
    ]
    if not layers or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    largest = max(layers, key=lambda one: one.weight.numel())
    with torch.inference_mode():
        given = torch.randn(ROWS, largest.in_features, generator=torch.Generator().manual_seed(0))
        asked = (given, largest.weight, largest.bias)
        same = torch.allclose(nn.functional.linear(*asked), _one_dnn(*asked), atol=1e-3, rtol=1e-3)
        usual, other = (_seconds(work, *asked) for work in (nn.functional.linear, _one_dnn))
        if not same or usual < FASTER * other:
            return False
    for layer in layers:
        layer.__class__ = OneDnnLinear
    return True


def _one_dnn(given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(given, weight, bias, "none", [], "")
    return found


def _seconds(work: Callable[[Tensor, Tensor, Tensor | None], Tensor], *asked: Any) -> float:
    """The best of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work(*asked)
        taken.append(time.perf_counter() - started)
    return min(taken)
