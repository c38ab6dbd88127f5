"""The three objectives of QZhou-Embedding (arXiv:2508.21632), as pure functions.

Shape letters in this file: B queries or texts, M documents (positives and negatives), P pairs,
D embedding width. All vectors are unit length, so a dot product is a cosine. Each function sees the
whole global batch; who computed which vector does not matter here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qzhou.errors import DataError


def info_nce(
    query_BD: Tensor,
    document_MD: Tensor,
    positive_B: Tensor,
    *,
    temperature: float,
    blocked_document_BM: Tensor | None = None,
    blocked_query_BB: Tensor | None = None,
    query_query: bool = True,
) -> Tensor:
    """InfoNCE whose negatives are every other document and every other query of the batch.

        L = -1/B * sum_i log( e^(s_ip / t) / (sum_m e^(s_im / t) + sum_{j != i} e^(u_ij / t)) )

    with s_im = query_i . document_m, u_ij = query_i . query_j, p = positive_B[i], t = temperature.
    The sum over m takes in the query's own negatives and all documents of the other queries.

    Args:
        positive_B: Row of ``document_MD`` that answers each query, int64.
        temperature: Divides cosines; 0.02 in the paper.
        blocked_document_BM: True where a document is left out of a query's denominator because it is
            the same text as one of its positives; never at ``positive_B``.
        blocked_query_BB: True where two queries are the same text.
        query_query: Whether the second sum is there.

    Returns: Scalar mean loss in nats.
    Raises: DataError: widths differ, or there is not one positive per query.
    Source: equation 1.
    """
    if query_BD.shape[1] != document_MD.shape[1] or len(positive_B) != len(query_BD):
        raise DataError(
            f"queries {tuple(query_BD.shape)}, documents {tuple(document_MD.shape)} and positives "
            f"{tuple(positive_B.shape)} do not fit: widths must be equal, with one positive per query"
        )
    logits = query_BD @ document_MD.T / temperature
    if blocked_document_BM is not None:
        logits = logits.masked_fill(blocked_document_BM, -torch.inf)
    if query_query:
        itself = torch.eye(len(query_BD), dtype=torch.bool, device=query_BD.device)
        blocked = itself if blocked_query_BB is None else itself | blocked_query_BB
        query_logits = (query_BD @ query_BD.T / temperature).masked_fill(blocked, -torch.inf)
        logits = torch.cat([logits, query_logits], dim=1)
    return torch.nn.functional.cross_entropy(logits, positive_B)


def cosent(a_PD: Tensor, b_PD: Tensor, score_P: Tensor, *, temperature: float) -> Tensor:
    """CoSENT: a pair with a higher score should have a higher cosine, over all ordered pairs of pairs.

        L = log( 1 + sum_{y_k > y_l} e^((c_l - c_k) / t) ),   c_k = a_k . b_k

    Args:
        score_P: Ordinal; only the order counts. Equal scores are not compared.
        temperature: Divides cosines.

    Returns: Scalar loss in nats; 0 when all scores are equal.
    Source: equation 2; first described by Su Jianlin as CoSENT.
    """
    cosine_P = (a_PD * b_PD).sum(1) / temperature
    difference_PP = cosine_P[None, :] - cosine_P[:, None]  # [k, l] = (c_l - c_k) / t
    ordered = score_P[:, None] > score_P[None, :]
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
    negative_BM = (text_BD @ negative_MD.T).masked_fill(label_B[:, None] == negative_label_M[None, :], -torch.inf)
    other_BB = (text_BD @ text_BD.T).masked_fill(label_B[:, None] == label_B[None, :], -torch.inf)
    logits = torch.cat([positive_B1, negative_BM, other_BB], dim=1) / temperature
    return torch.nn.functional.cross_entropy(logits, torch.zeros(len(text_BD), dtype=torch.int64, device=logits.device))
