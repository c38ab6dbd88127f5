"""What runs inside the actors that mine: encoding chunks of texts, searching a shard, judging pairs. No ray in here.

torch is imported by the actors that need it, when they need it: a searcher starts in a fraction of the time without.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qzhou.config.recipe import Recipe
from qzhou.data.prompts import DeclaredPrompts
from qzhou.data.records import digest
from qzhou.data.storage import Folder
from qzhou.errors import ModelError, QzhouError, first_line, to_json
from qzhou.mining.corpus import Chunk, read_column
from qzhou.mining.identity import Floats, Ints
from qzhou.mining.shard import Block, Found, Shard, VectorFile
from qzhou.run.models import resolve

if TYPE_CHECKING:
    from qzhou.encoder import TextEncoder


# of the vector files; another one when what they hold is made otherwise, so that no old one is read
VERSION = 1
SHOWN_CHARS = 80


class EncodeActor:
    """Holds a teacher; writes the vectors of a chunk of texts, unless they are there.

    A file's name covers the teacher's weights, tokenizer, pooling, dtype and length (its fingerprint) and every text
    with its prompt: another checkpoint or prompt never finds an old file.
    """

    def __init__(
        self, recipe: Recipe, teacher: str, folder: Folder, chunks: Sequence[Chunk]
    ) -> None:
        self._recipe, self._teacher, self._folder, self._chunks = recipe, teacher, folder, chunks
        self._column: tuple[str, list[str]] = ("", [])

    @cached_property
    def _encoder(self) -> TextEncoder:
        from qzhou.encoder import load_teacher

        key = self._recipe.mining.teacher_api_key_env
        return load_teacher(self._teacher, self._recipe.model, api_key_env=key)

    @cached_property
    def _name(self) -> str:
        from qzhou.encoder import stored_as

        return stored_as(self._encoder, self._folder)

    @cached_property
    def _prefixes(self) -> DeclaredPrompts | None:
        return (
            DeclaredPrompts.of(self._encoder.prompts)
            if self._recipe.mining.teacher_prompts == "model"
            else None
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The number of a chunk to its file; an error for people comes back as a value, or Ray Data would wrap it."""
        found: dict[str, Any] = {
            "name": "",
            "encoded": 0,
            "truncated": 0,
            "seconds": 0.0,
            "error": "",
        }
        try:
            _ = self._name  # the teacher is loaded before a chunk's seconds are counted
            started = time.monotonic()
            found["name"], found["encoded"], found["truncated"] = self._encode(
                self._chunks[int(batch["id"][0])]
            )
            found["seconds"] = time.monotonic() - started
        except QzhouError as refused:
            found["error"] = to_json(refused)
        return {"id": batch["id"], **{name: [value] for name, value in found.items()}}

    def _encode(self, chunk: Chunk) -> tuple[str, int, int]:
        texts = chunk.prompted(self._column_of(chunk), self._prefixes)
        # documents: the encoder's own
        limit = self._recipe.model.max_query_tokens if chunk.asks else None
        name = f"{self._name}/{digest([VERSION, limit, texts])}.npy"
        if self._folder.has_array(name, rows=len(texts)):
            return name, 0, 0
        before = self._encoder.truncated
        vectors = self._encoder.encode(texts, max_tokens=limit)
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            teacher = self._teacher or self._recipe.model.backbone
            raise ModelError(
                f"the teacher '{teacher}' gives no finite vector for {len(wrong):,} of {len(texts):,} texts, the first "
                f"of them: {texts[wrong[0]][:SHOWN_CHARS]!r}. In float16 large models overflow: set "
                "model.encoding_dtype to 'bfloat16' or 'float32'."
            )
        self._folder.write_array(name, vectors)
        return name, len(texts), self._encoder.truncated - before

    def _column_of(self, chunk: Chunk) -> list[str]:
        """The column that the chunk is a part of; the last one is kept, because its next chunk often follows."""
        name = f"{chunk.folder.uri}/{chunk.file}/{chunk.column}"
        if self._column[0] != name:
            self._column = name, read_column(chunk.folder, chunk.file, chunk.column)
        return self._column[1]


class SearchActor:
    """A shard of a corpus, opened by the first call: an error of the recipe then comes back as itself."""

    def __init__(
        self, folder: Folder, files: Sequence[VectorFile], index: str, parameters: str, copies: Ints
    ) -> None:
        self._settings = folder, files, index, parameters, copies

    @cached_property
    def _shard(self) -> Shard:
        return Shard(*self._settings)

    def vectors(self, rows: Ints) -> Floats:
        return self._shard.vectors(rows)

    def close(self) -> None:
        """Remove the copies of remote files."""
        if "_shard" in self.__dict__:
            self._shard.close()

    def search(self, block: Block, count: int, exactly: bool = False) -> Found:
        return self._shard.search(block, count, exactly=exactly)


class RerankActor:
    """A cross-encoder that reads query and document together.

    Args:
        spec: Named like a backbone: a folder, a hub id, or ``package:<import name>/<folder>``.
        max_tokens: Pairs are truncated here.
    """

    def __init__(self, spec: str, max_tokens: int) -> None:
        self._settings = spec, max_tokens

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import CrossEncoder
        from transformers import AutoConfig

        from qzhou.encoder import choose_device

        spec, max_tokens = self._settings
        place = resolve(spec)
        try:
            kinds = AutoConfig.from_pretrained(place).architectures or []
            if not any("ForSequenceClassification" in kind for kind in kinds):
                raise ModelError(
                    f"mining.reranker '{spec}' is no cross-encoder: it is saved as {', '.join(kinds) or 'nothing'}, "
                    "without a head that scores. Name one that is saved as ...ForSequenceClassification."
                )
            model = CrossEncoder(place, device=str(choose_device()), num_labels=1)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"mining.reranker '{spec}' cannot be loaded: {first_line(error)}"
            ) from None
        model.max_length = min(max_tokens, model.max_length or max_tokens)
        return model

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """How well each document answers its query, from 0 to 1 [len(pairs)]."""
        import torch

        found = self._model.predict(
            list(pairs), activation_fn=torch.nn.Sigmoid(), show_progress_bar=False
        )
        return np.asarray(found, dtype=np.float32)
