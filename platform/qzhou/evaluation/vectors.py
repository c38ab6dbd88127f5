"""Vectors of corpora, kept under the encoder's key: written by whoever comes first, read by everybody else.

A corpus is encoded in runs of documents. A run's file is named by its texts with their prompts, below a folder that is
named by weights, tokenizer, pooling, length and type: nothing else can find it. So several workers can encode parts of
one corpus, and the worker that judges finds them all there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qzhou.encoder import TextEncoder
from qzhou.runs import digest
from qzhou.storage import Folder

RUN_ROWS = 2000  # documents in a file; mteb asks for 50,000 at a time, which is a multiple
VERSION = 1  # of the files


class VectorStore:
    """A folder of vectors of one encoder.

    Args:
        folder: For all encoders.
        key: Of this one.
    """

    def __init__(self, folder: Folder, key: str) -> None:
        self._folder = folder / key
        self.encoded = 0  # texts that were not there

    def vectors(self, encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors [N, D] of texts that carry their prompt; what is not there yet is encoded and written."""
        runs = [texts[start : start + RUN_ROWS] for start in range(0, len(texts), RUN_ROWS)]
        if not runs:
            return encoder.encode([])
        return np.concatenate([self._run(encoder, run) for run in runs])

    def _run(self, encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        name = f"{digest([VERSION, list(texts)])}.npy"
        if self._folder.has_array(name, rows=len(texts)):
            return self._folder.read_array(name)
        found = encoder.encode(texts)
        self._folder.create().write_array(name, found)
        self.encoded += len(texts)
        return found
