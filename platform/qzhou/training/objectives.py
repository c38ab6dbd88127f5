"""Vectors of a batch to its loss: which formula judges which texts, and what is told about it.

Shape letters in this file: N texts of all kinds, B queries, M documents, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qzhou.config.training import TrainingSection
from qzhou.errors import TrainingError
from qzhou.training.batches import Batch, ClassificationBatch, PairBatch, RetrievalBatch
from qzhou.training.losses import (
    Terms,
    classification_info_nce,
    cosent,
    info_nce,
    mixed_negatives,
    orthogonal_regularisation,
    teacher_scores,
    teacher_vectors,
)


def loss_of(
    batches: Sequence[Batch],
    vector_ND: Tensor,
    training: TrainingSection,
    *,
    teacher_ND: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The scalar loss of a global batch.

    Parts of several tasks count by their numbers of examples. With Matryoshka dimensions the loss is also taken of
    the vectors' first components, normalised again, and added with its weight (arXiv:2205.13147).

    Args:
        vector_ND: Of all texts, kind after kind as :attr:`Batch.kinds` has them, batch after batch.
        teacher_ND: A teacher's vectors of the same texts, of any width.
        seed: Of this step, for mixed negatives.

    Raises:
        TrainingError: A Matryoshka dimension is not below the model's width.
    """
    total = sum(batch.size for batch in batches)
    loss = vector_ND.new_zeros(())
    teachers = [None] * len(batches) if teacher_ND is None else split(batches, teacher_ND)
    for batch, parts, teacher in zip(batches, split(batches, vector_ND), teachers, strict=True):
        of_batch = _with_matryoshka(batch, parts, training, seed)
        if teacher is not None:
            of_batch = of_batch + training.distillation.weight * _distilled(
                batch, parts, teacher, training
            )
        loss = loss + of_batch * (batch.size / total)
    return loss


def split(batches: Sequence[Batch], vector_ND: Tensor) -> list[list[Tensor]]:
    """For each batch the vectors of each kind of its texts."""
    sizes = [len(texts) for batch in batches for _, texts in batch.kinds]
    parts = iter(torch.split(vector_ND, sizes))
    return [[next(parts) for _ in batch.kinds] for batch in batches]


@torch.no_grad()
def figures(
    batches: Sequence[Batch], vector_ND: Tensor, *, margin: float | None = None
) -> dict[str, float]:
    """What the vectors say of a batch beside its loss; what a batch has nothing of is left out.

    ``positive_cosine`` is the mean over the positives; ``negative_cosine`` over each query's highest negative;
    ``accuracy`` the share of queries whose positive is above all other documents. Pairs give the mean cosine of both
    sides, and ``order_agreement``: the share of comparisons of two pairs in which the cosines have the order of the
    scores (0.5 by chance). ``masked_share`` is the share of the other documents that are left out of the denominator
    as answers, known or by ``margin``; in classification, of the other texts that have the same label.
    ``negative_hardness`` is the share of other queries' documents below a query's own hard negatives (0.5: no harder
    than what is drawn at random).

    Args:
        vector_ND: As in :func:`loss_of`.
        margin: ``training.loss.false_negative_margin``.
    """
    found: dict[str, list[Tensor]] = {}
    for batch, parts in zip(batches, split(batches, vector_ND), strict=True):
        if isinstance(batch, PairBatch):
            own = _pair_figures(batch, parts)
        elif isinstance(batch, RetrievalBatch):
            own = _retrieval_figures(batch, parts, margin)
        else:
            own = _classification_figures(batch, parts)
        for name, values in own.items():
            found.setdefault(name, []).append(values.float())
    joined = {name: torch.cat(values) for name, values in found.items()}
    return {name: round(float(values.mean()), 6) for name, values in joined.items() if len(values)}


def _pair_figures(batch: PairBatch, parts: Sequence[Tensor]) -> dict[str, Tensor]:
    cosine_P = (parts[0] * parts[1]).sum(1)
    score_P, scale_P = batch.score_P.to(cosine_P.device), batch.scale_P.to(cosine_P.device)
    ordered_PP = (score_P[:, None] > score_P[None, :]) & (scale_P[:, None] == scale_P[None, :])
    # of two equal ones a half
    agrees = (cosine_P[:, None] - cosine_P[None, :])[ordered_PP].sign().add(1).div(2)
    return {"positive_cosine": cosine_P, "order_agreement": agrees}


def _retrieval_figures(
    batch: RetrievalBatch, parts: Sequence[Tensor], margin: float | None
) -> dict[str, Tensor]:
    device = parts[0].device
    rows = torch.arange(batch.size, device=device)
    cosine_BM, positive_B = parts[0] @ parts[1].T, batch.positive_B.to(device)
    positive_cosine_B = cosine_BM.gather(1, positive_B[:, None])[:, 0]
    known_BM, hard_BM = batch.blocked_document_BM.to(device), batch.own_negatives.to(device)
    masked_BM = known_BM.clone()
    if margin is not None:
        masked_BM |= cosine_BM > positive_cosine_B[:, None] + margin
    masked_BM[rows, positive_B] = False
    others_BM = ~known_BM
    others_BM[rows, positive_B] = False
    found = {
        **_beside(positive_cosine_B, cosine_BM.masked_fill(~others_BM, -torch.inf)),
        "masked_share": masked_BM.sum(1) / max(1, cosine_BM.shape[1] - 1),
    }
    own_BM, strange_BM = hard_BM & others_BM, others_BM & ~hard_BM
    own_cosine_B = (cosine_BM * own_BM).sum(1) / own_BM.sum(1)
    below_B = ((cosine_BM < own_cosine_B[:, None]) & strange_BM).sum(1) / strange_BM.sum(1)
    return found | {"negative_hardness": below_B[own_BM.any(1) & strange_BM.any(1)]}


