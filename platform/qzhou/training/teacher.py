"""A frozen model whose view of each batch is learned beside the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qzhou.encoder import EmbeddingModel, load_backbone
from qzhou.training.deal import Ids
from qzhou.training.engine import Batcher


@dataclass(frozen=True, slots=True)
class Teacher:
    """Vectors of another model; every rank has it whole and encodes its share."""

    model: EmbeddingModel
    tokenizer: Any
    batch: Batcher

    @classmethod
    def load(cls, spec: str, *, device: torch.device, dtype: torch.dtype) -> Teacher:
        """Raises: ModelError: There is no such model, or it cannot be loaded."""
        found = load_backbone(spec, dtype=dtype)
        model = found.model.to(device).eval().requires_grad_(False)
        return cls(model, found.tokenizer, Batcher(model, found.tokenizer))

    def forward(self, ids: Sequence[Ids]) -> Tensor:
        """Token ids of S texts to vectors [S, D], without gradient."""
        with torch.no_grad():
            vectors: Tensor = self.model(self.batch(ids))
        return vectors
