"""One global batch encoded by all ranks together, with gradient.

Shape letters in this file: N texts of the global batch, S texts of one rank's share, D width, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qzhou.encoder.encoder import token_ids


@dataclass(frozen=True, slots=True)
class GlobalEmbedder:
    """Texts in, unit vectors of the whole batch out, the same on every rank.

    The texts are dealt out by length, so that ranks get equal work; each encodes its share and the
    shares are gathered. A share is filled up with a repeated text where the count does not divide,
    so every rank makes the same number of forward passes (ZeRO-3 would hang otherwise).

    Attributes:
        forward: Token ids and mask [S, T] to unit vectors [S, D].
        chunks: Parts in which a share is encoded, by length, to waste less padding.
    """

    forward: Callable[[Tensor, Tensor], Tensor]
    tokenizer: Any
    device: torch.device
    chunks: int = 1
    rank: int = 0
    world: int = 1

    def __call__(self, texts: Sequence[str], *, max_tokens: int) -> Tensor:
        """Vectors [N, D] in the order of the texts, with gradient to every rank's share.

        Args:
            texts: Carry their prompts; the same list on every rank, at least one.
            max_tokens: Longer texts are truncated.
        """
        ids = token_ids(self.tokenizer, texts, max_tokens=max_tokens)
        order = sorted(range(len(texts)), key=lambda row: (len(ids[row]), row))
        share_size = -(-len(order) // self.world)
        order += order[:1] * (share_size * self.world - len(order))
        share = order[self.rank :: self.world]
        parts = torch.tensor_split(torch.tensor(share), min(self.chunks, len(share)))
        local_SD = torch.cat([self._encode([ids[row] for row in part.tolist()]) for part in parts])
        gathered = gather_rows(local_SD, rank=self.rank, world=self.world)
        # rank r holds order[r::world], so text order[k * world + r] is row r * share_size + k
        place = torch.empty(len(texts), dtype=torch.int64)
        for position in reversed(range(len(order))):
            place[order[position]] = (position % self.world) * share_size + position // self.world
        return gathered[place.to(gathered.device)]

    def _encode(self, ids: list[list[int]]) -> Tensor:
        padded = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        return self.forward(padded["input_ids"].to(self.device), padded["attention_mask"].to(self.device))


def gather_rows(local_SD: Tensor, *, rank: int, world: int) -> Tensor:
    """All ranks' rows, rank 0's first, with gradient to the local ones.

    Every rank must go on to compute the same loss from the result, and gradients must then be
    averaged over ranks, as data-parallel engines do.
    """
    if world == 1:
        return local_SD
    gathered: Tensor = _GatherRows.apply(local_SD, rank, world)  # type: ignore[no-untyped-call]
    return gathered


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward needs no communication.

    Each rank has the same loss and so the same gradient for the gathered rows; its own slice is the
    true gradient of its share. The engine's average divides by ``world``, hence the factor.
    """

    @staticmethod
    def forward(ctx: Any, local_SD: Tensor, rank: int, world: int) -> Tensor:
        ctx.rank, ctx.world, ctx.rows = rank, world, len(local_SD)
        parts = [torch.empty_like(local_SD) for _ in range(world)]
        dist.all_gather(parts, local_SD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        start = ctx.rank * ctx.rows
        return gradient[start : start + ctx.rows] * ctx.world, None, None
