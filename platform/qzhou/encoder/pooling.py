"""Token vectors to one vector a text.

Shape letters in this file: N texts, T tokens, L tokens of all texts, D embedding width.
"""

import torch
from torch import Tensor

from qzhou.encoder.model_files import Pooling


def pool_packed(hidden_LD: Tensor, ends: Tensor, pooling: Pooling) -> Tensor:
    """One vector per text, in float32, of texts that lie end to end.

    Args:
        hidden_LD: Last hidden state of all tokens, any float type.
        ends: Where the texts end, beginning with 0 [N + 1].
        pooling: As for :func:`pool`.
    """
    hidden_LD = hidden_LD.float()
    if pooling in {"last", "cls"}:
        return hidden_LD[ends[1:].long() - 1 if pooling == "last" else ends[:-1].long()]
    length_N = ends.diff().long()
    text_L = torch.repeat_interleave(torch.arange(len(length_N), device=hidden_LD.device), length_N)
    empty_ND = torch.zeros(len(length_N), hidden_LD.shape[1], device=hidden_LD.device)
    if pooling == "max":
        index_LD = text_L[:, None].expand_as(hidden_LD)
        return empty_ND.scatter_reduce(0, index_LD, hidden_LD, "amax", include_self=False)
    if pooling == "mean":
        return empty_ND.index_add(0, text_L, hidden_LD) / length_N[:, None]
    weight_L = torch.arange(len(text_L), device=hidden_LD.device) - ends[:-1].long()[text_L] + 1
    total_N = length_N * (length_N + 1) / 2
    return empty_ND.index_add(0, text_L, hidden_LD * weight_L[:, None]) / total_N[:, None]


def pool(hidden_NTD: Tensor, mask_NT: Tensor, pooling: Pooling) -> Tensor:
    """One vector per text, in float32, for left or right padding alike.

    Args:
        hidden_NTD: Last hidden state, any float type.
        mask_NT: 1 where there is a token, 0 where there is padding. Each text has at least one token.
        pooling: ``mean`` over all tokens, prompt included (as QZhou-Embedding does); ``weightedmean``, where the n-th
            token weighs n (SGPT, arXiv:2202.08904); ``max`` of each dimension; ``last`` token; or ``cls``, the first.
    """
    hidden_NTD = hidden_NTD.float()
    rows_N = torch.arange(len(hidden_NTD), device=hidden_NTD.device)
    if pooling == "last":
        position_T = torch.arange(mask_NT.shape[1], device=mask_NT.device)
        return hidden_NTD[rows_N, (mask_NT * position_T).argmax(1)]
    if pooling == "cls":
        return hidden_NTD[rows_N, mask_NT.argmax(1)]
    if pooling == "max":
        return hidden_NTD.masked_fill(mask_NT[:, :, None] == 0, -torch.inf).amax(1)
    weight_NT = mask_NT.to(hidden_NTD.dtype)
    if pooling == "weightedmean":
        weight_NT = weight_NT * weight_NT.cumsum(1)
    return (hidden_NTD * weight_NT[:, :, None]).sum(1) / weight_NT.sum(1)[:, None]
