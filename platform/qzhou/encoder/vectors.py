"""Vectors of texts, kept in files under everything that they depend on: written once, read by everybody.

Mining, evaluation and the index encode the same way: in chunks of texts, each by whichever
worker is free. A chunk's file is named by its texts with their prompts, the length at which
they are cut, and the encoder's code. It lies in a folder that is named by weights, tokenizer,
pooling, length and arithmetic. So no checkpoint, prompt, library or version of the code ever
finds another's vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qzhou.data.records import digest
from qzhou.data.storage import Folder
from qzhou.run.code import code_of_stage

if TYPE_CHECKING:
    from qzhou.encoder.text_encoder import TextEncoder

Vectors = np.ndarray[Any, np.dtype[np.float32]]
VERSION = 2  # of the files; those of another version are not read
CHUNK_ROWS = 1024  # texts of a file: what is encoded again when a worker dies
# what an endpoint answers for one text differs in the last digits from call to call
SAME_COSINE = 0.9999
PROBE_FILE = "probe.npy"
ENCODER = ("qzhou.encoder.encoder",)
# modules that it imports, and from which no number of a vector comes
NO_PART_OF_A_VECTOR = (
    "qzhou.config", "qzhou.data.records", "qzhou.data.storage", "qzhou.encoder.remote", "qzhou.encoder.text_encoder",
    "qzhou.encoder.vectors",
)  # fmt: skip


class VectorStore:
    """The vectors of one encoder in a folder.

    Args:
        folder: For all encoders.
        encoder: Encodes what is not there yet.
        rows: Texts of a file.
        check: Called with texts and vectors before they are written; refuses by an error.
    """

    def __init__(
        self,
        folder: Folder,
        encoder: TextEncoder,
        *,
        rows: int = CHUNK_ROWS,
        check: Callable[[Sequence[str], Vectors], None] | None = None,
    ) -> None:
        self._folder, self._encoder, self._check = folder, encoder, check
        self.rows = rows
        self.key = key_of(encoder, folder)
        # a model behind an URL is encoded by code that is not ours
        own = {} if encoder.probe is not None else code_of_stage(ENCODER, without=NO_PART_OF_A_VECTOR)
        self._code = digest(own)
        self.encoded = 0  # texts that were not there

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Vectors [N, D] of texts that carry their prompt."""
        parts = []
        for start in range(0, len(texts), self.rows):
            name, new = self._kept(texts[start : start + self.rows], None)
            parts.append(self._folder.read_array(name) if new is None else new)
        return np.concatenate(parts) if parts else self._encoder.encode([])

    def file(self, texts: Sequence[str], *, max_tokens: int | None = None) -> str:
        """The file below the store's folder with the vectors of some texts; written unless it is there, and whole.

        Args:
            texts: With their prompt, in the order of the vectors.
            max_tokens: Where the encoder truncates; default: where it does by itself.
        """
        return self._kept(texts, max_tokens)[0]

    def _kept(self, texts: Sequence[str], max_tokens: int | None) -> tuple[str, Vectors | None]:
        """The file of some texts, and their vectors if they had to be encoded."""
        name = f"{self.key}/{digest([VERSION, self._code, max_tokens, list(texts)])}.npy"
        if self._folder.has_array(name, rows=len(texts)):
            return name, None
        found = self._encoder.encode(texts, max_tokens=max_tokens)
        if self._check:
            self._check(texts, found)
        self._folder.write_array(name, found)
        self.encoded += len(texts)
        return name, found


def key_of(encoder: TextEncoder, folder: Folder) -> str:
    """The name of the folder of an encoder's vectors: another one for other weights or another arithmetic.

    The fingerprint of a model on this machine covers its weights. A model behind an URL has
    only a name. So its vector of one sentence is kept beside its other vectors, and
    compared: other weights give another vector.
    """
    key = f"{encoder.fingerprint}-{encoder.arithmetic}"
    if encoder.probe is None:
        return key
    number = 0
    while True:
        place = folder / f"{key}-{number}"
        if not place.exists(PROBE_FILE):
            place.write_array(PROBE_FILE, encoder.probe)
            return place.name
        known = place.read_array(PROBE_FILE)
        if known.shape == encoder.probe.shape and float(known @ encoder.probe) >= SAME_COSINE:
            return place.name
        number += 1
