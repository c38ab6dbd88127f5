"""What the loop asks of an engine, and the plain torch engine that answers it on one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qzhou.encoder import EmbeddingModel
from qzhou.learning import TrainingSection
from qzhou.training.embed import GlobalEmbedder

CHECKPOINT_FILE = "checkpoint.pt"


class Engine(Protocol):
    """Model, optimizer and the ranks that share them."""

    rank: int

    def embed(self, texts: Sequence[str], *, max_tokens: int) -> Tensor:
        """Vectors [N, D] of a global batch, with gradient."""
        ...

    def update(self, loss: Tensor, learning_rate: float) -> float:
        """Backward and one optimizer step; gives the gradient norm before clipping."""
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


class TorchEngine:
    """AdamW on one process: for a single GPU without DeepSpeed, for profiling and for tests."""

    rank = 0

    def __init__(self, model: EmbeddingModel, tokenizer: Any, training: TrainingSection) -> None:
        without_dropout(model)
        self.model = model.train()
        self.max_norm = training.max_gradient_norm
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=training.weight_decay)
        device = next(model.parameters()).device
        self.embed = GlobalEmbedder(model, tokenizer, device, chunks=training.forward_chunks)

    def update(self, loss: Tensor, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        return float(norm)

    def save(self, folder: Path, step: int) -> None:
        state = {"step": step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        partial = folder / f"{CHECKPOINT_FILE}.writing"
        torch.save(state, partial)
        partial.replace(folder / CHECKPOINT_FILE)

    def load(self, folder: Path) -> int:
        state = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def full_state(self) -> dict[str, Tensor]:
        return {name: value.detach().float().cpu() for name, value in self.model.state_dict().items()}


def without_dropout(model: nn.Module) -> None:
    """Set every dropout to zero.

    The paper's backbone has none; with it, a resumed run, another number of workers and a recomputed
    activation would each see other random numbers than the run that they must equal.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
