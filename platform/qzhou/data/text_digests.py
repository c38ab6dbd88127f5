"""Which texts are the same and which are relevant to a query, for millions of rows: 64-bit digests, sorted.

Shape letters in this file: P positives of a dataset, N queries of a block, E (query, text)
pairs of a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qzhou.data.records import RetrievalExample, normalized_text, origin_id
from qzhou.data.splitmix import GOLDEN

Digests = np.ndarray[Any, np.dtype[np.uint64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


def digests(texts: Iterable[str]) -> Digests:
    """64 bits of each text; two different ones among a hundred million are equal with odds of 1 to 3,700."""
    found = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(found), dtype=np.uint64)


def key_digests(texts: Iterable[str]) -> Digests:
    """Digests of the normalized texts: equal where two texts count as the same."""
    return digests(map(normalized_text, texts))


@dataclass(frozen=True, slots=True)
class Groups:
    """The two groups of each query; the members of a group share their relevant texts.

    Attributes:
        query_N: Equal for queries of the same text.
        origin_N: Equal for a raw example and what was made from it.
    """

    query_N: Digests
    origin_N: Digests

    @classmethod
    def of(cls, examples: Sequence[RetrievalExample]) -> Groups:
        """The groups of some examples' queries."""
        queries = key_digests(one.query for one in examples)
        # the prefix keeps an id apart from a query of the same letters
        return cls(queries, digests(f"family {origin_id(one)}" for one in examples))


class RelevantTexts:
    """The texts relevant to each query of a dataset: its own positives, its relatives', and those of an equal query.

    This is :func:`qzhou.data.records.relevant_keys` for millions of queries: 32 bytes for
    each positive instead of sets of texts. ``positive_P`` are key digests.
    """

    def __init__(self, groups: Groups, positive_P: Digests, owner_P: Ints) -> None:
        group = np.concatenate([groups.query_N[owner_P], groups.origin_N[owner_P]])
        key = np.concatenate([positive_P, positive_P])
        order = np.argsort(group, kind="stable")
        self._group, self._key = group[order], key[order]

    def of(self, groups: Groups) -> tuple[Ints, Digests]:
        """Texts relevant to queries: owner [E], key digest [E]; a text may stand twice."""
        owners, found = [], []
        for wanted in (groups.query_N, groups.origin_N):
            first = np.searchsorted(self._group, wanted, side="left")
            count = np.searchsorted(self._group, wanted, side="right") - first
            owner = np.repeat(np.arange(len(wanted)), count)
            within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
            owners.append(owner)
            found.append(self._key[np.repeat(first, count) + within])
        return np.concatenate(owners), np.concatenate(found)


def is_among(owner_E: Ints, key_E: Digests, key_NK: Digests) -> Bools:
    """Whether each candidate of a query is one of the texts that belong to it [N, K], by their key digests."""
    # one number for query and text, so that one search answers for all queries
    with np.errstate(over="ignore"):
        asked = key_NK + GOLDEN * np.arange(1, len(key_NK) + 1, dtype=np.uint64)[:, None]
        known = key_E + GOLDEN * (owner_E + 1).astype(np.uint64)
    return np.isin(asked, known)


class RowLookup:
    """Digest of a text -> the first row of the documents with it."""

    def __init__(self, digest_M: Digests) -> None:
        self._order = np.argsort(digest_M, kind="stable")
        self._sorted = digest_M[self._order]

    def __call__(self, wanted: Digests) -> Ints:
        """Rows of texts that are there.

        Raises:
            KeyError: One is not.
        """
        place = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        if not len(self._sorted) or (self._sorted[place] != wanted).any():
            raise KeyError("a text that is not among the documents")
        return np.asarray(self._order[place])
