"""Well-mixed 64-bit numbers: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""

from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint64]]

# 2^64 / golden ratio: odd, so that multiplying by it loses nothing
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SECOND, _THIRD = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def splitmix64(value: Words) -> Words:
    """For each number another one whose bits all depend on all of its bits; different numbers stay different."""
    value = value + GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _SECOND
    value = (value ^ (value >> np.uint64(27))) * _THIRD
    return value ^ (value >> np.uint64(31))
