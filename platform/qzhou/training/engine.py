"""What the loop asks of an engine, and the plain torch engine that answers it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qzhou.config.training import TrainingSection
from qzhou.encoder import EmbeddingModel
from qzhou.encoder.attention import PACKED, Packed, Padded, can_pack, soft_causal_mask
from qzhou.training.deal import Ids

CHECKPOINT_FILE, STATE_FILE = "checkpoint.pt", "state.json"
# Padded tokens of one forward pass, and of all whose activations are held: a batch of the quickstart fits, and so does
# one of a 7B model with gradient checkpointing on 80 GB.
CHUNK_TOKENS = {"cpu": 2_048, "cuda": 16_384}
HELD_TOKENS = {"cpu": 16_384, "cuda": 32_768}


class Engine(Protocol):
    """Model, optimizer and the ranks that share them."""

    rank: int
    world: int
    micro_batch_tokens: int
    activation_tokens: int

    def forward(self, ids: Sequence[Ids], openness: float | None = None) -> Tensor:
        """Token ids of S texts to vectors [S, D]; with gradient where torch records one.

        Args:
            openness: How far a causal mask has opened (:func:`qzhou.encoder.attention.soft_causal_mask`); None: no mask.
        """
        ...

    def backward(self, value: Tensor, *, last: bool) -> None:
        """One of the backward passes of a step."""
        ...

    def update(self, learning_rate: float) -> float:
        """One optimizer step; gives the gradient norm before clipping."""
        ...

    def save(self, folder: Path, step: int) -> None:
        """Write this rank's part of a checkpoint after ``step`` finished steps."""
        ...

    def load(self, folder: Path) -> int:
        """Read a checkpoint and give its step."""
        ...

    def full_state(self) -> dict[str, Tensor]:
        """All weights in float32 on the CPU; every rank must call it, rank 0 gets them."""
        ...


def may_pack(training: TrainingSection) -> bool | None:
    """False where a stage opens a mask step by step, for which texts have to be padded; else as the machine allows."""
    return False if training.stage1.soft_mask_steps or training.stage2.soft_mask_steps else None


class Batcher:
    """Token ids to what a model takes: packed where that is faster and exact, else padded."""

    def __init__(
        self, model: EmbeddingModel, tokenizer: Any, *, packed: bool | None = None
    ) -> None:
        """Args: packed: Default: where FlashAttention is installed and computes in the model's type. An opening mask
        needs padding.
        """
        weight = next(model.parameters())
        self._device, self._dtype, self._pad = weight.device, weight.dtype, tokenizer.pad_token_id
        self._packed = can_pack(weight.device, weight.dtype) if packed is None else packed
        # for good: with gradient checkpointing attention is computed in the backward pass too
        if self._packed:
            model.backbone.config._attn_implementation = PACKED

    def __call__(self, ids: Sequence[Ids], openness: float | None = None) -> Padded | Packed:
        if self._packed:
            assert openness is None, "packed attention takes no mask"
            return Packed.of(ids, self._device)
        padded = Padded.of(ids, self._device, pad_token=self._pad)
        if openness is None:
            return padded
        bias = soft_causal_mask(padded.attention_mask, openness, self._dtype)
        return Padded(padded.input_ids, padded.attention_mask, bias)


class TorchEngine:
    """AdamW and nothing else: for one GPU or a few without DeepSpeed, for profiling and for tests.

    Ranks share a process group that is there already (``torchrun`` makes one); each holds the whole model.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        tokenizer: Any,
        training: TrainingSection,
        *,
        packed: bool | None = None,
    ) -> None:
        without_dropout(model)
        if training.gradient_checkpointing:
            model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        self.rank, self.world = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        self.model = model.train()
        self.micro_batch_tokens, self.activation_tokens = token_budgets(
            training, next(model.parameters()).device
        )
        self.max_norm = training.max_gradient_norm
        self.trained = [one for one in model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.0, weight_decay=training.weight_decay)
        self._batch = Batcher(
            model, tokenizer, packed=may_pack(training) if packed is None else packed
        )

    def forward(self, ids: Sequence[Ids], openness: float | None = None) -> Tensor:
        vectors: Tensor = self.model(self._batch(ids, openness))
        return vectors

    def backward(self, value: Tensor, *, last: bool) -> None:
        value.backward()  # type: ignore[no-untyped-call]
        if last and self.world > 1:
            for one in self.trained:
                if one.grad is not None:
                    dist.all_reduce(one.grad)
                    one.grad /= self.world

    def update(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = nn.utils.clip_grad_norm_(self.trained, self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def save(self, folder: Path, step: int) -> None:
        if self.rank:
            return
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = folder / f"{CHECKPOINT_FILE}.writing"
        torch.save(state, partial)
        partial.replace(folder / CHECKPOINT_FILE)
        (folder / STATE_FILE).write_text(json.dumps({"step": step, "workers": self.world}), "utf-8")

    def load(self, folder: Path) -> int:
        state = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def full_state(self) -> dict[str, Tensor]:
        return {
            name: value.detach().float().cpu() for name, value in self.model.state_dict().items()
        }


def token_budgets(training: TrainingSection, device: torch.device) -> tuple[int, int]:
    """Padded tokens of one forward pass, and of all whose activations a rank holds."""
    chunk = training.micro_batch_tokens or CHUNK_TOKENS[device.type]
    return chunk, max(chunk, training.activation_tokens or HELD_TOKENS[device.type])


def without_dropout(model: nn.Module) -> None:
    """Set every dropout to zero.

    The paper's backbone has none; with it, a resumed run, another number of workers and a recomputed
    activation would each see other random numbers than the run that they must equal.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
