"""What mteb evaluates: an encoder under mteb's encoder protocol, and the lexical baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import mteb
import numpy as np
from mteb.models import ModelMeta
from mteb.types import PromptType

from qzhou.data.prompts import Prompt
from qzhou.encoder import TextEncoder
from qzhou.encoder.vectors import VectorStore

BM25 = "mteb/baseline-bm25s"

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class MtebEncoder:
    """An encoder as mteb calls it; prompts come from :mod:`qzhou.data.prompts`, as everywhere.

    Args:
        encoder: On this machine or behind an URL.
        prompts: Task name -> how its texts are presented; a task that is not there gets none.
        name: For results; mteb wants ``organisation/model``.
        revision: For results: what else a score depends on besides the task.
        store: Where vectors of documents are kept, and looked for first.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        prompts: Mapping[str, Prompt],
        *,
        name: str,
        revision: str = "",
        store: VectorStore | None = None,
    ) -> None:
        self.encoder, self.prompts, self.store = encoder, prompts, store
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"local/{name}",
                "revision": revision or encoder.fingerprint,
                "embed_dim": encoder.dimensions,
            }
        )

    def encode(
        self, inputs: Any, *, task_metadata: Any, prompt_type: PromptType | None = None, **_: Any
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors [N, D] of all batches of ``inputs``, in order."""
        is_document = prompt_type == PromptType.document
        prompt = self.prompts.get(task_metadata.name, Prompt())
        present = prompt.document if is_document else prompt.query
        texts = [present(text) for batch in inputs for text in batch["text"]]
        if self.store is None or not is_document:
            return self.encoder.encode(texts)
        return self.store.vectors(texts)

    def similarity(self, one: Any, other: Any) -> Any:
        """All cosines [N, M]."""
        return np.asarray(one) @ np.asarray(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        """Cosines of corresponding rows [N]."""
        return (np.asarray(one) * np.asarray(other)).sum(1)


def bm25() -> Any:
    """BM25 with stemming and stop words, as mteb's baseline runs it (library: bm25s)."""
    return mteb.get_model(BM25)


def documents_of(corpus: Iterable[Any]) -> list[str]:
    """The texts of a corpus as mteb hands them to an encoder: title and text."""
    return [f"{row.get('title') or ''} {row['text']}".strip() for row in corpus]


def health(vectors: Vectors) -> dict[str, float]:
    """Whether embeddings fill their space.

    Args:
        vectors: Unit rows [N, D] of different texts.

    Returns:
        ``mean_cosine`` of different texts (0: spread out, 1: all the same) and ``effective_rank``: the exponential of
        the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007), at most D. ``not_numbers``
        counts rows with NaN or infinity, which are taken for zeros.
    """
    count = len(vectors)
    numbers = np.asarray(np.isfinite(vectors)).all(axis=1)
    vectors = np.where(np.expand_dims(numbers, 1), vectors, np.float32(0))
    total = vectors.sum(axis=0, dtype=np.float64)
    own = float((vectors.astype(np.float64) ** 2).sum())
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    share = singular / (singular.sum() or 1.0)
    entropy = -float(np.sum(share * np.log(np.maximum(share, 1e-300))))
    return {
        "mean_cosine": float(total @ total - own) / max(1, count * (count - 1)),
        "effective_rank": float(np.exp(entropy)) if singular.any() else 0.0,
        "not_numbers": count - int(numbers.sum()),
        "dimensions": vectors.shape[1],
        "texts": count,
    }
