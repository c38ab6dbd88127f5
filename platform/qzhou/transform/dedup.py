"""Which examples repeat each other or show what evaluation asks: digests of texts, and one sort that judges them.

Every example gives some keys: one for itself, one for each of its texts, some for near-duplicates. Equal keys meet in
the same bucket, whichever dataset and shard they come from; a bucket is judged by itself, so the work spreads over a
cluster and memory depends on the size of a bucket alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import pyarrow as pa

from qzhou.data.records import (
    Example,
    LabeledExample,
    PairExample,
    RetrievalExample,
    normalized_text,
)

DIGEST_BYTES = 16


class Space(IntEnum):
    """What a key says is equal; keys of different spaces never meet."""

    RETRIEVAL = 0  # the same query and positives
    PAIR = 1  # the same two texts
    CLASSIFICATION = 2  # the same text
    RETRIEVAL_TEXT = 3  # a query or document of retrieval
    SIMILARITY_TEXT = 4  # a text of a pair or class, or a held-out query
    NEAR = 5  # the same band of a MinHash signature


class Verdict(IntEnum):
    """Why an example is not trained on; the smaller one counts where there are several."""

    IN_HELD_OUT = 1
    DUPLICATE = 2
    NEAR_DUPLICATE = 3
    CONTAMINATED = 4


DETAILS = {
    Verdict.IN_HELD_OUT: "one of its texts is held out for evaluation in dataset '{dataset}'",
    Verdict.DUPLICATE: "an earlier row of dataset '{dataset}' has the same texts up to case and white space",
    Verdict.NEAR_DUPLICATE: "an earlier row of dataset '{dataset}' is nearly the same on every side",
    Verdict.CONTAMINATED: "it shares an n-gram with a text of an evaluation task",
}

KEYS = pa.schema(
    [
        ("high", pa.uint64()),
        ("low", pa.uint64()),
        ("row", pa.uint32()),
        ("space", pa.uint8()),
        ("held", pa.bool_()),
    ]
)


def texts_of(example: Example) -> tuple[str, ...]:
    """The texts of an example that an evaluation could ask about; a query comes first."""
    if isinstance(example, RetrievalExample):
        return (example.query, *example.positives)
    if isinstance(example, LabeledExample):
        return (example.text,)
    return (example.text_a, example.text_b)


def text_digest(*keys: str) -> bytes:
    """16 bytes of texts that :func:`qzhou.data.records.normalized_text` has normalised."""
    joined = "\0".join(keys)
    return hashlib.blake2b(
        joined.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES
    ).digest()


class KeyList:
    """The keys of a shard's examples, gathered one example at a time."""

    def __init__(self, *, with_identity: bool, with_texts: bool) -> None:
        self._with_identity, self._with_texts = with_identity, with_texts
        self._digests: list[bytes] = []
        self._rows: list[int] = []
        self._spaces: list[int] = []
        self._held: list[bool] = []
        self._more: list[pa.Table] = []

    def add(self, row: int, example: Example, held: bool, *, allow_overlap: bool = False) -> None:
        """Keys of one example.

        A query with two answers is two examples. A text with two labels, or a pair with two scores or with its sides
        exchanged, is one: the second contradicts the first or adds nothing. A retrieval text is compared with
        held-out queries and documents; a labelled text or a pair with held-out texts of its kind and with held-out
        queries: a class may be taught with a text that is somewhere a document. With ``allow_overlap``, a training
        document and one side of a training pair may be held out elsewhere.
        """
        keys = [normalized_text(text) for text in texts_of(example)]
        if isinstance(example, RetrievalExample):
            identity, own, text = (
                Space.RETRIEVAL,
                (keys[0], *sorted(keys[1:])),
                Space.RETRIEVAL_TEXT,
            )
        elif isinstance(example, PairExample):
            identity, own, text = Space.PAIR, tuple(sorted(keys)), Space.SIMILARITY_TEXT
        else:
            identity, own, text = Space.CLASSIFICATION, (keys[0],), Space.SIMILARITY_TEXT
        if self._with_identity:
            self._append(row, text_digest(*own), identity, held)
        if self._with_texts:
            digests = [text_digest(key) for key in keys]
            own_texts = {Space.RETRIEVAL: 1, Space.PAIR: 0, Space.CLASSIFICATION: 1}[identity]
            for digest in digests[:own_texts] if allow_overlap and not held else digests:
                self._append(row, digest, text, held)
            if held and text is Space.RETRIEVAL_TEXT:
                self._append(row, digests[0], Space.SIMILARITY_TEXT, held)

    def add_near(self, rows: np.ndarray, bands: np.ndarray, held: np.ndarray) -> None:
        """Keys for near-duplicates: for each row of ``bands`` (rows x bands, uint64), one a band."""
        count, width = bands.shape
        columns = {
            "high": bands.ravel(),
            "low": np.tile(np.arange(width, dtype=np.uint64), count),
            "row": np.repeat(rows.astype(np.uint32), width),
            "space": np.full(count * width, Space.NEAR, dtype=np.uint8),
            "held": np.repeat(held, width),
        }
        self._more.append(pa.table(columns, schema=KEYS))

    def table(self) -> pa.Table:
        """All keys as a table of KEYS."""
        words = np.frombuffer(b"".join(self._digests), dtype=np.uint64).reshape(-1, 2)
        columns = {
            "high": words[:, 0],
            "low": words[:, 1],
            "row": np.array(self._rows, dtype=np.uint32),
            "space": np.array(self._spaces, dtype=np.uint8),
            "held": np.array(self._held, dtype=np.bool_),
        }
        return pa.concat_tables([pa.table(columns, schema=KEYS), *self._more])

    def _append(self, row: int, digest: bytes, space: Space, held: bool) -> None:
        self._digests.append(digest)
        self._rows.append(row)
        self._spaces.append(space)
        self._held.append(held)


