"""An engine of plain torch, which tests and benchmarks compare with DeepSpeed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qzhou.config.training import TrainingSection
from qzhou.encoder import EmbeddingModel
from qzhou.training.engine import prepare_model, token_budgets
from qzhou.training.sharding import Ids

CHECKPOINT_FILE = "checkpoint.pt"


class TorchEngine:
    """AdamW, and an all-reduce of gradients over the process group that is there; each rank has the whole model."""

    def __init__(
        self, model: EmbeddingModel, tokenizer: Any, training: TrainingSection, *, packed: bool | None = None
    ) -> None:
        is_distributed = dist.is_initialized()
        self.rank = dist.get_rank() if is_distributed else 0
        self.world = dist.get_world_size() if is_distributed else 1
        self._collate = prepare_model(model, tokenizer, training, packed=packed)
        self.packed = self._collate.packed
        self.model = model
        device = next(model.parameters()).device
        self.micro_batch_tokens, self.activation_tokens = token_budgets(training, device)
        self.max_norm = training.max_gradient_norm
        self.trained = [one for one in model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.0, weight_decay=training.weight_decay)

    def forward(self, ids: Sequence[Ids], soft_mask_weight: float | None = None) -> Tensor:
        vectors: Tensor = self.model(self._collate(ids, soft_mask_weight))
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
        if self.rank == 0:
            state = {"step": step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / CHECKPOINT_FILE)

    def load(self, folder: Path) -> int:
        state = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def full_state(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: value.detach().float().cpu() for name, value in state.items()}
