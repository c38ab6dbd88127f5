"""Documents found by their words (BM25), and two rankings made one. No ray in here."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qzhou.data.languages import CJK
from qzhou.data.storage import Folder

WORDS = "words"  # folder of the index
MOST_DOCUMENTS = 500_000  # the words of more do not fit the memory of a small machine
RANK_CONSTANT = 60  # Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion", 2009
_RUNS = re.compile(rf"[{CJK}]+|[^\W_{CJK}]+")
_CJK = re.compile(f"[{CJK}]")


def words_of(text: str) -> list[str]:
    """Words in small letters; pairs of neighbouring characters where a script has no blanks."""
    words: list[str] = []
    for run in _RUNS.findall(text.lower()):
        if _CJK.match(run) and len(run) > 1:
            words += [run[place : place + 2] for place in range(len(run) - 1)]
        else:
            words.append(run)
    return words


class WordIndexBuilder:
    """Collects the words of documents, in the order of the index."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._documents: list[list[int]] = []

    def add(self, texts: Iterable[str]) -> None:
        """Add some documents; beyond the most that are held nothing is kept."""
        for text in texts:
            if len(self._documents) <= MOST_DOCUMENTS:
                self._documents.append(
                    [self._numbers.setdefault(word, len(self._numbers)) for word in words_of(text)]
                )

    def write(self, target: Folder) -> bool:
        """Write the index below a folder; whether there is one."""
        import bm25s
        from bm25s.tokenization import Tokenized

        if not self._numbers or len(self._documents) > MOST_DOCUMENTS:
            return False
        retriever = bm25s.BM25()
        retriever.index(Tokenized(ids=self._documents, vocab=self._numbers), show_progress=False)
        with tempfile.TemporaryDirectory() as temporary:
            retriever.save(temporary)
            (target / WORDS).upload(Path(temporary))
        return True


class WordIndex:
    """The index that :class:`WordIndexBuilder` wrote, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        import bm25s

        self._retriever: Any = bm25s.BM25.load(str(folder), mmap=True)

    def search(self, query: str, count: int) -> tuple[list[int], list[float]]:
        """Rows of the documents that share words with a query, and their scores; the highest first."""
        known = [word for word in words_of(query) if word in self._retriever.vocab_dict]
        if not known:
            return [], []
        most = min(count, int(self._retriever.scores["num_docs"]))
        rows, scores = self._retriever.retrieve([known], k=most, show_progress=False)
        found = scores[0] > 0
        return rows[0][found].astype(int).tolist(), scores[0][found].astype(float).tolist()


def fused(rankings: Sequence[Sequence[int]], count: int) -> tuple[list[int], list[float]]:
    """Some rankings as one: what stands high in any of them comes first. Scores are sums of reciprocal ranks."""
    total: dict[int, float] = defaultdict(float)
    for rows in rankings:
        for rank, row in enumerate(rows, start=1):
            total[row] += 1 / (RANK_CONSTANT + rank)
    order = sorted(total, key=lambda row: -total[row])[:count]
    return order, [float(np.float32(total[row])) for row in order]
