"""A pseudo-random order of the rows of a dataset that is computed, not stored."""

from __future__ import annotations

from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]

# four make a permutation that cannot be told from a random one (Luby and Rackoff, 1988); two to
# spare
ROUNDS = 6
ONE, FIRST, SECOND, THIRD = (
    np.uint64(n) for n in (1, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def permuted(positions: Ints, *, rows: int, key: tuple[int, ...]) -> Ints:
    """Where each position comes to stand in the order that ``key`` names.

    A Feistel network over the next power of four; what falls outside of the rows goes through it again until it does
    not (cycle walking, Black and Rogaway, 2002). Memory is that of the positions, whatever the number of rows.

    Args:
        positions: In [0, rows).
        rows: Length of the order.
        key: Of the order; any integers from 0.

    Returns: Rows in [0, rows); all positions together give each row once.
    """
    half = np.uint64(max(1, (max(rows - 1, 1).bit_length() + 1) // 2))
    low = (ONE << half) - ONE
    keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)
    value = positions.astype(np.uint64)
    outside = np.ones(len(value), dtype=bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & low
        for word in keys:
            left, right = right, left ^ (_mixed(right ^ word) & low)
        value[outside] = left << half | right
        outside = value >= np.uint64(rows)
    return value.astype(np.int64)


def _mixed(value: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = value + FIRST
    value = (value ^ (value >> np.uint64(30))) * SECOND
    value = (value ^ (value >> np.uint64(27))) * THIRD
    return value ^ (value >> np.uint64(31))
