"""Nearest documents by inner product, exact unless the recipe asks for less.

Shape letters in this file: Q queries, M documents, D embedding width, K ranks.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from qzhou.errors import RecipeError, first_line

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

EXACT = "Flat"
TRAINING_ROWS = 200_000  # of an index that has to learn its cells; FAISS asks for some dozens a cell


def nearest(
    query_QD: Floats, document_MD: Floats, *, count: int, index: str = EXACT, parameters: str = ""
) -> tuple[Floats, Ints]:
    """The ``count`` documents with the highest cosine per query, best first.

    Args:
        query_QD: Unit rows.
        document_MD: Unit rows; the corpus of one dataset.
        count: Ranks wanted; fewer come back when the corpus is smaller.
        index: FAISS factory string; ``Flat`` is exact.
        parameters: Of the search, as FAISS reads them: ``nprobe=32``.

    Returns: Scores and rows of ``document_MD``, both [Q, min(count, M)]. Where an approximate index finds fewer, the
        score is -inf and the row 0.

    Raises:
        RecipeError: FAISS knows no such index or parameter, or the corpus is too small for it.
    """
    try:
        made = faiss.index_factory(document_MD.shape[1], index, faiss.METRIC_INNER_PRODUCT)
        if not made.is_trained:
            made.train(_sample(document_MD, TRAINING_ROWS))
        made.add(document_MD)
        if parameters:
            faiss.ParameterSpace().set_index_parameters(made, parameters)  # type: ignore[arg-type]  # its stub is wrong
    except RuntimeError as error:
        raise RecipeError(
            f"mining.index '{index}' with mining.index_parameters '{parameters}' does not work for "
            f"{len(document_MD):,} documents of {document_MD.shape[1]} dimensions: {first_line(error)}. "
            "'Flat' always does."
        ) from None
    scores_QK, rows_QK = made.search(query_QD, min(count, len(document_MD)))
    missing = rows_QK < 0
    scores_QK[missing], rows_QK[missing] = -np.inf, 0
    return scores_QK, rows_QK


def recall_of(query_QD: Floats, document_MD: Floats, scores_QK: Floats, rows_QK: Ints, *, sample: int = 1000) -> float:
    """The share of the exact nearest documents that a search found, measured on some of its queries.

    Args:
        query_QD: That were searched for.
        document_MD: In which.
        scores_QK: What was found; -inf where nothing was.
        rows_QK: What was found.
        sample: Queries, spread evenly.
    """
    some = np.unique(np.linspace(0, len(query_QD) - 1, min(sample, len(query_QD))).astype(int))
    _, exact = nearest(query_QD[some], document_MD, count=rows_QK.shape[1])
    there = scores_QK[some] > -np.inf
    found = [
        len(set(mine[seen].tolist()) & set(best.tolist()))
        for mine, seen, best in zip(rows_QK[some], there, exact, strict=True)
    ]
    return float(np.sum(found)) / exact.size


def _sample(document_MD: Floats, rows: int) -> Floats:
    if len(document_MD) <= rows:
        return document_MD
    chosen = np.random.default_rng(0).choice(len(document_MD), rows, replace=False)
    return document_MD[np.sort(chosen)]
