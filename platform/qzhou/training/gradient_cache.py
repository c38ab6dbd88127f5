"""The gradient of a loss over a global batch, whatever part of the batch fits into memory.

1. Every rank encodes its share, and the vectors of all ranks are gathered. 2. Every rank
computes the loss of the whole batch and its gradient with respect to the vectors. 3. Every
rank sends its own slice of that gradient back through its share.

Micro-batches whose activations fit into memory are encoded once. The others are encoded
twice: without activations for the loss, and again, one at a time, for the gradient
(gradient caching, arXiv:2101.06983). The gradient is the same, because the loss reaches the
weights through the vectors alone.

Shape letters in this file: N texts of the global batch, S texts of one rank's share, D
embedding width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from qzhou.telemetry.memory import release_freed_memory
from qzhou.training.engine import Engine
from qzhou.training.sharding import Ids, ShardedBatch

Forward = Callable[[Sequence[Ids]], Tensor]


def embed(batch: ShardedBatch, forward: Forward) -> Tensor:
    """Vectors [N, D] of a batch on every rank, without gradient."""
    with torch.no_grad():
        local_SD = torch.cat([forward(texts) for texts in batch.micro_batches])
    return gathered(local_SD, batch.world)[batch.row_N.to(local_SD.device)]


def backward(batch: ShardedBatch, forward: Forward, loss_of: Callable[[Tensor], Tensor], engine: Engine) -> Tensor:
    """The loss of a batch; its gradient is added to the weights' gradients.

    Args:
        batch: This rank's share.
        forward: S texts' token ids to vectors [S, D]; with gradient if torch records one.
        loss_of: Vectors [N, D] of the global batch to a scalar; the same on every rank.
        engine: Takes the gradients of this rank's share.
    """
    cached = len(batch.micro_batches) - batch.count_within(engine.activation_tokens)
    with torch.no_grad():
        parts = [forward(texts) for texts in batch.micro_batches[:cached]]
    active_SD = torch.cat([forward(texts) for texts in batch.micro_batches[cached:]])
    local_SD = torch.cat([*parts, active_SD.detach()])
    row_N = batch.row_N.to(local_SD.device)
    vector_ND = gathered(local_SD, batch.world)[row_N].requires_grad_()
    loss = loss_of(vector_ND)
    (gradient_ND,) = torch.autograd.grad(loss, vector_ND)
    share, width = local_SD.shape
    gradient = gradient_ND.new_zeros(share * batch.world, width)
    # equal texts have one vector, so their gradients add up
    gradient.index_add_(0, row_N, gradient_ND)
    # engines average over ranks, and each rank has a part of one sum
    own_SD = gradient[engine.rank * share : (engine.rank + 1) * share] * batch.world
    engine.backward((active_SD * own_SD[share - len(active_SD) :]).sum(), last=cached == 0)
    del active_SD
    _release(local_SD)
    start = 0
    for number, texts in enumerate(batch.micro_batches[:cached]):
        again_SD = forward(texts)
        slice_SD = own_SD[start : start + len(texts)]
        engine.backward((again_SD * slice_SD).sum(), last=number + 1 == cached)
        start += len(texts)
        _release(local_SD)
    return loss.detach()


def gathered(local_SD: Tensor, world: int) -> Tensor:
    """The rows of all ranks, rank 0 first."""
    if world == 1:
        return local_SD
    parts = [torch.empty_like(local_SD) for _ in range(world)]
    dist.all_gather(parts, local_SD.contiguous())
    return torch.cat(parts)


def _release(vectors: Tensor) -> None:
    """Shrink the heap between micro-batches on a CPU; GPUs have their own allocator."""
    if vectors.device.type == "cpu":
        release_freed_memory()
