"""Exact deduplication, contamination and sampling, over digests of normalised texts.

A digest is 16 bytes in a set on the driver: 100 million of them take about 10 GB. That is the
simplest form that is right; a hash join over Ray Data would be the next.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from qzhou.records import Example, LabeledExample, RetrievalExample, Task, text_key

DIGEST_BYTES = 16


def text_digest(*texts: str) -> bytes:
    """16 bytes that are equal for texts which differ only in case and white space."""
    keys = "\0".join(text_key(text) for text in texts)
    return hashlib.blake2b(keys.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def texts_of(example: Example) -> tuple[str, ...]:
    """The texts of an example that an evaluation could ask about; a query comes first."""
    if isinstance(example, RetrievalExample):
        return (example.query, *example.positives)
    if isinstance(example, LabeledExample):
        return (example.text,)
    return (example.text_a, example.text_b)


def identity(example: Example) -> bytes:
    """Digest that two examples share when they are repeats of each other.

    A query with two answers is two examples. A text with two labels, or a pair with two scores or
    with its sides exchanged, is one: the second contradicts the first or adds nothing.
    """
    texts = texts_of(example)
    if isinstance(example, RetrievalExample):
        return text_digest(texts[0], *sorted(texts[1:], key=text_key))
    return text_digest(*sorted(texts, key=text_key))


@dataclass(slots=True)
class HeldOutTexts:
    """Digests of the texts that evaluation will use.

    A retrieval example is compared with held-out queries and documents; a labelled text or a pair
    with held-out texts of its kind and with held-out queries. A class may thus be taught with a
    text that is somewhere a document, which tells nothing about the query that asks for it.
    """

    retrieval: set[bytes] = field(default_factory=set)
    similarity: set[bytes] = field(default_factory=set)

    def add(self, task: Task, digests: Sequence[bytes]) -> None:
        """Take in the texts of a held-out example, its query first."""
        if task == "retrieval":
            self.retrieval.update(digests)
            self.similarity.add(digests[0])
        else:
            self.similarity.update(digests)

    def meet(self, task: Task, digests: Sequence[bytes]) -> bool:
        """Whether training on these texts would show what evaluation asks."""
        known = self.retrieval if task == "retrieval" else self.similarity
        return any(digest in known for digest in digests)


@dataclass(slots=True)
class Repeats:
    """Remembers which examples of each task were seen, over all datasets."""

    seen: dict[Task, set[bytes]] = field(default_factory=dict)

    def is_repeat(self, task: Task, example_identity: bytes) -> bool:
        """Whether this example was asked about before; the first asker keeps it."""
        known = self.seen.setdefault(task, set())
        if example_identity in known:
            return True
        known.add(example_identity)
        return False


def sample(ids: Sequence[str], rows: int, seed: int) -> set[int]:
    """Positions of a seeded sample: the ids whose hash with the seed is smallest.

    Which ids are drawn depends on nothing around them, so a dataset that grows keeps most of its
    sample, and the order of its files does not matter.
    """
    ranked = ((hashlib.sha256(f"{seed} {row_id}".encode()).digest(), position) for position, row_id in enumerate(ids))
    return {position for _, position in heapq.nsmallest(rows, ranked)}