def judge(keys: pa.Table, shard: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The keys that refuse their examples.

    Of equal keys the first one stays: held-out examples come before others, then the order of the recipe counts. A
    training text that equals a held-out one is refused wherever it stands.

    Args:
        keys: KEYS of all shards, one bucket of them.
        shard: For each key, the number of its shard; shards are numbered in the order of the recipe.

    Returns: Positions in ``keys``, a :class:`Verdict` for each, and the positions of the keys that were first, all
        int64.
    """
    if not keys.num_rows:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    high, low, row, space, held = (keys[name].to_numpy() for name in KEYS.names)
    place = (shard.astype(np.uint64) << np.uint64(32)) | row.astype(np.uint64)
    order = np.lexsort((place, ~held, low, high, space))
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (
        (np.diff(high[order]) != 0)
        | (np.diff(low[order]) != 0)
        | (space[order][1:] != space[order][:-1])
    )
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    is_text = np.isin(space[order], (Space.RETRIEVAL_TEXT, Space.SIMILARITY_TEXT))
    # a text that stands twice in one example repeats nothing
    same_row = place[order] == place[order][first]
    shown = is_text & held[order][first] & ~held[order]
    repeated = ~is_text & ~starts & ~same_row
    near = space[order] == Space.NEAR
    verdict = np.select(
        [shown, repeated & near, repeated],
        [Verdict.IN_HELD_OUT, Verdict.NEAR_DUPLICATE, Verdict.DUPLICATE],
    )
    found = np.flatnonzero(verdict)
    return order[found], verdict[found], order[first[found]]


def sample_keys(ids: Sequence[str], seed: int) -> np.ndarray:
    """A number for each id; a sample is the ids with the smallest ones.

    Which ids are drawn depends on nothing around them, so a dataset that grows keeps most of its sample, and the order
    of its files does not matter.
    """
    digests = b"".join(hashlib.sha256(f"{seed} {one}".encode()).digest()[:8] for one in ids)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)
