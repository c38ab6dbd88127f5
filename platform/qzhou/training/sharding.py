"""Each rank's share of a global batch, cut into micro-batches of texts of similar length.

Shape letters in this file: N texts of the global batch, S texts of one rank's share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from qzhou.encoder.batching import length_batches

Ids = Sequence[int]
MicroBatches = list[list[Ids]]

# share of padding at which a micro-batch ends before it is full, once it is filled enough: a quarter full, or with a
# sixteenth of a share that is smaller
MAX_PADDING = 0.1
LARGE_PART, SMALL_PARTS = 4, 16


@dataclass(frozen=True, slots=True)
class ShardedBatch:
    """A rank's share of a batch: as many micro-batches, of the same sizes, on every rank.

    In ZeRO-3, ranks that make different numbers of forward passes would wait for each other
    for ever.

    Attributes:
        micro_batches: Token ids of the texts of each forward pass, longest first.
        padded_tokens: Tokens of each micro-batch, the same on every rank: padded to the longest text of any rank;
            packed, what the texts of any rank have at most, each in its place.
        row_N: Row of each text's vector in the matrix of all ranks' shares, rank 0 first.
            Equal texts are encoded once and have the same row.
        tokens: Tokens of all ranks without padding; equal texts count once.
        encoded_tokens: Tokens that all ranks compute, padding and texts that fill up a share included.
        world: Number of ranks.
    """

    micro_batches: MicroBatches
    padded_tokens: list[int]
    row_N: Tensor
    tokens: int
    encoded_tokens: int
    world: int

    @property
    def padding_share(self) -> float:
        """Share of encoded tokens that are padding or texts repeated to fill up a share."""
        return 1 - self.tokens / self.encoded_tokens

    def count_within(self, budget: int) -> int:
        """How many of the last micro-batches have at most ``budget`` padded tokens together; at least one."""
        total = 0
        for count, padded in enumerate(reversed(self.padded_tokens)):
            total += padded
            if count and total > budget:
                return count
        return len(self.padded_tokens)


def shard_batch(
    ids: Sequence[Ids], *, rank: int = 0, world: int = 1, micro_batch_tokens: int, packed: bool = False
) -> ShardedBatch:
    """A rank's share of the texts, distributed by length, so that ranks have equal work.

    Every rank computes the same distribution from the same texts, without communication.

    Args:
        ids: Token ids of the N texts, the same on every rank; at least one text.
        rank: The rank whose share is returned.
        world: Number of ranks.
        micro_batch_tokens: Tokens of a micro-batch, padding included; a longer text is a micro-batch of its own.
        packed: Whether texts lie end to end, without padding (:class:`qzhou.encoder.attention.Packed`).
    """
    number: dict[tuple[int, ...], int] = {}
    text_N = [number.setdefault(tuple(one), len(number)) for one in ids]
    texts = list(number)
    order = sorted(range(len(texts)), key=lambda text: (-len(texts[text]), text))
    position = {text: place for place, text in enumerate(order)}
    share = -(-len(order) // world)
    # the shortest text fills up the last shares
    order += order[-1:] * (share * world - len(order))
    longest = [len(texts[text]) for text in order[::world]]
    filled = min(micro_batch_tokens // LARGE_PART, sum(longest) // SMALL_PARTS)
    batches = length_batches(
        longest, micro_batch_tokens, packed=packed, most_padding=MAX_PADDING, filled_tokens=filled
    )
    sizes = [len(batch) for batch in batches]
    starts = list(accumulate(sizes, initial=0))[:-1]
    own = [texts[text] for text in order[rank::world]]
    row_N = [position[text] % world * share + position[text] // world for text in text_N]
    spans = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    padded = [sum(longest[span]) if packed else len(longest[span]) * longest[span.start] for span in spans]
    return ShardedBatch(
        [list(own[span]) for span in spans],
        padded,
        torch.tensor(row_N),
        tokens=sum(map(len, texts)),
        encoded_tokens=sum(len(texts[text]) for text in order) if packed else world * sum(padded),
        world=world,
    )
