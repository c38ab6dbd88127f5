"""Scores of new records by an encoder, the teacher: the texts that it compares, and its actor. No ray in here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt
from qzhou.data.records import LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.synthesis.filters import Scores
from qzhou.synthesis.generation import SyntheticRecord

if TYPE_CHECKING:
    from qzhou.encoder import TextEncoder

TEXTS = ("query", "positive", "negative", "better", "old_query", "old_positive")
SCORED = pa.schema([("index", pa.int64()), *((name, pa.float64()) for name in Scores.__dataclass_fields__)])


def texts_to_score(one: SyntheticRecord, prompt: Prompt) -> dict[str, str]:
    """Name in ``TEXTS`` -> text with its prompt, for :class:`EmbeddingScorer`.

    ``old_query`` and ``old_positive`` are the originals of a rewrite; ``better`` is the
    positive that must score above the negative. A labelled text, or one text of a pair, is
    a ``query``.
    """
    record, seed = one.record, one.seed
    if isinstance(seed, RetrievalExample):
        prompt = prompt.with_instruction(seed.instruction)
    if isinstance(record, Negative):
        assert isinstance(seed, RetrievalExample)
        return {
            "query": prompt.query(seed.query),
            "negative": prompt.document(record.text),
            "better": prompt.document(seed.positives[0]),
        }
    if isinstance(record, RetrievalExample):
        return _retrieval_texts(one, record, prompt)
    side = (one.request.side or "text_a") if isinstance(record, PairExample) else "text"
    assert isinstance(seed, PairExample | LabeledExample)
    return {"query": prompt.query(getattr(record, side)), "old_query": prompt.query(getattr(seed, side))}


def _retrieval_texts(one: SyntheticRecord, record: RetrievalExample, prompt: Prompt) -> dict[str, str]:
    positive = prompt.document(record.positives[0])
    texts = {"query": prompt.query(record.query), "positive": positive}
    if record.negatives:
        texts["negative"] = prompt.document(record.negatives[0].text)
        texts["better"] = positive
    # An augmentation asks something else, so its distance to the original says nothing.
    if one.request.technique == "paraphrase":
        assert isinstance(one.seed, RetrievalExample)
        texts["old_query"] = prompt.query(one.seed.query)
        texts["old_positive"] = prompt.document(one.seed.positives[0])
    return texts


class EmbeddingScorer:
    """Turns batches of texts (:func:`texts_to_score`) into batches of :class:`Scores`."""

    def __init__(self, recipe: Recipe) -> None:
        # Loads torch, which the driver and other actors that import this file do not need.
        from qzhou.encoder import load_text_encoder

        spec = recipe.synthesis.filters.teacher or recipe.mining.teacher
        key = recipe.mining.teacher_api_key_env
        self._encoder: TextEncoder = load_text_encoder(spec, recipe.model, api_key_env=key)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Columns of ``SCORED`` for columns ``index`` and ``TEXTS``."""
        rows = batch.to_pylist()
        texts = list(dict.fromkeys(row[name] for row in rows for name in TEXTS if row[name] is not None))
        vectors = dict(zip(texts, self._encoder.encode(texts), strict=True))
        scored = [{"index": row["index"], **_scores(row, vectors)} for row in rows]
        return pa.Table.from_pylist(scored, schema=SCORED)


def _scores(row: dict[str, Any], vectors: dict[str, np.ndarray]) -> dict[str, float | None]:
    def cosine(first: str, second: str) -> float | None:
        if row[first] is None or row[second] is None:
            return None
        return float(vectors[row[first]] @ vectors[row[second]])

    rewrites = [cosine("query", "old_query"), cosine("positive", "old_positive")]
    return {
        "rewrite": min((score for score in rewrites if score is not None), default=None),
        "positive": cosine("query", "positive"),
        "negative": cosine("query", "negative"),
        "reference_positive": cosine("query", "better"),
        "negative_and_positive": cosine("negative", "better"),
    }
