"""A batch and an embedder to a loss: which texts are encoded, and which formula judges them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from qzhou.errors import TrainingError
from qzhou.learning import TrainingSection
from qzhou.recipe import ModelSection
from qzhou.training.batches import Batch, ClassificationBatch, PairBatch, RetrievalBatch
from qzhou.training.losses import Terms, classification_info_nce, cosent, info_nce, spread_out


class Embedder(Protocol):
    """Texts to unit vectors [N, D] with gradient."""

    def __call__(self, texts: Sequence[str], *, max_tokens: int) -> Tensor: ...


def loss_of(batch: Batch, embed: Embedder, model: ModelSection, training: TrainingSection) -> Tensor:
    """The scalar loss of a global batch.

    Only retrieval queries have the shorter limit; both sides of a pair and all texts of a
    classification batch are truncated like documents. With Matryoshka dimensions the loss is also taken of the
    vectors' first components, normalised again, and added with its weight (arXiv:2205.13147).

    Raises:
        TrainingError: A Matryoshka dimension is not below the model's width.
    """
    parts = _encoded(batch, embed, model)
    loss = _loss(batch, parts, training)
    for dimensions, weight in training.loss.matryoshka:
        if dimensions >= parts[0].shape[1]:
            raise TrainingError(
                f"training.loss.matryoshka_dimensions has {dimensions}, and the model's vectors have "
                f"{parts[0].shape[1]} dimensions; name smaller ones, all of them are trained anyway"
            )
        shorter = [torch.nn.functional.normalize(part[:, :dimensions], dim=1) for part in parts]
        loss = loss + weight * _loss(batch, shorter, training)
    return loss


def _encoded(batch: Batch, embed: Embedder, model: ModelSection) -> list[Tensor]:
    """The vectors of each kind of text in a batch."""
    if isinstance(batch, RetrievalBatch):
        return [
            embed(batch.queries, max_tokens=model.max_query_tokens),
            embed(batch.documents, max_tokens=model.max_document_tokens),
        ]
    if isinstance(batch, PairBatch):
        kinds = [batch.texts_a, batch.texts_b]
    else:
        kinds = [batch.texts, batch.positives, batch.negatives]
    vectors = embed([text for kind in kinds for text in kind], max_tokens=model.max_document_tokens)
    return list(torch.split(vectors, [len(kind) for kind in kinds]))


def _loss(batch: Batch, parts: Sequence[Tensor], training: TrainingSection) -> Tensor:
    device = parts[0].device
    if isinstance(batch, PairBatch):
        a, b = parts
        return cosent(a, b, batch.score_P.to(device), temperature=training.cosent_temperature)
    if isinstance(batch, ClassificationBatch):
        texts, positives, negatives = parts
        return classification_info_nce(
            texts,
            positives,
            negatives,
            batch.label_B.to(device),
            batch.negative_label_M.to(device),
            temperature=training.temperature,
        )
    queries, documents = parts
    positive_B, wanted = batch.positive_B.to(device), training.loss
    is_own = batch.owner_M[None, :] == torch.arange(len(batch.queries))[:, None]
    is_own[torch.arange(len(batch.queries)), batch.positive_B] = False
    loss = info_nce(
        queries,
        documents,
        positive_B,
        temperature=training.temperature,
        blocked_document_BM=batch.blocked_document_BM.to(device),
        blocked_query_BB=batch.blocked_query_BB.to(device),
        own_negative_BM=is_own.to(device),
        terms=Terms(
            query_query=training.query_query,
            document_document=wanted.document_document,
            false_negative_margin=wanted.false_negative_margin,
            hardness=wanted.hardness,
            focal=wanted.focal,
        ),
    )
    if wanted.spread_out:
        loss = loss + wanted.spread_out * (spread_out(queries) + spread_out(documents[positive_B]))
    return loss
