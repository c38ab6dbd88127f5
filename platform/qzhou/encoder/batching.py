"""Texts of like length together, so that little of a batch is padding."""

from collections.abc import Iterator, Sequence

SMALL_SHARE = 4  # a batch below this part of the budget is filled whatever the padding


def length_batches(
    lengths: Sequence[int],
    batch_tokens: int,
    *,
    packed: bool = False,
    most_padding: float = 1.0,
    filled_tokens: int | None = None,
) -> Iterator[list[int]]:
    """Rows grouped by length, longest first, so that ``rows * longest <= batch_tokens``.

    A single text above the budget is a batch of its own. Longest first: if memory does not
    suffice, the first batch says so.

    Args:
        lengths: Tokens of each text.
        batch_tokens: Tokens of a batch at most, padding included.
        packed: There is no padding: the texts of a batch have so many tokens together.
        most_padding: Share of a batch that may be padding, once the batch is filled enough.
        filled_tokens: Tokens of a batch that is filled enough; default: a quarter of ``batch_tokens``.
    """
    enough = batch_tokens // SMALL_SHARE if filled_tokens is None else filled_tokens
    batch: list[int] = []
    longest = filled = 0
    for row in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        longest = longest or lengths[row]
        tokens = filled + lengths[row]
        padded = tokens if packed else (len(batch) + 1) * longest
        is_wasteful = padded > enough and tokens < (1 - most_padding) * padded
        if batch and (padded > batch_tokens or is_wasteful):
            yield batch
            batch, longest, filled = [], lengths[row], 0
        batch.append(row)
        filled += lengths[row]
    if batch:
        yield batch


def nearest_batch(lengths: Sequence[int], batch_tokens: int) -> list[int]:
    """The first row and those that are nearest to it in length, so that ``rows * longest <= batch_tokens``.

    Of rows that are equally near, the earlier goes first. The first row is there whatever
    its length.

    Args:
        lengths: Tokens of each text; at least one.
        batch_tokens: Padded tokens of the batch at most.
    """
    batch, longest = [0], lengths[0]
    for row in sorted(range(1, len(lengths)), key=lambda one: (abs(lengths[one] - lengths[0]), one)):
        reach = max(longest, lengths[row])
        if (len(batch) + 1) * reach <= batch_tokens:
            batch.append(row)
            longest = reach
    return batch
