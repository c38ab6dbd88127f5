"""Vectors of corpora, kept under the encoder's key: written by whoever comes first, read by everybody else.

A corpus is encoded in runs of documents. A run's file is named by its texts with their prompts, below a folder that is
named by weights, tokenizer, pooling, length and type: nothing else can find it. So several workers can encode parts of
one corpus, and the worker that judges finds them all there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qzhou.data.records import digest
from qzhou.data.storage import Folder
from qzhou.encoder import TextEncoder

MTEB_ROWS = 50_000  # documents that mteb asks for at a time; runs begin anew there
MOST_ROWS = 2000  # documents in a file
VERSION = 1  # of the files


def run_rows(split_documents: int) -> int:
    """Documents in a run: as many as one worker encodes at a time at most, and a divisor of what mteb asks for."""
    most = min(MOST_ROWS, split_documents, MTEB_ROWS)
    return next(rows for rows in range(most, 0, -1) if MTEB_ROWS % rows == 0)


class VectorStore:
    """A folder of vectors of one encoder.

    Args:
        folder: For all encoders.
        key: Of this one.
        rows: In a run (:func:`run_rows`).
    """

    def __init__(self, folder: Folder, key: str, rows: int) -> None:
        self._folder, self.rows = folder / key, rows
        self.encoded = 0  # texts that were not there

    def vectors(
        self, encoder: TextEncoder, texts: Sequence[str]
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors [N, D] of texts that carry their prompt; what is not there yet is encoded and written."""
        runs = [texts[start : start + self.rows] for start in range(0, len(texts), self.rows)]
        if not runs:
            return encoder.encode([])
        return np.concatenate([self._run(encoder, run) for run in runs])

    def _run(
        self, encoder: TextEncoder, texts: Sequence[str]
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        name = f"{digest([VERSION, list(texts)])}.npy"
        if self._folder.has_array(name, rows=len(texts)):
            return self._folder.read_array(name)
        found = encoder.encode(texts)
        self._folder.create().write_array(name, found)
        self.encoded += len(texts)
        return found
