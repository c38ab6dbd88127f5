"""From the vectors of a batch to its loss and its metrics: which formula takes which texts.

Shape letters in this file: N texts of all kinds, B queries, M documents, D embedding width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qzhou.config.training import TrainingSection
from qzhou.errors import TrainingError
from qzhou.training.batches import Batch, ClassificationBatch, PairBatch, RetrievalBatch
from qzhou.training.losses import (
    InfoNCEMasks,
    InfoNCEOptions,
    classification_info_nce,
    cosent,
    distillation_cosine_loss,
    distillation_kl_loss,
    info_nce,
    listwise_distillation_loss,
    mixed_negatives,
    orthogonal_regularisation,
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

    Parts of several tasks count by their numbers of examples. With Matryoshka dimensions
    the loss is also taken of the vectors' first components, normalised again, and added
    with its weight (arXiv:2205.13147).

    Args:
        batches: One for each task of the step.
        vector_ND: Vectors of all texts, as :attr:`Batch.text_groups` orders, by batch.
        training: Temperatures, weights and optional terms.
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
            of_batch = of_batch + training.distillation.weight * _distillation_loss(batch, parts, teacher, training)
        if training.distillation.is_listwise and isinstance(batch, RetrievalBatch):
            of_batch = of_batch + training.distillation.weight * _listwise_loss(batch, parts, training)
        loss = loss + of_batch * (batch.size / total)
    return loss


def split(batches: Sequence[Batch], vector_ND: Tensor) -> list[list[Tensor]]:
    """For each batch the vectors of each of its text groups."""
    sizes = [len(texts) for batch in batches for _, texts in batch.text_groups]
    parts = iter(torch.split(vector_ND, sizes))
    return [[next(parts) for _ in batch.text_groups] for batch in batches]


@torch.no_grad()
def batch_metrics(
    batches: Sequence[Batch], vector_ND: Tensor, *, margin: float | None = None, listwise: bool = False
) -> dict[str, float]:
    """Metrics of a batch beside its loss; those that do not apply to it are left out.

    - ``positive_cosine``: mean cosine of the positives; of pairs, of both sides.
    - ``negative_cosine``: mean over each query's highest negative.
    - ``accuracy``: share of queries whose positive is above all other documents.
    - ``order_agreement``: share of comparisons of two pairs in which the cosines have the order of the scores
      (0.5 by chance).
    - ``masked_share``: share of the other documents that are left out of the denominator as false negatives, known
      ones or by ``margin``; in classification, share of the other texts with the same
      label.
    - ``scored_share``: with ``listwise``, share of queries that have a list of scores to learn.
    - ``negative_hardness``: share of other queries' documents below a query's own hard negatives (0.5: no harder
      than what is drawn at random).

    Args:
        batches: One for each task of the step.
        vector_ND: As in :func:`loss_of`.
        margin: ``training.loss.false_negative_margin``.
        listwise: Whether ``training.distillation.kind`` is listwise.
    """
    found: dict[str, list[Tensor]] = {}
    for batch, parts in zip(batches, split(batches, vector_ND), strict=True):
        if isinstance(batch, PairBatch):
            own = _pair_metrics(batch, parts)
        elif isinstance(batch, RetrievalBatch):
            own = _retrieval_metrics(batch, parts, margin)
            own |= {"scored_share": batch.scored_mask.any(1)} if listwise else {}
        else:
            own = _classification_metrics(batch, parts)
        for name, values in own.items():
            found.setdefault(name, []).append(values.float())
    joined = {name: torch.cat(values) for name, values in found.items()}
    return {name: round(float(values.mean()), 6) for name, values in joined.items() if len(values)}


def _pair_metrics(batch: PairBatch, parts: Sequence[Tensor]) -> dict[str, Tensor]:
    cosine_P = (parts[0] * parts[1]).sum(1)
    score_P, scale_P = batch.score_P.to(cosine_P.device), batch.scale_P.to(cosine_P.device)
    ordered_PP = (score_P[:, None] > score_P[None, :]) & (scale_P[:, None] == scale_P[None, :])
    # two equal cosines count as one half
    agrees = (cosine_P[:, None] - cosine_P[None, :])[ordered_PP].sign().add(1).div(2)
    return {"positive_cosine": cosine_P, "order_agreement": agrees}


def _retrieval_metrics(batch: RetrievalBatch, parts: Sequence[Tensor], margin: float | None) -> dict[str, Tensor]:
    device = parts[0].device
    rows = torch.arange(batch.size, device=device)
    positive_B = batch.positive_B.to(device)
    cosine_BM = parts[0] @ parts[1].T
    positive_cosine_B = cosine_BM.gather(1, positive_B[:, None])[:, 0]
    known_BM = batch.false_negative_mask_BM.to(device)
    hard_BM = batch.hard_negative_mask.to(device)
    masked_BM = known_BM.clone()
    if margin is not None:
        masked_BM |= cosine_BM > positive_cosine_B[:, None] + margin
    masked_BM[rows, positive_B] = False
    others_BM = ~known_BM
    others_BM[rows, positive_B] = False
    found = {
        **_positives_and_negatives(positive_cosine_B, cosine_BM.masked_fill(~others_BM, -torch.inf)),
        "masked_share": masked_BM.sum(1) / max(1, cosine_BM.shape[1] - 1),
    }
    own_BM, strange_BM = hard_BM & others_BM, others_BM & ~hard_BM
    own_cosine_B = (cosine_BM * own_BM).sum(1) / own_BM.sum(1)
    below_B = ((cosine_BM < own_cosine_B[:, None]) & strange_BM).sum(1) / strange_BM.sum(1)
    return found | {"negative_hardness": below_B[own_BM.any(1) & strange_BM.any(1)]}


def _classification_metrics(batch: ClassificationBatch, parts: Sequence[Tensor]) -> dict[str, Tensor]:
    device = parts[0].device
    same_BM = (batch.label_B[:, None] == batch.negative_label_M[None, :]).to(device)
    same_BB = (batch.label_B[:, None] == batch.label_B[None, :]).float()
    positive_B = (parts[0] * parts[1]).sum(1)
    cosine_BM = (parts[0] @ parts[2].T).masked_fill(same_BM, -torch.inf)
    found = _positives_and_negatives(positive_B, cosine_BM)
    if batch.size > 1:
        found["masked_share"] = ((same_BB.sum(1) - 1) / (batch.size - 1)).to(device)
    return found


def _positives_and_negatives(positive_B: Tensor, cosine_BM: Tensor) -> dict[str, Tensor]:
    """Metrics of positives beside their highest negatives; -inf stands for no negative."""
    if not cosine_BM.shape[1]:
        return {"positive_cosine": positive_B}
    highest_B = cosine_BM.max(1).values
    return {
        "positive_cosine": positive_B,
        "negative_cosine": highest_B[highest_B.isfinite()],
        "accuracy": positive_B > highest_B,
    }


def _with_matryoshka(batch: Batch, parts: Sequence[Tensor], training: TrainingSection, seed: int) -> Tensor:
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
    if isinstance(batch, RetrievalBatch):
        return _retrieval_loss(batch, parts[0], parts[1], training, seed)
    if isinstance(batch, PairBatch):
        a, b = parts
        score_P, scale_P = batch.score_P.to(device), batch.scale_P.to(device)
        return cosent(a, b, score_P, temperature=training.cosent_temperature, scale_P=scale_P)
    texts, positives, negatives = parts
    label_B, negative_label_M = batch.label_B.to(device), batch.negative_label_M.to(device)
    temperature = training.temperature
    return classification_info_nce(texts, positives, negatives, label_B, negative_label_M, temperature=temperature)


def _retrieval_loss(
    batch: RetrievalBatch, queries: Tensor, documents: Tensor, training: TrainingSection, seed: int
) -> Tensor:
    device, terms = queries.device, training.loss
    positive_B = batch.positive_B.to(device)
    known = (batch.false_negative_mask_BM, batch.same_query_mask_BB, batch.hard_negative_mask)
    masks = InfoNCEMasks(*(mask.to(device) for mask in known))
    mixed = None
    if terms.mixed_negatives:
        mixed = mixed_negatives(documents, batch.hard_negative_mask, count=terms.mixed_negatives, seed=seed)
    options = InfoNCEOptions(
        temperature=training.temperature,
        query_query=training.query_query,
        document_document=terms.document_document,
        false_negative_margin=terms.false_negative_margin,
        hardness=terms.hardness,
        focal=terms.focal,
    )
    loss = info_nce(queries, documents, positive_B, masks=masks, mixed=mixed, options=options)
    if terms.orthogonal_regularisation:
        loss = loss + terms.orthogonal_regularisation * (
            orthogonal_regularisation(queries) + orthogonal_regularisation(documents[positive_B])
        )
    return loss


def _listwise_loss(batch: RetrievalBatch, parts: Sequence[Tensor], training: TrainingSection) -> Tensor:
    own, (queries, documents) = training.distillation, parts
    if batch.score_M is None:
        return queries.new_zeros(())
    return listwise_distillation_loss(
        queries,
        documents,
        batch.score_M.to(queries.device),
        batch.scored_mask.to(queries.device),
        temperature=own.temperature,
        teacher_temperature=own.teacher_temperature or own.temperature,
    )


def _distillation_loss(
    batch: Batch, parts: Sequence[Tensor], teacher: Sequence[Tensor], training: TrainingSection
) -> Tensor:
    """The teacher's loss. With scores, the task decides what a query is compared with."""
    if training.distillation.kind == "embeddings":
        return distillation_cosine_loss(torch.cat(list(parts)), torch.cat(list(teacher)))
    queries = parts[0]
    documents, teacher_documents = torch.cat(list(parts[1:])), torch.cat(list(teacher[1:]))
    excluded = torch.zeros(len(queries), len(documents), dtype=torch.bool, device=queries.device)
    if isinstance(batch, RetrievalBatch):
        excluded = batch.false_negative_mask_BM.to(queries.device)
    scores = teacher[0] @ teacher_documents.T
    temperature = training.distillation.temperature
    return distillation_kl_loss(queries, documents, scores, excluded, temperature=temperature)
