"""Two kinds of attention that transformers lacks: for packed texts, and in float32 on CPUs.

Packed texts lie end to end in one row. Position ids alone do not separate them in a
bidirectional decoder: transformers tells packed sequences apart only under a causal mask,
so every text would see its neighbours. Here attention gets the ends of the texts. On a GPU
it is torch's ``varlen_attn``, FlashAttention's kernel for texts of different lengths
(arXiv:2307.08691). Elsewhere each text is attended to by itself, which is slow and exact:
the reference for tests.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED, IN_FLOAT32 = "qzhou_packed", "qzhou_float32"
FLASH_CAPABILITY = (8, 0)  # of a GPU


@dataclass(frozen=True, slots=True)
class Padded:
    """Some texts in rows of T tokens.

    Attributes:
        input_ids: [N, T].
        attention_mask: 1 where there is a token, 0 where there is padding [N, T].
        attention_bias: Added to attention scores in place of the mask [N, 1, T, T] (:func:`soft_causal_mask`).
    """

    input_ids: Tensor
    attention_mask: Tensor
    attention_bias: Tensor | None = None

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]], device: torch.device, *, pad_token: int) -> Padded:
        """Texts padded on the right, each of one token or more."""
        longest = max(map(len, ids))
        rows = torch.tensor([[*one, *[pad_token] * (longest - len(one))] for one in ids])
        lengths = torch.tensor([[len(one)] for one in ids])
        return cls(rows.to(device), (torch.arange(longest)[None] < lengths).long().to(device))


def soft_causal_mask(attention_mask: Tensor, later_weight: float, dtype: torch.dtype) -> Tensor:
    """The bias [N, 1, T, T] of a soft causal mask, which is added to attention scores.

    Attention to later tokens is multiplied by ``later_weight`` before it is normalised.
    Training that raises the weight step by step turns a decoder gently into an encoder.

    Args:
        attention_mask: 1 where there is a token [N, T].
        later_weight: From 0 (causal attention) to 1 (bidirectional).
        dtype: Of the bias.

    Source: the soft mask of Conan-embedding-v2 (arXiv:2509.12892), with a linear rise.
    """
    longest, lowest = attention_mask.shape[1], torch.finfo(dtype).min
    device = attention_mask.device
    # e^(score + log w) = w * e^score
    later_bias = max(lowest, math.log(later_weight)) if later_weight > 0 else lowest
    is_later = torch.ones(longest, longest, dtype=torch.bool, device=device).triu(1)
    bias = torch.zeros(longest, longest, dtype=dtype, device=device).masked_fill(is_later, later_bias)
    bias = bias[None, None].expand(len(attention_mask), 1, -1, -1)
    return bias.masked_fill(attention_mask[:, None, None, :] == 0, lowest)


@contextlib.contextmanager
def using_attention(backbone: Any, name: str) -> Iterator[None]:
    """Compute with another attention inside the block."""
    # set_attn_implementation, which is public, walks through all modules: too slow for each forward pass
    before = backbone.config._attn_implementation  # noqa: SLF001
    backbone.config._attn_implementation = name  # noqa: SLF001
    try:
        yield
    finally:
        backbone.config._attn_implementation = before  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Packed:
    """Some texts as one row of L tokens.

    Attributes:
        input_ids: [1, L].
        position_ids: [1, L], from 0 in each text.
        ends: [N + 1], int32, beginning with 0.
        longest: Tokens of the longest text.
    """

    input_ids: Tensor
    position_ids: Tensor
    ends: Tensor
    longest: int

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]], device: torch.device) -> Packed:
        """Texts end to end, each of one token or more."""
        lengths = [len(one) for one in ids]
        return cls(
            torch.tensor([[token for one in ids for token in one]], device=device),
            torch.cat([torch.arange(length) for length in lengths])[None].to(device),
            torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32),
            max(lengths),
        )


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing is faster: FlashAttention computes on this device (Ampere or newer) in this type."""
    fits = device.type == "cuda" and dtype in {torch.float16, torch.bfloat16}
    return fits and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention inside each text [1, L, heads, width]; registered for transformers to call.

    Args:
        module: Not used.
        query: [1, heads, L, width].
        key: The same, perhaps of fewer heads.
        value: As ``key``.
        attention_mask: Not used: the ends of the texts replace it.
        settings: ``ends`` and ``longest`` of :class:`Packed`, ``is_causal``, ``scaling``.

    Raises:
        TypeError: The model attends in a way that is not computed here, by a sliding window for instance.
    """
    del module, attention_mask
    for name in ("sliding_window", "softcap", "s_aux"):
        if settings.get(name) is not None:
            raise TypeError(f"attention with {name} is not computed for packed texts")
    ends, longest, is_causal = settings["ends"], settings["longest"], settings["is_causal"]
    scaling, grouped = settings.get("scaling"), query.shape[1] != key.shape[1]
    if query.is_cuda:
        q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))
        window = (-1, 0 if is_causal else -1)  # of tokens before and after; -1: all
        found = varlen_attn(
            q, k, v, ends, ends, longest, longest, scale=scaling, window_size=window, enable_gqa=grouped
        )
        assert isinstance(found, Tensor), "the logarithms of sums were not asked for"
        return found[None], None
    parts = []
    for start, end in itertools.pairwise(ends.tolist()):
        q, k, v = (one[:, :, start:end].float() for one in (query, key, value))
        parts.append(scaled_dot_product_attention(q, k, v, scale=scaling, is_causal=is_causal, enable_gqa=grouped))
    return torch.cat(parts, dim=2).transpose(1, 2).to(query.dtype), None


def float32_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The output of ``sdpa``, computed in float32; registered for transformers to call.

    On CPUs its kernels in 16 bits round differently with and without a mask, so that a text
    alone and the same text beside a longer one differ by 1e-4 in cosine; in float32 by
    2e-5, at the same speed.
    """
    found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **settings)
    return found.to(query.dtype), None


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(IN_FLOAT32, float32_attention)
AttentionMaskInterface.register(IN_FLOAT32, sdpa_mask)
