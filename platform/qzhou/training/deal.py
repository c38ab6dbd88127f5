"""Who encodes which texts of a global batch, and in which forward passes.

Shape letters in this file: N texts of the global batch, S texts of one rank's share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Ids = Sequence[int]

WASTE = 0.1  # share of padding at which a chunk ends before it is full, once it is a quarter full


@dataclass(frozen=True, slots=True)
class Deal:
    """One rank's share of a batch in chunks: the same number of chunks, of the same sizes, on every rank.

    Ranks that make different numbers of forward passes would wait for each other for ever in ZeRO-3.

    Attributes:
        chunks: Token ids of the texts of each forward pass, longest first.
        padded: Padded tokens of each chunk, by the longest text that any rank has in it.
        place_N: Where each text's vector stands when all shares, rank 0's first, are one matrix. Equal texts, which
            are encoded once, share a place.
        tokens: Of all ranks' texts, without padding and without texts that are encoded for another's sake.
        world: Number of ranks.
    """

    chunks: list[list[Ids]]
    padded: list[int]
    place_N: Tensor
    tokens: int
    world: int

    @property
    def share(self) -> int:
        """S, the texts of a rank."""
        return sum(map(len, self.chunks))

    @property
    def padding_share(self) -> float:
        """Share of what the ranks encode that is padding, or a text that fills up a share."""
        return 1 - self.tokens / (self.world * sum(self.padded))

    def held(self, budget: int) -> int:
        """How many of the last chunks fit into so many padded tokens; at least one."""
        total = 0
        for count, padded in enumerate(reversed(self.padded)):
            total += padded
            if count and total > budget:
                return count
        return len(self.padded)


def deal(ids: Sequence[Ids], *, rank: int = 0, world: int = 1, micro_batch_tokens: int) -> Deal:
    """Deal texts out by length, like cards: every rank gets equal work without a word between them.

    Args:
        ids: Token ids of the N texts, the same on every rank; at least one.
        micro_batch_tokens: Padded tokens of a chunk; a text that is longer is a chunk of its own.
    """
    number: dict[tuple[int, ...], int] = {}
    distinct_N = [number.setdefault(tuple(one), len(number)) for one in ids]
    texts = list(number)
    order = sorted(range(len(texts)), key=lambda text: (-len(texts[text]), text))
    share = -(-len(order) // world)
    position = {text: place for place, text in enumerate(order)}
    order += order[-1:] * (share * world - len(order))  # the shortest fills up what does not divide
    chunks: list[list[Ids]] = []
    padded: list[int] = []
    longest = filled = 0
    for turn in range(share):
        length = len(texts[order[turn * world]])
        following = ((len(chunks[-1]) if chunks else 0) + 1) * longest
        wasteful = following > micro_batch_tokens // 4 and filled + length < (1 - WASTE) * following
        if not chunks or following > micro_batch_tokens or wasteful:
            chunks.append([])
            padded.append(0)
            longest, filled = length, 0
        chunks[-1].append(texts[order[turn * world + rank]])
        filled += length
        padded[-1] = len(chunks[-1]) * longest
    places = [position[text] for text in distinct_N]
    place_N = torch.tensor([place % world * share + place // world for place in places])
    return Deal(chunks, padded, place_N, sum(map(len, texts)), world)