def _classification_figures(
    batch: ClassificationBatch, parts: Sequence[Tensor]
) -> dict[str, Tensor]:
    device = parts[0].device
    same_BM = (batch.label_B[:, None] == batch.negative_label_M[None, :]).to(device)
    same_BB = (batch.label_B[:, None] == batch.label_B[None, :]).float()
    positive_B = (parts[0] * parts[1]).sum(1)
    found = _beside(positive_B, (parts[0] @ parts[2].T).masked_fill(same_BM, -torch.inf))
    others = batch.size - 1
    return found | ({"masked_share": ((same_BB.sum(1) - 1) / others).to(device)} if others else {})


def _beside(positive_B: Tensor, cosine_BM: Tensor) -> dict[str, Tensor]:
    """Positives beside the highest of their negatives; -inf stands for what is none."""
    if not cosine_BM.shape[1]:
        return {"positive_cosine": positive_B}
    highest_B = cosine_BM.max(1).values
    return {
        "positive_cosine": positive_B,
        "negative_cosine": highest_B[highest_B.isfinite()],
        "accuracy": positive_B > highest_B,
    }


def _with_matryoshka(
    batch: Batch, parts: Sequence[Tensor], training: TrainingSection, seed: int
) -> Tensor:
    loss = _loss(batch, parts, training, seed)
    for dimensions, weight in training.loss.matryoshka:
        if dimensions >= parts[0].shape[1]:
            raise TrainingError(
                f"training.loss.matryoshka_dimensions has {dimensions}, and the model's vectors have "
                f"{parts[0].shape[1]} dimensions; name smaller ones, all of them are trained anyway"
            )
        shorter = [torch.nn.functional.normalize(part[:, :dimensions], dim=1) for part in parts]
        loss = loss + weight * _loss(batch, shorter, training, seed)
    return loss


def _loss(batch: Batch, parts: Sequence[Tensor], training: TrainingSection, seed: int) -> Tensor:
    device = parts[0].device
    if isinstance(batch, PairBatch):
        a, b = parts
        return cosent(
            a,
            b,
            batch.score_P.to(device),
            temperature=training.cosent_temperature,
            scale_P=batch.scale_P.to(device),
        )
    if isinstance(batch, RetrievalBatch):
        return _retrieval_loss(batch, parts[0], parts[1], training, seed)
    texts, positives, negatives = parts
    return classification_info_nce(
        texts,
        positives,
        negatives,
        batch.label_B.to(device),
        batch.negative_label_M.to(device),
        temperature=training.temperature,
    )


def _retrieval_loss(
    batch: RetrievalBatch, queries: Tensor, documents: Tensor, training: TrainingSection, seed: int
) -> Tensor:
    device, wanted = queries.device, training.loss
    positive_B, own_BM = batch.positive_B.to(device), batch.own_negatives.to(device)
    count = wanted.mixed_negatives
    loss = info_nce(
        queries,
        documents,
        positive_B,
        temperature=training.temperature,
        blocked_document_BM=batch.blocked_document_BM.to(device),
        blocked_query_BB=batch.blocked_query_BB.to(device),
        own_negative_BM=own_BM,
        mixed=mixed_negatives(documents, own_BM, count=count, seed=seed) if count else None,
        terms=Terms(
            query_query=training.query_query,
            document_document=wanted.document_document,
            false_negative_margin=wanted.false_negative_margin,
            hardness=wanted.hardness,
            focal=wanted.focal,
        ),
    )
    if wanted.orthogonal_regularisation:
        loss = loss + wanted.orthogonal_regularisation * (
            orthogonal_regularisation(queries) + orthogonal_regularisation(documents[positive_B])
        )
    return loss


def _distilled(
    batch: Batch, parts: Sequence[Tensor], teacher: Sequence[Tensor], training: TrainingSection
) -> Tensor:
    """The teacher's part of the loss; of scores, what a query is compared with depends on the task."""
    if training.distillation.kind == "embeddings":
        return teacher_vectors(torch.cat(list(parts)), torch.cat(list(teacher)))
    temperature, first = training.distillation.temperature, parts[0]
    if isinstance(batch, RetrievalBatch):
        documents, judged = parts[1], teacher[1]
        blocked = batch.blocked_document_BM.to(first.device)
    else:
        documents, judged = torch.cat(list(parts[1:])), torch.cat(list(teacher[1:]))
        blocked = torch.zeros(len(first), len(documents), dtype=torch.bool, device=first.device)
    return teacher_scores(first, documents, teacher[0] @ judged.T, blocked, temperature=temperature)
