"""The three losses of QZhou-Embedding (arXiv:2508.21632) as pure functions, and terms that other models add.

Shape letters in this file: B queries or texts, M documents (positives and negatives), P
pairs, N texts, D embedding width. All vectors are unit length, so a dot product is a
cosine. Each function sees the whole global batch; who computed which vector does not matter
here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, pad

from qzhou.errors import DataError


@dataclass(frozen=True, slots=True)
class InfoNCEOptions:
    """Hyperparameters of InfoNCE; the defaults are QZhou-Embedding's.

    Attributes:
        temperature: Divides cosines.
        query_query: Other queries stand in the denominator.
        document_document: So do the other documents, compared with the positive (Qwen3-Embedding, arXiv:2506.05176).
        false_negative_margin: A cosine that exceeds the positive's by more is left out: it may belong to an answer
            that nobody labelled (Qwen3-Embedding: 0.1). None leaves nothing out.
        hardness: The query's own hard negatives weigh ``e^(hardness * s)``, s their cosine
            without gradient (EmbeddingGemma, arXiv:2509.20354: 5).
        focal: A query weighs ``(1 - p)^focal``, p the probability of its positive
            (arXiv:1708.02002).
    """

    temperature: float = 0.02
    query_query: bool = True
    document_document: bool = False
    false_negative_margin: float | None = None
    hardness: float = 0.0
    focal: float = 0.0


@dataclass(frozen=True, slots=True)
class InfoNCEMasks:
    """What is known of the documents and queries of a batch; by default nothing.

    Attributes:
        false_negative_BM: True where a document is the same text as another answer to the query, and is therefore
            left out of its denominator; never at the positive.
        same_query_BB: True where two queries are the same text.
        hard_negative_BM: True where a document is a hard negative of the query; needed for
            hardness.
    """

    false_negative_BM: Tensor | None = None
    same_query_BB: Tensor | None = None
    hard_negative_BM: Tensor | None = None


PAPER_OPTIONS, NO_MASKS = InfoNCEOptions(), InfoNCEMasks()


def info_nce(
    query_BD: Tensor,
    document_MD: Tensor,
    positive_B: Tensor,
    *,
    masks: InfoNCEMasks = NO_MASKS,
    mixed: tuple[Tensor, Tensor] | None = None,
    options: InfoNCEOptions = PAPER_OPTIONS,
) -> Tensor:
    """InfoNCE whose negatives are every other document and every other query of the batch: the mean loss in nats.

        L_i = -log( e^(s_ip / t) / (sum_m w_im e^(s_im / t) + sum_{j != i} e^(u_ij / t) + sum_{m != p} e^(v_im / t)) )
        L   = 1/B * sum_i (1 - e^(-L_i))^focal * L_i

    with s_im = query_i . document_m, u_ij = query_i . query_j, v_im = document_p .
    document_m, p = positive_B[i], t = temperature, w_im = e^(hardness * s_im) for the
    query's own hard negatives and 1 for all others. The sum over m takes in the query's own
    negatives and all documents of the other queries. The third sum and the weights are off
    by default; a summand whose cosine is above s_ip + false_negative_margin is left out.

    Args:
        query_BD: Query embeddings.
        document_MD: Positives and negatives in any order.
        positive_B: Row of ``document_MD`` that answers each query, int64.
        masks: Which negatives are left out, and which are hard negatives.
        mixed: More negatives [K, D] and the query [K] of each (:func:`mixed_negatives`).
        options: Temperature, and the optional terms.

    Raises:
        DataError: Widths differ, or there is not one positive for each query.

    Source: equation 1.
    """
    _check_shapes(query_BD, document_MD, positive_B)
    row_B = torch.arange(len(query_BD), device=query_BD.device)
    score_BM = query_BD @ document_MD.T
    is_positive_BM = torch.zeros_like(score_BM, dtype=torch.bool)
    is_positive_BM[row_B, positive_B] = True
    excluded_BM = masks.false_negative_BM
    if excluded_BM is None:
        excluded_BM = torch.zeros_like(is_positive_BM)
    # one block of columns for each sum of the denominator
    scores, excluded = [score_BM], [excluded_BM]
    if options.query_query:
        itself = torch.eye(len(query_BD), dtype=torch.bool, device=query_BD.device)
        scores.append(query_BD @ query_BD.T)
        excluded.append(itself if masks.same_query_BB is None else itself | masks.same_query_BB)
    if options.document_document:
        scores.append(document_MD[positive_B] @ document_MD.T)
        excluded.append(excluded_BM | is_positive_BM)
    if mixed is not None:
        mixed_KD, owner_K = mixed
        scores.append(query_BD @ mixed_KD.T)
        excluded.append(owner_K[None, :] != row_B[:, None])
    score, left_out = torch.cat(scores, dim=1), torch.cat(excluded, dim=1)
    if options.false_negative_margin is not None:
        # cosines are compared without gradient: the mask is read, not trained
        positive_B1 = score_BM.detach().gather(1, positive_B[:, None])
        left_out = left_out | (score.detach() > positive_B1 + options.false_negative_margin)
        left_out[:, : len(document_MD)] &= ~is_positive_BM
    logits = score / options.temperature
    if options.hardness and masks.hard_negative_BM is not None:
        weight_BM = options.hardness * score_BM.detach() * masks.hard_negative_BM
        logits = logits + pad(weight_BM, (0, logits.shape[1] - len(document_MD)))
    logits = logits.masked_fill(left_out, -torch.inf)
    loss_B = cross_entropy(logits, positive_B, reduction="none")
    if options.focal:
        loss_B = (1.0 - torch.exp(-loss_B)) ** options.focal * loss_B
    return loss_B.mean()


def _check_shapes(query_BD: Tensor, document_MD: Tensor, positive_B: Tensor) -> None:
    if query_BD.shape[1] != document_MD.shape[1] or len(positive_B) != len(query_BD):
        raise DataError(
            f"queries {tuple(query_BD.shape)}, documents {tuple(document_MD.shape)} and positives "
            f"{tuple(positive_B.shape)} do not fit: widths must be equal, with one positive per query"
        )


def orthogonal_regularisation(vector_ND: Tensor) -> Tensor:
    """The mean squared cosine of different texts, from 0 to 1; 0 for a single text.

    Added to a loss it spreads the vectors over the sphere, which also makes them robust to
    quantisation.

    Source: global orthogonal regularisation, arXiv:1708.06320; EmbeddingGemma,
        arXiv:2509.20354.
    """
    count = len(vector_ND)
    if count < 2:
        return vector_ND.new_zeros(())
    cosine_NN = vector_ND @ vector_ND.T
    return (cosine_NN.square().sum() - cosine_NN.diagonal().square().sum()) / (count * (count - 1))


def mixed_negatives(
    document_MD: Tensor, hard_negative_BM: Tensor, *, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Vectors [K, D] on the sphere between two hard negatives of a query, and the query of each [K], int64.

    Args:
        document_MD: Positives and negatives.
        hard_negative_BM: True where a document is a hard negative of the query.
        count: Vectors for each query that has at least two hard negatives.
        seed: Of the draw of pairs and weights.

    Source: MoCHi (arXiv:2010.01028); KaLM-Embedding-V2 (arXiv:2506.20923) mixes online too.
    """
    generator = np.random.default_rng(seed)
    first, second, weights, owners = [], [], [], []
    for query, own in enumerate(hard_negative_BM.cpu().numpy()):
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
    owner_K = torch.tensor(owners, dtype=torch.int64, device=device)
    return normalize(mixed_KD, dim=1), owner_K


