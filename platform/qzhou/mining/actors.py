"""The actors of mining: they encode texts, search a shard, score pairs. No ray in here.

Only actors that need torch import it, when they need it: a search actor starts in a
fraction of the time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt, declared_prompt
from qzhou.data.storage import Folder
from qzhou.data.text_digests import Floats, Ints
from qzhou.encoder.model_check import refuse_no_cross_encoder
from qzhou.encoder.vectors import Vectors, VectorStore
from qzhou.errors import ModelError
from qzhou.mining.corpus import Chunk, Texts
from qzhou.mining.shard import QueryBlock, SearchResult, Shard
from qzhou.run.models import pretrained, repository_of, resolve, why_unreadable

if TYPE_CHECKING:
    from qzhou.encoder import TextEncoder

SHOWN_CHARS = 80


class EncodeActor:
    """Holds a teacher; writes the vectors of chunks of texts into a store, unless they are there.

    An empty ``teacher`` is the recipe's backbone; ``id`` in a row is a position in ``chunks``.
    """

    def __init__(self, recipe: Recipe, teacher: str, folder: Folder, chunks: Sequence[Chunk]) -> None:
        self._recipe, self._teacher, self._folder, self._chunks = recipe, teacher, folder, chunks

    @cached_property
    def _encoder(self) -> TextEncoder:
        from qzhou.encoder import load_text_encoder

        key = self._recipe.mining.teacher_api_key_env
        return load_text_encoder(self._teacher, self._recipe.model, api_key_env=key)

    @cached_property
    def _store(self) -> VectorStore:
        return VectorStore(self._folder, self._encoder, check=self._refuse_what_is_not_finite)

    @cached_property
    def _prefixes(self) -> Prompt | None:
        if self._recipe.mining.teacher_prompts != "model":
            return None
        return declared_prompt(self._encoder.prompts or {})

    def __call__(self, batch: pa.Table) -> pa.Table:
        """For rows of ``CHUNKS`` their ``id``, the ``name`` of the file, and what was done for it.

        Raises:
            ModelError: The teacher cannot be loaded, or gives no vector.
        """
        store = self._store  # the teacher is loaded before a chunk's seconds are counted
        done = []
        for row in batch.to_pylist():
            started, truncated, encoded = time.monotonic(), self._encoder.truncated, store.encoded
            chunk = self._chunks[row["id"]]
            name = self._encode(chunk, Texts(row["texts"], row["instructions"]))
            found = {"id": row["id"], "name": name, "texts": chunk.rows, "encoded": store.encoded - encoded}
            found["truncated"] = self._encoder.truncated - truncated
            done.append({**found, "seconds": time.monotonic() - started})
        return pa.Table.from_pylist(done)

    def _encode(self, chunk: Chunk, texts: Texts) -> str:
        # documents: the encoder's own limit
        limit = self._recipe.model.max_query_tokens if chunk.are_queries else None
        return self._store.file(chunk.prompted(texts, self._prefixes), max_tokens=limit)

    def _refuse_what_is_not_finite(self, texts: Sequence[str], vectors: Vectors) -> None:
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            teacher = self._teacher or self._recipe.model.backbone
            raise ModelError(
                f"the teacher '{teacher}' gives no finite vector for {len(wrong):,} of {len(texts):,} texts, the first "
                f"of them: {texts[wrong[0]][:SHOWN_CHARS]!r}. In float16 large models overflow: set "
                "model.encoding_dtype to 'bfloat16' or 'float32'."
            )


class SearchActor:
    """A shard of a corpus, opened by the first call: a recipe's error then stays itself.

    Args:
        settings: What :class:`qzhou.mining.shard.Shard` takes.
    """

    def __init__(self, *settings: Any) -> None:
        self._settings = settings

    @cached_property
    def _shard(self) -> Shard:
        return Shard(*self._settings)

    def vectors(self, rows: Ints) -> Floats:
        """See :meth:`qzhou.mining.shard.Shard.vectors`."""
        return self._shard.vectors(rows)

    def close(self) -> None:
        """Remove the copies of remote files."""
        if "_shard" in self.__dict__:
            self._shard.close()

    def search(self, block: QueryBlock, count: int, exactly: bool = False) -> SearchResult:
        """See :meth:`qzhou.mining.shard.Shard.search`."""
        return self._shard.search(block, count, exactly=exactly)


class RerankActor:
    """A cross-encoder that reads query and document together.

    Args:
        spec: Named like a backbone: a folder, hub id or ``package:<import name>/<folder>``.
        max_tokens: Pairs are truncated here.
    """

    def __init__(self, spec: str, max_tokens: int) -> None:
        self._settings = spec, max_tokens

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import CrossEncoder
        from transformers import AutoConfig

        from qzhou.encoder import choose_device
        from qzhou.encoder.backbone import UNREADABLE

        spec, max_tokens = self._settings
        place = resolve(spec)
        name, revision = repository_of(place)
        device = str(choose_device())
        try:
            refuse_no_cross_encoder(spec, AutoConfig.from_pretrained(**pretrained(place)).architectures or [])
            model = CrossEncoder(name, revision=revision, device=device, num_labels=1, trust_remote_code=False)
        except UNREADABLE as error:
            raise ModelError(f"mining.reranker '{spec}' cannot be loaded: {why_unreadable(error, place)}") from None
        model.max_length = min(max_tokens, model.max_length or max_tokens)
        return model

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """How well each document answers its query, from 0 to 1 [len(pairs)]."""
        import torch

        found = self._model.predict(list(pairs), activation_fn=torch.nn.Sigmoid(), show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)
