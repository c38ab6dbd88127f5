"""What mteb evaluates: our encoder under mteb's encoder protocol, and the lexical baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mteb
import numpy as np
from mteb.models import ModelMeta
from mteb.types import PromptType

from qzhou.encoder import Encoder
from qzhou.prompts import Prompt

BM25 = "mteb/baseline-bm25s"


class MtebEncoder:
    """The encoder as mteb calls it; prompts come from :mod:`qzhou.prompts`, as everywhere.

    Args:
        prompts: Task name -> how its texts are presented; a task that is not there gets none.
        name: For results; mteb wants ``organisation/model``.
    """

    def __init__(self, encoder: Encoder, prompts: Mapping[str, Prompt], *, name: str) -> None:
        self.encoder, self.prompts = encoder, prompts
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"local/{name}",
                "revision": encoder.fingerprint,
                "embed_dim": encoder.dimensions,
                "max_tokens": encoder.max_tokens,
            }
        )

    def encode(
        self, inputs: Any, *, task_metadata: Any, prompt_type: PromptType | None = None, **_: Any
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors [N, D] of all batches of ``inputs``, in order."""
        prompt = self.prompts.get(task_metadata.name, Prompt())
        present = prompt.document if prompt_type == PromptType.document else prompt.query
        return self.encoder.encode([present(text) for batch in inputs for text in batch["text"]])

    def similarity(self, one: Any, other: Any) -> Any:
        """All cosines [N, M]."""
        return np.asarray(one) @ np.asarray(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        """Cosines of corresponding rows [N]."""
        return (np.asarray(one) * np.asarray(other)).sum(1)


def bm25() -> Any:
    """BM25 with stemming and stop words, as mteb's baseline runs it (library: bm25s)."""
    return mteb.get_model(BM25)
