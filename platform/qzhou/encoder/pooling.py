"""Token vectors to one unit vector a text.

Shape letters in this file: N texts, T tokens, L tokens of all texts, D embedding width.
"""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "last", "cls"]


def pool_packed(hidden_LD: Tensor, ends: Tensor, pooling: Pooling) -> Tensor:
    """One unit vector per text, in float32, of texts that lie end to end.

    Args:
        hidden_LD: Last hidden state of all tokens, any float type.
        ends: Where the texts end, beginning with 0 [N + 1].
        pooling: As for :func:`pool`.
    """
    hidden_LD = hidden_LD.float()
    if pooling == "mean":
        length_N = ends.diff().long()
        text_L = torch.repeat_interleave(torch.arange(len(length_N), device=hidden_LD.device), length_N)
        sum_ND = torch.zeros(len(length_N), hidden_LD.shape[1], device=hidden_LD.device)
        vector_ND = sum_ND.index_add(0, text_L, hidden_LD) / length_N[:, None]
    else:
        vector_ND = hidden_LD[ends[1:].long() - 1 if pooling == "last" else ends[:-1].long()]
    return torch.nn.functional.normalize(vector_ND, dim=-1)


def pool(hidden_NTD: Tensor, mask_NT: Tensor, pooling: Pooling) -> Tensor:
    """One unit vector per text, in float32, for left or right padding alike.

    Args:
        hidden_NTD: Last hidden state, any float type.
        mask_NT: 1 where there is a token, 0 where there is padding. Each text has at least one token.
        pooling: ``mean`` over all tokens, prompt included (as QZhou-Embedding does); ``last`` token; or
            ``cls``, the first token.
    """
    hidden_NTD = hidden_NTD.float()
    rows_N = torch.arange(len(hidden_NTD), device=hidden_NTD.device)
    if pooling == "mean":
        weight_NT1 = mask_NT.unsqueeze(-1).to(hidden_NTD.dtype)
        vector_ND = (hidden_NTD * weight_NT1).sum(1) / weight_NT1.sum(1)
    elif pooling == "last":
        position_T = torch.arange(mask_NT.shape[1], device=mask_NT.device)
        vector_ND = hidden_NTD[rows_N, (mask_NT * position_T).argmax(1)]
    else:
        vector_ND = hidden_NTD[rows_N, mask_NT.argmax(1)]
    return torch.nn.functional.normalize(vector_ND, dim=-1)
