"""How requests share a forward pass: by padded tokens, not by their number.

A request is cut into groups of texts of like length that each fit the token budget; groups of
several requests then go through the encoder together as long as they fit. Memory is bounded by the
budget whatever the requests look like, and a large request lets small ones pass between its groups.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qzhou.serving.service import Encoded, Vectors

FULL = 100  # percent of the token budget
GROUPS_IN_FLIGHT = 2  # of one request: one is encoded while the next one waits for company


@dataclass(frozen=True, slots=True)
class Group:
    """Texts that are encoded in the same forward pass; ``longest`` and ``budget`` are in tokens."""

    texts: tuple[str, ...]
    longest: int
    budget: int


def fill_percent(groups: Sequence[Group]) -> int:
    """How much of the token budget the padded groups take together, rounded up.

    A group alone never counts as more than full: it is a single text above the budget, and Ray Serve
    would answer it with a RuntimeError instead of encoding it on its own.
    """
    rows = sum(len(group.texts) for group in groups)
    padded_tokens = rows * max(group.longest for group in groups)
    percent = math.ceil(FULL * padded_tokens / groups[0].budget)
    return min(percent, FULL) if len(groups) == 1 else percent


async def encode_in_groups(
    texts: Sequence[str],
    token_counts: Sequence[int],
    forward: Callable[[Group], Awaitable[Vectors]],
    *,
    rows_of_groups: Iterable[list[int]],
    budget: int,
) -> Encoded:
    """Encode the texts of one request group by group; vectors come back in the order of the texts.

    Args:
        texts: At least one.
        token_counts: Tokens of each text.
        forward: Encodes a group, perhaps together with groups of other requests.
        rows_of_groups: Rows of ``texts`` in each group; every row stands in exactly one.
        budget: Padded tokens that one forward pass may hold.
    """
    free = asyncio.Semaphore(GROUPS_IN_FLIGHT)

    async def encode(rows: list[int]) -> tuple[list[int], Vectors]:
        group = Group(tuple(texts[row] for row in rows), max(token_counts[row] for row in rows), budget)
        async with free:
            return rows, await forward(group)

    parts = await asyncio.gather(*(encode(rows) for rows in rows_of_groups))
    vectors_ND: np.ndarray[Any, np.dtype[np.float32]] = np.empty((len(texts), parts[0][1].shape[1]), dtype=np.float32)
    for rows, part in parts:
        vectors_ND[rows] = part
    return Encoded(vectors_ND, list(token_counts))