def distillation_kl_loss(
    query_BD: Tensor,
    document_MD: Tensor,
    teacher_BM: Tensor,
    excluded_BM: Tensor,
    *,
    temperature: float,
    teacher_temperature: float | None = None,
) -> Tensor:
    """KL divergence of the student's distribution over the documents from the teacher's.

        L = 1/B * sum_i sum_m q_im log(q_im / p_im),   p_i = softmax(s_i / t), q_i = softmax(teacher_i / u)

    Args:
        query_BD: The student's queries.
        document_MD: The student's documents.
        teacher_BM: The teacher's cosines, or other scores.
        excluded_BM: True where a document is left out of both distributions; not for all of a row.
        temperature: t, divides the student's cosines.
        teacher_temperature: u, divides the teacher's scores; default: t.

    Source: knowledge distillation (arXiv:1503.02531) over the scores of a batch, as in
        KaLM-Embedding-V2.5.
    """
    student_BM = query_BD @ document_MD.T / temperature
    student_BM = student_BM.masked_fill(excluded_BM, -torch.inf).log_softmax(dim=1)
    teacher_BM = teacher_BM.to(student_BM.dtype) / (teacher_temperature or temperature)
    teacher_BM = teacher_BM.masked_fill(excluded_BM, -torch.inf).log_softmax(dim=1)
    terms = teacher_BM.exp() * (teacher_BM - student_BM)
    return terms.masked_fill(excluded_BM, 0.0).sum(1).mean()


