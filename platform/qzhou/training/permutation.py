"""A pseudo-random order of the rows of a dataset that is computed, not stored."""

from typing import Any

import numpy as np

from qzhou.data.splitmix import splitmix64

Ints = np.ndarray[Any, np.dtype[np.int64]]

# four make a permutation that cannot be told from a random one (Luby and Rackoff, 1988); two to spare
ROUNDS = 6
ONE = np.uint64(1)


def permuted(positions: Ints, *, rows: int, key: tuple[int, ...]) -> Ints:
    """The row at each position of a pseudo-random order, in [0, rows); all positions together give each row once.

    A Feistel network permutes the numbers below the next power of four. A result outside of
    the rows goes through the network again until it is inside (cycle walking, Black and
    Rogaway, 2002). Memory is that of the positions, whatever the number of rows.

    Args:
        positions: In [0, rows).
        rows: Length of the order.
        key: Names the order; any integers from 0.
    """
    half = np.uint64(max(1, (max(rows - 1, 1).bit_length() + 1) // 2))
    low = (ONE << half) - ONE
    keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)
    value = positions.astype(np.uint64)
    outside = np.ones(len(value), dtype=bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & low
        for word in keys:
            left, right = right, left ^ (splitmix64(right ^ word) & low)
        value[outside] = left << half | right
        outside = value >= np.uint64(rows)
    return value.astype(np.int64)
