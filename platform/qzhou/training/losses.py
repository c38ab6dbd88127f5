"""The three objectives of QZhou-Embedding (arXiv:2508.21632), as pure functions, and terms that its rivals have.

Shape letters in this file: B queries or texts, M documents (positives and negatives), P pairs, N texts,
D embedding width. All vectors are unit length, so a dot product is a cosine. Each function sees the
whole global batch; who computed which vector does not matter here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qzhou.errors import DataError


@dataclass(frozen=True, slots=True)
class Terms:
    """What of InfoNCE is used; the defaults are QZhou-Embedding's.

    Attributes:
        query_query: Other queries stand in the denominator.
        document_document: So do the other documents, compared with the positive (Qwen3-Embedding, arXiv:2506.05176).
        false_negative_margin: What scores above the positive by more is left out: it may be an answer that nobody
            labelled (Qwen3-Embedding: 0.1). None leaves nothing out.
        hardness: The query's own hard negatives weigh ``e^(hardness * s)``, s their cosine without gradient
            (EmbeddingGemma, arXiv:2509.20354: 5).
        focal: A query weighs ``(1 - p)^focal``, p the probability of its positive (arXiv:1708.02002).
    """

    query_query: bool = True
    document_document: bool = False
    false_negative_margin: float | None = None
    hardness: float = 0.0
    focal: float = 0.0


QZHOU = Terms()


def info_nce(
    query_BD: Tensor,
    document_MD: Tensor,
    positive_B: Tensor,
    *,
    temperature: float,
    blocked_document_BM: Tensor | None = None,
    blocked_query_BB: Tensor | None = None,
    own_negative_BM: Tensor | None = None,
    mixed: tuple[Tensor, Tensor] | None = None,
    terms: Terms = QZHOU,
) -> Tensor:
    """InfoNCE whose negatives are every other document and every other query of the batch.

        L_i = -log( e^(s_ip / t) / (sum_m w_im e^(s_im / t) + sum_{j != i} e^(u_ij / t) + sum_{m != p} e^(v_im / t)) )
        L   = 1/B * sum_i (1 - e^(-L_i))^focal * L_i

    with s_im = query_i . document_m, u_ij = query_i . query_j, v_im = document_p . document_m, p = positive_B[i],
    t = temperature, w_im = e^(hardness * s_im) for the query's own hard negatives and 1 for all others. The sum over m
    takes in the query's own negatives and all documents of the other queries. The third sum and the weights are off
    by default; a summand whose cosine is above s_ip + false_negative_margin is left out.

    Args:
        positive_B: Row of ``document_MD`` that answers each query, int64.
        temperature: Divides cosines; 0.02 in the paper.
        blocked_document_BM: True where a document is left out of a query's denominator because it is
            the same text as one of its positives; never at ``positive_B``.
        blocked_query_BB: True where two queries are the same text.
        own_negative_BM: True where a document is a hard negative of the query; needed for ``terms.hardness``.
        mixed: Further negatives [K, D] and the query [K] that each is one of (:func:`mixed_negatives`).
        terms: What is used.

    Returns: Scalar mean loss in nats.
    Raises: DataError: widths differ, or there is not one positive per query.
    Source: equation 1.
    """
    if query_BD.shape[1] != document_MD.shape[1] or len(positive_B) != len(query_BD):
        raise DataError(
            f"queries {tuple(query_BD.shape)}, documents {tuple(document_MD.shape)} and positives "
            f"{tuple(positive_B.shape)} do not fit: widths must be equal, with one positive per query"
        )
    is_positive_BM = torch.zeros(
        len(query_BD), len(document_MD), dtype=torch.bool, device=query_BD.device
    )
    is_positive_BM[torch.arange(len(query_BD)), positive_B] = True
    blocked_BM = (
        torch.zeros_like(is_positive_BM) if blocked_document_BM is None else blocked_document_BM
    )
    cosines, blocked = [query_BD @ document_MD.T], [blocked_BM]
    if terms.query_query:
        itself = torch.eye(len(query_BD), dtype=torch.bool, device=query_BD.device)
        cosines.append(query_BD @ query_BD.T)
        blocked.append(itself if blocked_query_BB is None else itself | blocked_query_BB)
    if terms.document_document:
        cosines.append(document_MD[positive_B] @ document_MD.T)
        blocked.append(blocked_BM | is_positive_BM)
    if mixed is not None:
        mixed_KD, owner_K = mixed
        cosines.append(query_BD @ mixed_KD.T)
        blocked.append(
            owner_K[None, :] != torch.arange(len(query_BD), device=query_BD.device)[:, None]
        )
    cosine, left_out = torch.cat(cosines, dim=1), torch.cat(blocked, dim=1)
    if terms.false_negative_margin is not None:
        ceiling_B1 = (
            cosines[0].detach().gather(1, positive_B[:, None]) + terms.false_negative_margin
        )
        left_out = left_out | (cosine.detach() > ceiling_B1)
        left_out[:, : len(document_MD)] &= ~is_positive_BM
    logits = cosine / temperature
    if terms.hardness and own_negative_BM is not None:
        weight_BM = terms.hardness * cosines[0].detach() * own_negative_BM
        logits = torch.cat(
            [logits[:, : len(document_MD)] + weight_BM, logits[:, len(document_MD) :]], dim=1
        )
    loss_B = torch.nn.functional.cross_entropy(
        logits.masked_fill(left_out, -torch.inf), positive_B, reduction="none"
    )
    return (
        ((1.0 - torch.exp(-loss_B)) ** terms.focal * loss_B).mean()
        if terms.focal
        else loss_B.mean()
    )


def orthogonal_regularisation(vector_ND: Tensor) -> Tensor:
    """How far texts that were drawn at random are from orthogonal: the mean of their squared cosines.

    Added to a loss it spreads vectors over the sphere, which also makes them bear quantisation.

    Returns: Scalar from 0 to 1; 0 for a single text.
    Source: global orthogonal regularisation, arXiv:1708.06320; EmbeddingGemma, arXiv:2509.20354.
    """
    count = len(vector_ND)
    if count < 2:
        return vector_ND.new_zeros(())
    cosine_NN = vector_ND @ vector_ND.T
    return (cosine_NN.square().sum() - cosine_NN.diagonal().square().sum()) / (count * (count - 1))


def mixed_negatives(
    document_MD: Tensor, own_negative_BM: Tensor, *, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Negatives that lie between two hard negatives of a query, on the sphere.

    Args:
        own_negative_BM: True where a document is a hard negative of the query.
        count: Of each query that has at least two hard negatives.
        seed: Of the draw of pairs and weights.

    Returns: Vectors [K, D] and the query of each [K], int64.
    Source: MoCHi (arXiv:2010.01028); KaLM-Embedding-V2 (arXiv:2506.20923) mixes online too.
    """
    generator = np.random.default_rng(seed)
    first, second, weights, owners = [], [], [], []
    for query, own in enumerate(own_negative_BM.cpu().numpy()):
        places = np.flatnonzero(own)
        for _ in range(count if len(places) > 1 else 0):
            one, other = generator.choice(places, 2, replace=False)
            first.append(one)
            second.append(other)
            weights.append(generator.random())
            owners.append(query)
    device = document_MD.device
    weight_K1 = torch.tensor(weights, dtype=document_MD.dtype, device=device)[:, None]
    mixed_KD = weight_K1 * document_MD[first] + (1 - weight_K1) * document_MD[second]
    return torch.nn.functional.normalize(mixed_KD, dim=1), torch.tensor(
        owners, dtype=torch.int64, device=device
    )


