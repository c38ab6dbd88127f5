"""The distinct documents of a run, found by their vectors. No ray in here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder, read_table
from qzhou.encoder.vectors import VectorStore
from qzhou.run.models import local_model
from qzhou.serving.cache import key_of
from qzhou.serving.outputs import Vectors
from qzhou.serving.word_index import MOST_DOCUMENTS, WORDS, WordIndex, WordIndexBuilder, fused
from qzhou.telemetry.events import log_event

FUSED = 100  # of each ranking, where two are made one
VECTORS, TEXTS = "vectors.faiss", "texts.arrow"
ENCODED = "encoded"
COSINE = faiss.METRIC_INNER_PRODUCT  # of unit vectors
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the run's documents; ``prefix`` stands before each when encoded."""

    folder: Folder
    name: str
    prefix: str

    def documents(self) -> pa.Table:
        """Id and text of each document."""
        return read_table(self.folder, self.name, SCHEMA.names)


def read_part(_: object, numbered: tuple[int, Part]) -> Iterator[pa.Table]:
    """The documents of a part with their prompt, as one row: ``id``, the number of the part, and ``texts``."""
    number, part = numbered
    texts = [part.prefix + text for text in part.documents()["text"].to_pylist()]
    yield pa.table({"id": [number], "texts": [texts]})


class EncodePart:
    """Keeps the vectors of documents in a :class:`qzhou.encoder.vectors.VectorStore`.

    ``model`` and ``target`` are the folders of the run's model and of the vectors.
    """

    def __init__(self, recipe: Recipe, model: str, target: Folder) -> None:
        self._recipe, self._model, self._target = recipe, model, target

    def __call__(self, batch: pa.Table) -> pa.Table:
        """For what :func:`read_part` gives, the ``files`` of its vectors, and how many ``rows`` they have."""
        texts = batch["texts"].to_pylist()
        files = pa.array([self._files_of(own) for own in texts], pa.list_(pa.string()))
        return pa.table({"id": batch["id"], "rows": [len(own) for own in texts], "files": files})

    def _files_of(self, texts: Sequence[str]) -> list[str]:
        starts = range(0, len(texts), self._store.rows)
        return [self._store.file(texts[start : start + self._store.rows]) for start in starts]

    @cached_property
    def _store(self) -> VectorStore:
        # torch takes seconds to load
        from qzhou.encoder import load_encoder

        model = self._recipe.model
        with local_model(self._model) as place:
            encoder = load_encoder(
                place,
                max_tokens=model.max_document_tokens,
                dtype=model.encodes_in,
                library=model.arithmetic,
                device=None if self._recipe.cluster.gpu else "cpu",
            )
        return VectorStore(self._target, encoder)


def assemble(parts: Sequence[Part], files: Sequence[Sequence[str]], encoded: Folder, target: Folder) -> int:
    """How many documents the index of all parts holds; repeated texts are there once.

    The vectors are kept in 16 bits and searched whole: nothing is missed, and a million
    documents of 384 dimensions take 768 MB. ``files`` names the vector files of each part,
    in ``encoded``; the index is written into ``target``.
    """
    seen: set[bytes] = set()
    index: Any = None
    words = WordIndexBuilder()
    with (
        target.writing(TEXTS) as place,
        target.filesystem.open_output_stream(place) as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        for part, names in zip(parts, files, strict=True):
            table = part.documents()
            is_new = _first_seen(table["text"].to_pylist(), seen)
            if not is_new.any():
                continue
            vectors_ND = np.concatenate([encoded.read_array(name) for name in names])[is_new]
            if index is None:
                index = faiss.IndexScalarQuantizer(vectors_ND.shape[1], faiss.ScalarQuantizer.QT_fp16, COSINE)
            # rounded by numpy: to the nearest on every machine
            index.add(vectors_ND.astype(np.float16).astype(np.float32))
            new = table.filter(pa.array(is_new)).cast(SCHEMA)
            writer.write_table(new)
            words.add(new["text"].to_pylist())
    if not words.write(target):
        line = f"index: by vectors alone; an index of words is made of {MOST_DOCUMENTS:,} documents at the most"
        log_event(line, "no_word_index")
    target.write_bytes(VECTORS, faiss.serialize_index(index).tobytes())
    return int(index.ntotal)


def _first_seen(texts: Sequence[str], seen: set[bytes]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each text is not among those seen; it is from then on."""
    new = []
    for text in texts:
        key = key_of(text)
        new.append(key not in seen)
        seen.add(key)
    return np.array(new, dtype=bool)


class SearchIndex:
    """The index that :func:`assemble` wrote, in memory; texts and words stay in files and are read when they are found.

    Attributes:
        words: The index of words; None where there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._index: Any = faiss.read_index(str(folder / VECTORS))
        self._texts = pa.ipc.open_file(pa.memory_map(str(folder / TEXTS))).read_all()
        self.words = WordIndex(folder / WORDS) if (folder / WORDS).exists() else None

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, vector_D: Vectors, count: int) -> list[tuple[str, str, float]]:
        """The nearest documents: id, text and cosine, nearest first."""
        return self._shown(*self._nearest(vector_D, count))

    def search_words(self, query: str, count: int) -> list[tuple[str, str, float]]:
        """Documents that share words with a query: id, text and BM25 score, the highest first."""
        assert self.words is not None
        return self._shown(*self.words.search(query, count))

    def search_both(self, vector_D: Vectors, query: str, count: int) -> list[tuple[str, str, float]]:
        """What stands high in either ranking: id, text and the sum of reciprocal ranks, the highest first."""
        assert self.words is not None
        depth = max(FUSED, count)
        rankings = [self._nearest(vector_D, depth)[0], self.words.search(query, depth)[0]]
        return self._shown(*fused(rankings, count))

    def _nearest(self, vector_D: Vectors, count: int) -> tuple[list[int], list[float]]:
        scores, rows = self._index.search(vector_D[None], min(count, len(self)))
        return rows[0].tolist(), list(map(float, scores[0]))

    def _shown(self, rows: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str, float]]:
        found = self._texts.take(pa.array(rows, pa.int64()))
        return list(zip(found["id"].to_pylist(), found["text"].to_pylist(), scores, strict=True))
