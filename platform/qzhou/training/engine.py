"""What the training loop needs of engines, and what each does with a model beforehand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qzhou.config.training import TrainingSection
from qzhou.encoder import EmbeddingModel
from qzhou.encoder.attention import PACKED, Packed, Padded, can_pack, soft_causal_mask
from qzhou.encoder.encoder import packs_exactly
from qzhou.training.sharding import Ids

# Defaults by device: a batch of the quickstart fits into memory, and so does a batch of a 7B model with gradient
# checkpointing on a GPU of 80 GB.
MICRO_BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
ACTIVATION_TOKENS = {"cpu": 16_384, "cuda": 32_768}


class Engine(Protocol):
    """Model, optimizer and the ranks that share them.

    Attributes:
        rank: Of this process.
        world: Number of ranks.
        packed: Whether texts lie end to end instead of in padded rows.
        micro_batch_tokens: Tokens of one forward pass, padding included.
        activation_tokens: Tokens, padding included, whose activations fit into the memory of a rank.
    """

    rank: int
    world: int
    packed: bool
    micro_batch_tokens: int
    activation_tokens: int

    def forward(self, ids: Sequence[Ids], soft_mask_weight: float | None = None) -> Tensor:
        """Vectors [S, D] of S texts' token ids; with gradient where torch records one.

        With a weight, attention has a soft mask
        (:func:`qzhou.encoder.attention.soft_causal_mask`).
        """

    def backward(self, value: Tensor, *, last: bool) -> None:
        """One backward pass of a step; gradients are averaged over ranks after the last."""

    def update(self, learning_rate: float) -> float:
        """The gradient norm before clipping, after one optimizer step."""

    def save(self, folder: Path, step: int) -> None:
        """Write this rank's part of a checkpoint after ``step`` finished steps."""

    def load(self, folder: Path) -> int:
        """The step of a checkpoint, whose state the engine takes over."""

    def full_state(self) -> dict[str, Tensor]:
        """All weights in float32 on the CPU, complete on rank 0; all ranks must call it."""


class Collator:
    """Token ids of texts to the tensors that a model takes: packed where that is faster and exact, else padded."""

    def __init__(self, model: EmbeddingModel, tokenizer: Any, *, packed: bool | None = None) -> None:
        """Choose packing or padding for good: gradient checkpointing computes attention in the backward pass too.

        By default texts are packed where FlashAttention computes in the model's dtype, and
        the vectors are those of padded texts.
        """
        weight = next(model.parameters())
        self._device, self._dtype, self._pad = weight.device, weight.dtype, tokenizer.pad_token_id
        if packed is None:
            packed = can_pack(weight.device, weight.dtype) and packs_exactly(model, tokenizer)
        self.packed = packed
        if packed:
            model.backbone.set_attn_implementation(PACKED)

    def __call__(self, ids: Sequence[Ids], soft_mask_weight: float | None = None) -> Padded | Packed:
        """The texts as tensors on the model's device."""
        if self.packed:
            assert soft_mask_weight is None, "packed attention takes no mask"
            return Packed.of(ids, self._device)
        padded = Padded.of(ids, self._device, pad_token=self._pad)
        if soft_mask_weight is None:
            return padded
        bias = soft_causal_mask(padded.attention_mask, soft_mask_weight, self._dtype)
        return Padded(padded.input_ids, padded.attention_mask, bias)


def prepare_model(
    model: EmbeddingModel, tokenizer: Any, training: TrainingSection, *, packed: bool | None = None
) -> Collator:
    """The collator of a model, which is put into training mode without dropout, in place.

    Texts are packed where settings and device allow it, unless ``packed`` decides.
    """
    disable_dropout(model)
    if training.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    if packed is None and (training.stage1.soft_mask_steps or training.stage2.soft_mask_steps):
        packed = False  # a mask needs padded texts
    return Collator(model, tokenizer, packed=packed)


def token_budgets(training: TrainingSection, device: torch.device) -> tuple[int, int]:
    """Tokens of a forward pass, and those whose activations a rank holds, padding included."""
    chunk = training.micro_batch_tokens or MICRO_BATCH_TOKENS[device.type]
    return chunk, max(chunk, training.activation_tokens or ACTIVATION_TOKENS[device.type])


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to zero.

    The paper's backbone has none. With dropout, a resumed run, another number of workers
    and a recomputed activation would each see other random numbers than the run whose
    result they must repeat.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
