"""The gradient of a loss over a global batch, whatever part of the batch fits into memory.

All ranks encode their shares, the vectors are gathered, every rank computes the loss of the whole batch and its
gradient with respect to the vectors, and each sends its own slice of that gradient through its share. Chunks whose
activations fit are encoded once. The others are encoded twice: without activations for the loss, and again, one at a
time, for the gradient (gradient caching, arXiv:2101.06983). The gradient is the same, because the loss reaches the
weights through the vectors alone.

Shape letters in this file: N texts of the global batch, S texts of one rank's share, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from qzhou.training.deal import Deal, Ids
from qzhou.training.memory import give_back

Forward = Callable[[Sequence[Ids]], Tensor]


class Backward(Protocol):
    """One of the backward passes of a step; the engine averages gradients over ranks after the last."""

    def __call__(self, value: Tensor, *, last: bool) -> None: ...


def embed(deal: Deal, forward: Forward) -> Tensor:
    """Vectors [N, D] of a batch on every rank, without gradient."""
    with torch.no_grad():
        local_SD = torch.cat([forward(chunk) for chunk in deal.chunks])
    return gathered(local_SD, deal.world)[deal.place_N.to(local_SD.device)]


def backward(
    deal: Deal,
    forward: Forward,
    run_backward: Backward,
    loss_of: Callable[[Tensor], Tensor],
    *,
    rank: int,
    held: int,
) -> Tensor:
    """Compute a loss and add its gradient to the weights' gradients.

    Args:
        forward: Token ids of S texts to vectors [S, D]; with gradient where torch records one.
        loss_of: Vectors [N, D] of the global batch to a scalar; the same function of the same batch on every rank.
        held: Padded tokens whose activations are held.

    Returns: The loss.
    """
    first_held = len(deal.chunks) - deal.held(held)
    with torch.no_grad():
        parts = [forward(chunk) for chunk in deal.chunks[:first_held]]
    alive_SD = torch.cat([forward(chunk) for chunk in deal.chunks[first_held:]])
    local_SD = torch.cat([*parts, alive_SD.detach()])
    place_N = deal.place_N.to(local_SD.device)
    vector_ND = gathered(local_SD, deal.world)[place_N].requires_grad_()
    loss = loss_of(vector_ND)
    (gradient_ND,) = torch.autograd.grad(loss, vector_ND)
    share = len(local_SD)
    gradient = torch.zeros(
        share * deal.world, local_SD.shape[1], dtype=gradient_ND.dtype, device=local_SD.device
    )
    gradient.index_add_(0, place_N, gradient_ND)
    # engines average over ranks; each rank has a part of one sum
    own_SD = gradient[rank * share : (rank + 1) * share] * deal.world
    start = share - len(alive_SD)
    run_backward((alive_SD * own_SD[start:]).sum(), last=first_held == 0)
    del alive_SD
    give_back(local_SD.device)
    start = 0
    for number, chunk in enumerate(deal.chunks[:first_held]):
        again_SD = forward(chunk)
        run_backward(
            (again_SD * own_SD[start : start + len(chunk)]).sum(), last=number + 1 == first_held
        )
        start += len(chunk)
        give_back(local_SD.device)
    return loss.detach()


def gathered(local_SD: Tensor, world: int) -> Tensor:
    """All ranks' rows, rank 0's first."""
    if world == 1:
        return local_SD
    parts = [torch.empty_like(local_SD) for _ in range(world)]
    dist.all_gather(parts, local_SD.contiguous())
    return torch.cat(parts)
