"""Exact nearest documents by inner product.

Shape letters in this file: Q queries, M documents, D embedding width, K ranks.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def nearest(query_QD: Floats, document_MD: Floats, *, count: int) -> tuple[Floats, Ints]:
    """The ``count`` documents with the highest cosine per query, best first.

    Args:
        query_QD: Unit rows.
        document_MD: Unit rows; the corpus of one dataset.
        count: Ranks wanted; fewer come back when the corpus is smaller.

    Returns: Scores and rows of ``document_MD``, both [Q, min(count, M)].
    """
    index = faiss.IndexFlatIP(document_MD.shape[1])
    index.add(document_MD)
    scores_QK, rows_QK = index.search(query_QD, min(count, len(document_MD)))
    return scores_QK, rows_QK
