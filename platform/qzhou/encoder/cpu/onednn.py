"""Dense layers in float32 that multiply with oneDNN, for CPUs on which torch's own choice of library is slow.

torch multiplies float32 matrices with MKL, which takes its slow path on processors that are
not Intel's: on an AMD EPYC with AVX-512 it reaches 95 GFLOP/s a core where oneDNN, which
torch carries too, reaches 210 (LOG.md). Which one a run takes is decided in
:mod:`qzhou.encoder.arithmetic`.
"""

from typing import Any

import torch
from torch import Tensor, nn


class OneDnnLinear(nn.Linear):
    """A dense layer that computes with oneDNN, its gradients too."""

    def forward(self, input: Tensor) -> Tensor:
        """``input`` W^T + b, as :class:`torch.nn.Linear` gives it."""
        if not torch.is_grad_enabled():
            return _multiplied(input, self.weight, self.bias)
        found: Tensor = _WithGradient.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


class _WithGradient(torch.autograd.Function):
    """``y = x W^T + b``; ``dx = dy W``, ``dW = dy^T x``, ``db`` the sum of ``dy``."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(given, weight)
        ctx.has_bias = bias is not None
        return _multiplied(given, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        given, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_given = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_given = _multiplied(rows, weight.t().contiguous(), None).view(given.shape)
        if ctx.needs_input_grad[1]:
            columns = given.reshape(-1, given.shape[-1]).t().contiguous()
            of_weight = _multiplied(rows.t().contiguous(), columns, None)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_given, of_weight, of_bias


def multiply_with_onednn(model: nn.Module) -> bool:
    """Whether a model's dense layers in float32 multiply with oneDNN from now on; not where torch lacks it.

    Args:
        model: On a CPU; its layers change in place, their weights and names do not.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.weight.dtype == torch.float32:
            layer.__class__ = OneDnnLinear
    return True


def _multiplied(given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The public way, linear(given.to_mkldnn(), weight, bias).to_dense(), gives the same bits, but copies what goes in
    # and what comes out: 14 to 16 % slower (2,048 rows, 384 x 1,536 and back, one core).
    found: Tensor = torch.ops.mkldnn._linear_pointwise(given, weight, bias, "none", [], "")  # noqa: SLF001
    return found
