"""Which examples repeat others or share held-out texts: one sort of all keys of a bucket.

A bucket is compared by itself, so the work spreads over a cluster, and memory depends on
the size of a bucket alone.
"""

from enum import IntEnum

import numpy as np
import pyarrow as pa

from qzhou.transform.deduplication.keys import KEYS, KEYS_OF_SHARDS, KeyKind
from qzhou.transform.layout import Layout, Shard
from qzhou.transform.shuffling.partitions import write_partitions

DUPLICATES = pa.schema([("row", pa.uint32()), ("reason", pa.uint8()), ("first", pa.uint32())])
NOTHING = np.uint64(2**64 - 1)


class DropReason(IntEnum):
    """Why an example is not trained on; the smallest one counts where there are several."""

    IN_HELD_OUT = 1
    DUPLICATE = 2
    NEAR_DUPLICATE = 3
    CONTAMINATED = 4


DETAILS = {
    DropReason.IN_HELD_OUT: "one of its texts is held out for evaluation in dataset '{dataset}'",
    DropReason.DUPLICATE: "an earlier row of dataset '{dataset}' has the same texts up to case and white space",
    DropReason.NEAR_DUPLICATE: "an earlier row of dataset '{dataset}' is nearly the same on every side",
    DropReason.CONTAMINATED: "it shares an n-gram with a text of an evaluation task",
}


def compare_bucket(layout: Layout, bucket: int) -> None:
    """Compare the keys of one bucket; write, by shard, the rows to drop, why, and the shard of the row they repeat."""
    keys = pa.Table.from_batches(layout.partition("keys", bucket), schema=KEYS_OF_SHARDS)
    shards = keys["shard"].to_numpy().astype(np.int64)
    positions, reasons, first = find_duplicates(keys, shards)
    columns = {
        "row": keys["row"].to_numpy()[positions],
        "reason": reasons.astype(np.uint8),
        "first": shards[first].astype(np.uint32),
    }
    table = pa.table(columns, schema=DUPLICATES)
    folder = layout.work / "duplicates"
    name = f"{bucket:06d}.arrow"
    write_partitions(folder, name, table, shards[positions], len(layout.shards))


def drop_reasons_of(layout: Layout, shard: Shard, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each candidate a :class:`DropReason` or 0 (uint8), and the shard of the row that it repeats (uint32).

    ``places`` are those of the shard's candidates.
    """
    # The reason stands in the upper half of a number, so that the minimum is the reason that counts.
    found = np.full(int(places.max(initial=-1)) + 1, NOTHING, dtype=np.uint64)
    for batch in layout.partition("duplicates", shard.number) if layout.finds_duplicates else ():
        reason, first = (batch[name].to_numpy().astype(np.uint64) for name in ("reason", "first"))
        np.minimum.at(found, batch["row"].to_numpy(), reason << np.uint64(32) | first)
    found[found == NOTHING] = 0
    found = found[places]
    return (found >> np.uint64(32)).astype(np.uint8), found.astype(np.uint32)


def find_duplicates(keys: pa.Table, shard: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The keys whose examples are dropped.

    Of equal keys the first one stays: held-out examples come before others, then the order
    of the recipe counts. A training text that equals a held-out one is dropped in any case.

    Args:
        keys: KEYS of all shards, one bucket of them.
        shard: For each key, the number of its shard; shards are numbered in the order of the recipe.

    Returns: Positions in ``keys``, a :class:`DropReason` for each, and the positions of the
        keys that they repeat; all int64.
    """
    high, low, row, space, held_out = (keys[name].to_numpy() for name in KEYS.names)
    place = (shard.astype(np.uint64) << np.uint64(32)) | row.astype(np.uint64)
    order = np.lexsort((place, ~held_out, low, high, space))
    high, low, place, space, held_out = (column[order] for column in (high, low, place, space, held_out))
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (np.diff(high) != 0) | (np.diff(low) != 0) | (space[1:] != space[:-1])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    is_text = np.isin(space, (KeyKind.RETRIEVAL_TEXT, KeyKind.SIMILARITY_TEXT))
    is_near = space == KeyKind.NEAR
    # A text that stands twice in one example repeats nothing.
    same_row = place == place[first]
    in_held_out = is_text & held_out[first] & ~held_out
    repeated = ~is_text & ~starts & ~same_row
    reasons = np.select(
        [in_held_out, repeated & is_near, repeated],
        [DropReason.IN_HELD_OUT, DropReason.NEAR_DUPLICATE, DropReason.DUPLICATE],
    )
    found = np.flatnonzero(reasons)
    return order[found], reasons[found], order[first[found]]