def listwise_distillation_loss(
    query_BD: Tensor,
    document_MD: Tensor,
    score_M: Tensor,
    listed_BM: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """KL divergence over each query's own list, its positive and its scored negatives, from the teacher's scores.

        L = 1/B * sum_{i with a list} sum_{m in list i} q_im log(q_im / p_im)
        p_i = softmax over list i of s_im / t,   q_i = softmax over list i of teacher_m / u

    Queries without a list add nothing, and a query counts alike whoever stands beside it.

    Args:
        query_BD: The student's queries.
        document_MD: The student's documents.
        score_M: The teacher's score of each document for the query whose list it is in; elsewhere it is not read.
        listed_BM: True where a document is in a query's list.
        temperature: t, divides the student's cosines.
        teacher_temperature: u, divides the teacher's scores.

    Source: listwise distillation from a cross-encoder (CADET, arXiv:2505.19274), there over
        the ranked candidates of a query.
    """
    rows = listed_BM.any(1)
    if not rows.any():
        return query_BD.new_zeros(())
    score_BM = score_M.expand(int(rows.sum()), -1)
    loss = distillation_kl_loss(
        query_BD[rows],
        document_MD,
        score_BM,
        ~listed_BM[rows],
        temperature=temperature,
        teacher_temperature=teacher_temperature,
    )
    return loss * (len(score_BM) / len(query_BD))


def distillation_cosine_loss(vector_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean of ``1 - cos(student, teacher)`` over texts; widths are equal (as in Jasper, arXiv:2412.19048).

    Raises:
        DataError: The widths differ.
    """
    if vector_ND.shape != teacher_ND.shape:
        raise DataError(
            f"the teacher's vectors have {teacher_ND.shape[1]} dimensions and the model's {vector_ND.shape[1]}: its "
            'vectors cannot be learned. Set training.distillation.kind = "scores", or take another teacher.'
        )
    return (1.0 - (vector_ND * teacher_ND.to(vector_ND.dtype)).sum(1)).mean()


def cosent(
    a_PD: Tensor, b_PD: Tensor, score_P: Tensor, *, temperature: float, scale_P: Tensor | None = None
) -> Tensor:
    """CoSENT in nats: a pair with a higher score should have a higher cosine, over all ordered pairs of pairs.

        L = log( 1 + sum_{y_k > y_l} e^((c_l - c_k) / t) ),   c_k = a_k . b_k

    The loss is 0 when all scores are equal.

    Args:
        a_PD: First text of each pair.
        b_PD: Second text of each pair.
        score_P: Ordinal; only the order counts. Equal scores are not compared.
        temperature: Divides cosines.
        scale_P: Number of the scale (dataset) of each score; scores of different scales are not compared.
            Default: all are of one scale.

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
    """InfoNCE over texts and labels in which a text of the same class is never a negative: the mean loss in nats.

        Z_i = e^(t_i.p_i / t) + sum_m MASK(i, m) e^(t_i.n_m / t) + sum_{j != i} MASK(i, j) e^(t_i.t_j / t)
        L   = -1/B * sum_i log( e^(t_i.p_i / t) / Z_i ),   MASK = 0 where labels are equal

    The sum over m takes in the negatives of the whole batch: a text's own ones have another
    label by construction. Other texts' positives do not appear, as printed in the paper.

    Args:
        text_BD: The texts.
        positive_BD: Another text of the same class, for each text.
        negative_MD: All negatives of the batch.
        label_B: Class of each text, int64.
        negative_label_M: Class of each negative, int64.
        temperature: Divides cosines.

    Source: equation 3.
    """
    positive_B1 = (text_BD * positive_BD).sum(1, keepdim=True)
    same_BM = label_B[:, None] == negative_label_M[None, :]
    same_BB = label_B[:, None] == label_B[None, :]
    negative_BM = (text_BD @ negative_MD.T).masked_fill(same_BM, -torch.inf)
    other_BB = (text_BD @ text_BD.T).masked_fill(same_BB, -torch.inf)
    logits = torch.cat([positive_B1, negative_BM, other_BB], dim=1) / temperature
    target_B = torch.zeros(len(text_BD), dtype=torch.int64, device=logits.device)
    return cross_entropy(logits, target_B)
