"""A batch and an embedder to a loss: which texts are encoded, and which formula judges them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from qzhou.recipe import ModelSection, TrainingSection
from qzhou.training.batches import Batch, ClassificationBatch, PairBatch
from qzhou.training.losses import classification_info_nce, cosent, info_nce


class Embedder(Protocol):
    """Texts to unit vectors [N, D] with gradient."""

    def __call__(self, texts: Sequence[str], *, max_tokens: int) -> Tensor: ...


def loss_of(batch: Batch, embed: Embedder, model: ModelSection, training: TrainingSection) -> Tensor:
    """The scalar loss of a global batch.

    Only retrieval queries have the shorter limit; both sides of a pair and all texts of a
    classification batch are truncated like documents.
    """
    if isinstance(batch, PairBatch):
        vectors = embed(batch.texts_a + batch.texts_b, max_tokens=model.max_document_tokens)
        middle = len(batch.texts_a)
        score = batch.score_P.to(vectors.device)
        return cosent(vectors[:middle], vectors[middle:], score, temperature=training.cosent_temperature)
    if isinstance(batch, ClassificationBatch):
        count = len(batch.texts)
        vectors = embed(batch.texts + batch.positives + batch.negatives, max_tokens=model.max_document_tokens)
        return classification_info_nce(
            vectors[:count],
            vectors[count : 2 * count],
            vectors[2 * count :],
            batch.label_B.to(vectors.device),
            batch.negative_label_M.to(vectors.device),
            temperature=training.temperature,
        )
    queries = embed(batch.queries, max_tokens=model.max_query_tokens)
    documents = embed(batch.documents, max_tokens=model.max_document_tokens)
    return info_nce(
        queries,
        documents,
        batch.positive_B.to(queries.device),
        temperature=training.temperature,
        blocked_document_BM=batch.blocked_document_BM.to(queries.device),
        blocked_query_BB=batch.blocked_query_BB.to(queries.device),
        query_query=training.query_query,
    )
