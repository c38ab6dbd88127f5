"""The index of all evaluation texts, within bounded memory.

Above ``max_index_ngrams`` only the hashes that a power of two divides are kept. Long
overlaps are still found, because they share many n-grams.
"""

from collections.abc import Iterable

import numpy as np

from qzhou.config.transform import ContaminationSection
from qzhou.data.cleaning import clean_text
from qzhou.data.overlap import TEXTS_PER_BATCH, Index, grams_of
from qzhou.data.storage import batched


class IndexBuilder:
    """Collects the n-grams of one task after the other, within bounded memory."""

    def __init__(self, settings: ContaminationSection) -> None:
        self._sizes, self._max_ngrams = settings.sizes, settings.max_index_ngrams
        self._hashes: dict[str, list[np.ndarray]] = {}
        self._kept_of = 1

    def add(self, task: str, hashes: np.ndarray) -> None:
        """Add n-grams of a task; some of them may be known already."""
        chosen = hashes if self._kept_of == 1 else hashes[hashes % np.uint64(self._kept_of) == 0]
        self._hashes.setdefault(task, []).append(chosen)
        if self._size() > 2 * self._max_ngrams:  # many may be repeats
            self._compact()

    def add_texts(self, task: str, texts: Iterable[str]) -> None:
        """The same for the texts themselves, cleaned as the training texts are."""
        self.add(task, np.empty(0, dtype=np.uint64))
        for batch in batched(map(clean_text, texts), TEXTS_PER_BATCH):
            self.add(task, grams_of(batch, self._sizes)[0])

    def index(self) -> Index:
        """The index of everything that was added."""
        self._compact()
        arrays = [own[0] for own in self._hashes.values()] or [np.empty(0, dtype=np.uint64)]
        owners = np.repeat(np.arange(len(arrays), dtype=np.uint16), [len(one) for one in arrays])
        hashes = np.concatenate(arrays)
        order = np.argsort(hashes, kind="stable")
        return Index(tuple(self._hashes), hashes[order], owners[order], self._kept_of, self._sizes)

    def _size(self) -> int:
        return sum(len(one) for own in self._hashes.values() for one in own)

    def _compact(self) -> None:
        """Keep each n-gram of a task once; while there are too many, keep the half whose hashes divide evenly."""
        for task, own in self._hashes.items():
            self._hashes[task] = [np.unique(np.concatenate(own))]
        while self._size() > self._max_ngrams:
            self._kept_of *= 2
            for task, (distinct,) in self._hashes.items():
                self._hashes[task] = [distinct[distinct % np.uint64(self._kept_of) == 0]]
