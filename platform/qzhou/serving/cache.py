"""Vectors of texts that were asked for before, the latest used ones, within so many bytes."""

import hashlib
from collections import OrderedDict

import numpy as np

from qzhou.serving.outputs import Vectors

Text = str | tuple[int, ...]  # as it was sent: a string with its prompt, or token ids

ENTRY_BYTES = 300  # what Python needs for an entry besides the vector, about


class VectorCache:
    """Text -> vector, token count, whether it was truncated. Holds digests and no text.

    ``limit`` is in bytes; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._entries: OrderedDict[bytes, tuple[Vectors, int, bool]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> tuple[Vectors, int, bool] | None:
        """Vector, tokens and whether the text was truncated; None for an unknown text."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, vector: Vectors, tokens: int, truncated: bool) -> None:
        """Keep a vector; the least recently used ones go where memory runs out."""
        if key in self._entries or _size(vector) > self._limit:
            return
        self._entries[key] = (vector, tokens, truncated)
        self._held += _size(vector)
        while self._held > self._limit:
            _, (oldest, *_) = self._entries.popitem(last=False)
            self._held -= _size(oldest)


def key_of(text: Text) -> bytes:
    """A digest that tells texts apart, and a string from token ids."""
    if isinstance(text, str):
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).digest()
    return hashlib.blake2b(np.asarray(text, dtype="<i8").tobytes(), digest_size=20, person=b"ids").digest()


def _size(vector: Vectors) -> int:
    return vector.nbytes + ENTRY_BYTES
