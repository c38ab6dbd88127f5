"""Knowledge distillation: a frozen teacher's scores or vectors, learned beside labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qzhou.encoder import EmbeddingModel, load_backbone
from qzhou.encoder.model_files import Attention
from qzhou.training.engine import Collator
from qzhou.training.sharding import Ids


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen model; every rank has the whole of it and encodes its own share."""

    model: EmbeddingModel
    tokenizer: Any
    collate: Collator

    @classmethod
    def load(
        cls, spec: str, *, attention: Attention | None = None, device: torch.device, dtype: torch.dtype
    ) -> Teacher:
        """The teacher that ``training.distillation.teacher`` names, and ``model.attention_of`` may know more of.

        Raises:
            ModelError: There is no such model, or it cannot be loaded.
        """
        found = load_backbone(spec, attention=attention, dtype=dtype)
        model = found.model.to(device).eval().requires_grad_(False)
        return cls(model, found.tokenizer, Collator(model, found.tokenizer))

    def forward(self, ids: Sequence[Ids]) -> Tensor:
        """Vectors [S, D] of the token ids of S texts, without gradient."""
        with torch.no_grad():
            vectors: Tensor = self.model(self.collate(ids))
        return vectors
