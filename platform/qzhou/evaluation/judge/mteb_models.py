"""The models that mteb scores: an encoder behind mteb's encoder protocol, and the lexical baseline."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.types import PromptType

from qzhou.data.prompts import Prompt
from qzhou.encoder import TextEncoder
from qzhou.encoder.vectors import VectorStore

BM25_MODEL = "mteb/baseline-bm25s"  # with stemming and stop words (library: bm25s)

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class MtebEncoder:
    """An encoder for mteb; its prompts come from :mod:`qzhou.data.prompts`, as everywhere.

    Args:
        encoder: An encoder on this machine or behind a URL.
        prompts: Task name -> prompt; a task that is missing gets none.
        instructions: Task name -> query -> its own instruction, in place of the task's.
        name: The name in mteb's results.
        revision: Digest of what makes a score but the task; default: encoder's fingerprint.
        store: Keeps the vectors of documents, and is looked up first.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        prompts: Mapping[str, Prompt],
        instructions: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
        *,
        name: str,
        revision: str = "",
        store: VectorStore | None = None,
    ) -> None:
        self.encoder, self.prompts, self.instructions, self.store = encoder, prompts, instructions, store
        # mteb wants organisation/model
        self.mteb_model_meta = ModelMeta.create_empty(
            {"name": f"local/{name}", "revision": revision or encoder.fingerprint, "embed_dim": encoder.dimensions}
        )

    def encode(
        self, inputs: Any, *, task_metadata: Any, prompt_type: PromptType | None = None, **_: Any
    ) -> Vectors:
        """Vectors [N, D] of all batches of ``inputs``, in order."""
        is_document = prompt_type == PromptType.document
        prompt = self.prompts.get(task_metadata.name, Prompt())
        texts = [text for batch in inputs for text in batch["text"]]
        if not is_document:
            own = self.instructions.get(task_metadata.name, {})
            return self.encoder.encode([prompt.with_instruction(own.get(text, "")).query(text) for text in texts])
        texts = [prompt.document(text) for text in texts]
        return self.encoder.encode(texts) if self.store is None else self.store.vectors(texts)

    def similarity(self, one: Any, other: Any) -> Any:
        """All cosines [N, M]."""
        return np.asarray(one) @ np.asarray(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        """Cosines of corresponding rows [N]."""
        return (np.asarray(one) * np.asarray(other)).sum(1)


def embedding_health(vectors: Vectors) -> dict[str, float]:
    """How well embeddings use their space.

    Args:
        vectors: Unit rows [N, D] of different texts.

    Returns:
        ``mean_cosine`` of different texts (0: spread out, 1: all the same) and ``effective_rank``: the exponential of
        the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007), at most D. ``not_numbers``
        counts rows with NaN or infinity, which are replaced by zeros.
    """
    count = len(vectors)
    is_finite = np.asarray(np.isfinite(vectors)).all(axis=1)
    rows = np.where(np.expand_dims(is_finite, 1), vectors, np.float32(0)).astype(np.float64)
    total = rows.sum(axis=0)
    own = float((rows**2).sum())
    singular = np.linalg.svd(rows, compute_uv=False)
    share = singular / (singular.sum() or 1.0)
    entropy = -float(np.sum(share * np.log(np.maximum(share, 1e-300))))
    return {
        "mean_cosine": float(total @ total - own) / max(1, count * (count - 1)),
        "effective_rank": float(np.exp(entropy)) if singular.any() else 0.0,
        "not_numbers": count - int(is_finite.sum()),
        "dimensions": vectors.shape[1],
        "texts": count,
    }
