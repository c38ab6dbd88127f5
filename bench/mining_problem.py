"""What bench/mine.py asks for: texts and vectors made on the spot, kept in files as the mining stage keeps them.

A negative is one of the first ranks without the positive and scores below 0.95 of it; the nearest are taken. Our
``positive_ratio=0.95, rank_from=1, sampling="top"`` is ``relative_margin=0.05, range_min=0, sampling_strategy="top"``
of sentence-transformers. Other windows mean different things: we skip the first ranks, it skips the first of what the
margin leaves. Ours refuses near copies of the positive besides, of which there are none.

Shape letters in this file: N queries, M documents, T topics, D embedding width.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qzhou.config.mining import MiningSection
from qzhou.data.storage import Folder
from qzhou.data.text_digests import Floats, Ints
from qzhou.mining.shard import VectorFile

POSITIVE_RATIO = 0.95
MINING = MiningSection(
    rank_from=1, rank_to=30, positive_ratio=POSITIVE_RATIO, sampling="top", negatives_per_query=4
)
FILE_ROWS = 8192  # of made-up vectors
TOPIC_VECTORS = 100  # documents about the same
TOPIC_WORDS = 40

OURS, RANDOM = "qzhou", "FlagEmbedding's way"  # whose random sample agrees with nobody
WHO = (OURS, "sentence-transformers", "sentence-transformers, FAISS", RANDOM)

Texts = list[str]
Rows = list[list[int]]


@dataclass(frozen=True, slots=True)
class Problem:
    """Vectors of queries and documents, as files of a folder, and which document answers each query."""

    folder: Folder
    queries: list[VectorFile]
    documents: list[VectorFile]
    positive_row_N: Ints

    def vectors(self, files: Sequence[VectorFile]) -> Floats:
        """All of them, in memory once."""
        found: Floats | None = None
        for file in files:
            part = self.folder.read_array(file.name)
            found = np.empty((rows_of(files), part.shape[1]), dtype=np.float32) if found is None else found
            found[file.first : file.first + file.rows] = part
        assert found is not None
        return found

    def texts(self) -> tuple[Texts, Texts]:
        """Of queries and documents; short names where only vectors were made."""
        if self.folder.exists("texts.json"):
            queries, documents = self.folder.read_json("texts.json")
            return queries, documents
        return [f"q{n}" for n in range(rows_of(self.queries))], [f"d{m}" for m in range(rows_of(self.documents))]


def rows_of(files: Sequence[VectorFile]) -> int:
    return sum(one.rows for one in files)


def write_vectors(folder: Folder, name: str, parts: Iterable[Floats]) -> list[VectorFile]:
    """A file for each part."""
    files, first = [], 0
    for number, part in enumerate(parts):
        files.append(VectorFile(f"{name}/{number:06d}.npy", first, len(part)))
        folder.write_array(files[-1].name, part)
        first += len(part)
    return files


def vector_problems(folder: Folder, queries: int, sizes: Sequence[int], width: int) -> list[Problem]:
    """Documents around topics, a problem for each number of them; the queries are the same.

    Some queries lie nearer to their topic than to their positive, so that its limit refuses something. One file of
    documents is in memory at a time.
    """
    topic_TD = unit(np.random.default_rng(0).normal(size=(1 + sizes[0] // TOPIC_VECTORS, width)))
    apart = sizes[0] // queries  # the positives are every so many documents
    asked: list[Floats] = []

    def documents() -> Iterator[Floats]:
        for low, high in zip([0, *sizes[:-1]], sizes, strict=True):
            for first in range(low, high, FILE_ROWS):
                draw, row = (np.random.default_rng([1, first]), np.arange(first, min(first + FILE_ROWS, high)))
                centre_MD = topic_TD[draw.integers(len(topic_TD), size=len(row))]
                document_MD = unit(centre_MD + _noise(draw, len(row), width, 0.3, 1.2))
                own = (row % apart == 0) & (row < apart * queries)
                drift = draw.uniform(0, 1.5, (int(own.sum()), 1))
                query_ND = document_MD[own] + drift * centre_MD[own] + _noise(draw, len(drift), width, 0.8, 0.8)
                asked.append(unit(query_ND))
                yield document_MD

    files = write_vectors(folder, "documents", documents())
    query_files = write_vectors(folder, "queries", [part for part in asked if len(part)])
    positive_row_N = apart * np.arange(queries)
    return [
        Problem(folder, query_files, [one for one in files if one.first < size], positive_row_N) for size in sizes
    ]


def _noise(draw: np.random.Generator, count: int, width: int, least: float, most: float) -> Floats:
    """Random vectors [count, width] about as long as drawn between two lengths."""
    made = draw.normal(size=(count, width)) * draw.uniform(least, most, (count, 1)) / np.sqrt(width)
    return np.asarray(made, dtype=np.float32)


def unit(vectors: np.ndarray[Any, Any]) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def made_up_texts(vocabulary: Iterable[str], queries: int, documents: int) -> tuple[Texts, Texts]:
    """Documents of 8 to 120 words, half of them their topic's; a query is some words of its positive and two more.

    Args:
        vocabulary: Of the model, so that a word is a token; they get the frequencies of Zipf's law.
        queries: Every so many documents has one.
        documents: All different.
    """
    draw = random.Random(0)
    words = sorted(one for one in vocabulary if one.isascii() and one.isalpha() and len(one) > 2)
    draw.shuffle(words)
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    cumulated = np.cumsum(weights).tolist()
    topics = [draw.sample(words, TOPIC_WORDS) for _ in range(1 + documents // TOPIC_WORDS)]
    bodies = []
    for _ in range(documents):
        count = round(8 * 15 ** draw.random())
        own = draw.choices(draw.choice(topics), k=count // 2)
        bodies.append(draw.sample([*own, *draw.choices(words, cum_weights=cumulated, k=count - len(own))], count))
    apart = documents // queries
    asked = [
        [*draw.sample(body, min(len(body), draw.randint(4, 12))), *draw.choices(words, cum_weights=cumulated, k=2)]
        for body in bodies[: apart * queries : apart]
    ]
    return [" ".join(one) for one in asked], [" ".join(one) for one in bodies]
