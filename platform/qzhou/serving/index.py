"""The distinct documents of a run, found by their vectors. No ray in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pyarrow as pa

from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder, read_table, write_table
from qzhou.serving.cache import key_of
from qzhou.serving.outputs import Vectors

if TYPE_CHECKING:
    from qzhou.encoder import Encoder

VECTORS, TEXTS = "vectors.faiss", "texts.arrow"
ENCODED = "encoded"
COSINE = faiss.METRIC_INNER_PRODUCT  # of unit vectors
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])


@dataclass(frozen=True, slots=True)
class Part:
    """A file of documents of the run, and what its documents carry before them."""

    folder: Folder
    name: str
    prefix: str


class EncodePart:
    """Writes the vectors of a part's documents beside their texts, unless they are there."""

    def __init__(self, recipe: Recipe, model: str, target: Folder, parts: Sequence[Part]) -> None:
        self._recipe, self._model, self._target, self._parts = recipe, model, target, parts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [self._encoded(int(number)) for number in batch["id"]]
        return {"rows": np.array(rows, dtype=np.int64)}

    def _encoded(self, number: int) -> int:
        part, name = self._parts[number], f"{number:06}.parquet"
        documents = read_table(part.folder, part.name, ["id", "text"])
        if not self._target.exists(name):
            texts = [part.prefix + text for text in documents["text"].to_pylist()]
            vectors_ND = self._encoder.encode(texts).astype(np.float16)
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(vectors_ND.ravel()), vectors_ND.shape[1]
            )
            write_table(self._target, name, documents.append_column("vector", vectors))
        return int(documents.num_rows)

    @cached_property
    def _encoder(self) -> Encoder:
        from qzhou.encoder import load_encoder

        with Folder.open(self._model).local_copy() as place:
            return load_encoder(
                str(place),
                max_tokens=self._recipe.model.max_document_tokens,
                dtype=self._recipe.model.encodes_in,
                device=None if self._recipe.cluster.gpu else "cpu",
            )


def assemble(encoded: Folder, target: Folder) -> int:
    """One index of all parts, texts that occur twice once; gives back how many documents it holds.

    The vectors are kept in 16 bits and searched whole: nothing is missed, and a million documents of 384 dimensions
    take 768 MB.
    """
    seen: set[bytes] = set()
    index: Any = None
    with (
        target.writing(TEXTS) as place,
        target.filesystem.open_output_stream(place) as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        for name in encoded.files(".parquet"):
            table = _first_seen(read_table(encoded, name), seen)
            if not len(table):
                continue
            vectors_ND = np.stack(table["vector"].to_numpy())
            if index is None:
                index = faiss.IndexScalarQuantizer(
                    vectors_ND.shape[1], faiss.ScalarQuantizer.QT_fp16, COSINE
                )
            index.add(vectors_ND.astype(np.float32))
            writer.write_table(table.select(SCHEMA.names).cast(SCHEMA))
    target.write_bytes(VECTORS, faiss.serialize_index(index).tobytes())
    return int(index.ntotal)


def _first_seen(table: pa.Table, seen: set[bytes]) -> pa.Table:
    """Rows whose text is not among those seen; it is then."""
    new = []
    for text in table["text"].to_pylist():
        key = key_of(text)
        new.append(key not in seen)
        seen.add(key)
    return table.filter(pa.array(new, pa.bool_()))


class SearchIndex:
    """What :func:`assemble` wrote, in memory; texts are mapped from the file and read when they are found."""

    def __init__(self, folder: Path) -> None:
        self._index: Any = faiss.read_index(str(folder / VECTORS))
        self._texts = pa.ipc.open_file(pa.memory_map(str(folder / TEXTS))).read_all()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, vector_D: Vectors, count: int) -> list[tuple[str, str, float]]:
        """The nearest documents: id, text and cosine, nearest first."""
        scores, rows = self._index.search(vector_D[None], min(count, len(self)))
        found = self._texts.take(pa.array(rows[0]))
        return list(
            zip(
                found["id"].to_pylist(),
                found["text"].to_pylist(),
                map(float, scores[0]),
                strict=True,
            )
        )