def teacher_scores(
    query_BD: Tensor,
    document_MD: Tensor,
    teacher_BM: Tensor,
    blocked_BM: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Kullback-Leibler divergence of the student's distribution over the documents from the teacher's.

        L = 1/B * sum_i sum_m q_im log(q_im / p_im),   p_i = softmax(s_i / t), q_i = softmax(teacher_i / t)

    Args:
        teacher_BM: The teacher's cosines.
        blocked_BM: True where a document is left out of both distributions.

    Source: knowledge distillation (arXiv:1503.02531) over the scores of a batch, as in KaLM-Embedding-V2.5.
    """
    student = (
        (query_BD @ document_MD.T / temperature)
        .masked_fill(blocked_BM, -torch.inf)
        .log_softmax(dim=1)
    )
    teacher = (
        (teacher_BM.to(student.dtype) / temperature)
        .masked_fill(blocked_BM, -torch.inf)
        .log_softmax(dim=1)
    )
    terms = (teacher.exp() * (teacher - student)).masked_fill(blocked_BM, 0.0)
    return terms.sum(1).mean()


def teacher_vectors(vector_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean of ``1 - cos(student, teacher)`` over texts; widths are equal (as in Jasper, arXiv:2412.19048).

    Raises: DataError: The widths differ.
    """
    if vector_ND.shape != teacher_ND.shape:
        raise DataError(
            f"the teacher's vectors have {teacher_ND.shape[1]} dimensions and the model's {vector_ND.shape[1]}: its "
            'vectors cannot be learned. Set training.distillation.kind = "scores", or take another teacher.'
        )
    return (1.0 - (vector_ND * teacher_ND.to(vector_ND.dtype)).sum(1)).mean()


def cosent(
    a_PD: Tensor,
    b_PD: Tensor,
    score_P: Tensor,
    *,
    temperature: float,
    scale_P: Tensor | None = None,
) -> Tensor:
    """CoSENT: a pair with a higher score should have a higher cosine, over all ordered pairs of pairs.

        L = log( 1 + sum_{y_k > y_l} e^((c_l - c_k) / t) ),   c_k = a_k . b_k

    Args:
        score_P: Ordinal; only the order counts. Equal scores are not compared.
        temperature: Divides cosines.
        scale_P: Pairs of different scales (datasets) are not compared; default: all are of one.

    Returns: Scalar loss in nats; 0 when all scores are equal.
    Source: equation 2; first described by Su Jianlin as CoSENT.
    """
    cosine_P = (a_PD * b_PD).sum(1) / temperature
    difference_PP = cosine_P[None, :] - cosine_P[:, None]  # [k, l] = (c_l - c_k) / t
    ordered = score_P[:, None] > score_P[None, :]
    if scale_P is not None:
        ordered &= scale_P[:, None] == scale_P[None, :]
    terms = torch.cat([difference_PP.new_zeros(1), difference_PP[ordered]])
    return torch.logsumexp(terms, dim=0)


def classification_info_nce(
    text_BD: Tensor,
    positive_BD: Tensor,
    negative_MD: Tensor,
    label_B: Tensor,
    negative_label_M: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """InfoNCE over texts and labels in which a text of the same class is never a negative.

        Z_i = e^(t_i.p_i / t) + sum_m MASK(i, m) e^(t_i.n_m / t) + sum_{j != i} MASK(i, j) e^(t_i.t_j / t)
        L   = -1/B * sum_i log( e^(t_i.p_i / t) / Z_i ),   MASK = 0 where the labels are equal

    The sum over m takes in the negatives of the whole batch: a text's own ones have another label by
    construction. Other texts' positives do not appear, as printed in the paper.

    Args:
        positive_BD: Another text of the same class, for each text.
        negative_MD: All negatives of the batch.
        label_B: Class of each text, int64.
        negative_label_M: Class of each negative, int64.

    Returns: Scalar mean loss in nats.
    Source: equation 3.
    """
    positive_B1 = (text_BD * positive_BD).sum(1, keepdim=True)
    negative_BM = (text_BD @ negative_MD.T).masked_fill(
        label_B[:, None] == negative_label_M[None, :], -torch.inf
    )
    other_BB = (text_BD @ text_BD.T).masked_fill(label_B[:, None] == label_B[None, :], -torch.inf)
    logits = torch.cat([positive_B1, negative_BM, other_BB], dim=1) / temperature
    return torch.nn.functional.cross_entropy(
        logits, torch.zeros(len(text_BD), dtype=torch.int64, device=logits.device)
    )
