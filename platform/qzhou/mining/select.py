"""Which of the ranked documents become negatives. Pure, one vectorised pass per dataset.

Shape letters in this file: Q queries, K ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qzhou.records import Negative, text_key

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Keys = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen documents per query, and what became of the others.

    Attributes:
        rows: Per query, rows of the corpus, best score first; may be shorter than asked, never padded.
        scores: Their cosines to the query.
        rejected: Reason -> candidates refused for it.
    """

    rows: list[list[int]]
    scores: list[list[float]]
    rejected: Mapping[str, int]


def select_negatives(
    scores_QK: Floats,
    rows_QK: Ints,
    is_positive_QK: Bools,
    positive_score_Q: Floats,
    key_Q: Keys,
    *,
    rank_from: int,
    rank_to: int,
    positive_ratio: float,
    count: int,
) -> Selection:
    """Choose up to ``count`` negatives per query from a window of ranks.

    Ranks count from 1 over the documents that are not positives. Inside the window a document must
    score below ``p - (1 - positive_ratio) * |p|`` with p the positive's score, which equals
    ``positive_ratio * p`` for p > 0 and stays below p for a negative score too. Of the rest, ``count``
    are drawn uniformly; the draw depends on the query's key and the document alone.

    Args:
        scores_QK: Cosines, best first.
        rows_QK: Rows of the corpus.
        is_positive_QK: Whether the document answers the query: by id or by normalised text.
        positive_score_Q: The lowest cosine between the query and one of its positives.
        key_Q: Seeds the draw of each query.

    Source: rank window: QZhou-Embedding (arXiv:2508.21632), section 6.1; ratio: TopK-PercPos,
        NV-Retriever (arXiv:2407.15831).
    """
    rank_QK = np.cumsum(~is_positive_QK, axis=1)
    in_window = ~is_positive_QK & (rank_QK >= rank_from) & (rank_QK <= rank_to)
    ceiling_Q = positive_score_Q - (1.0 - positive_ratio) * np.abs(positive_score_Q)
    below = scores_QK < ceiling_Q[:, None]
    allowed = in_window & below
    draw_QK = np.where(allowed, _uniform(key_Q[:, None] ^ rows_QK.astype(np.uint64)), np.inf)
    chosen = np.zeros_like(allowed)
    np.put_along_axis(chosen, np.argsort(draw_QK, axis=1, kind="stable")[:, :count], True, axis=1)
    chosen &= allowed
    return Selection(
        rows=[rows_QK[query, chosen[query]].tolist() for query in range(len(rows_QK))],
        scores=[scores_QK[query, chosen[query]].astype(float).tolist() for query in range(len(rows_QK))],
        rejected={
            "is a positive": int(is_positive_QK.sum()),
            "ranked before the window": int((~is_positive_QK & (rank_QK < rank_from)).sum()),
            "too close to the positive": int((in_window & ~below).sum()),
            "not drawn": int((allowed & ~chosen).sum()),
        },
    )


def combine(
    existing: Sequence[Negative],
    mined: Sequence[Negative],
    answering: Iterable[str],
    *,
    count: int,
    llm_fraction: float,
) -> tuple[Negative, ...]:
    """The negatives that an example keeps: given ones first, then LLM-written up to their share, then mined.

    Texts are compared by ``text_key``: none repeats and none answers the query.

    Args:
        answering: Texts that answer the query, or their keys (see :func:`qzhou.records.answers`).
        count: Negatives wanted; given ones are never thrown away for it.
        llm_fraction: Share of ``count`` that LLM-written negatives may take, rounded to the nearest.
    """
    given = [negative for negative in existing if negative.origin != "synthetic"]
    written = [negative for negative in existing if negative.origin == "synthetic"][: round(llm_fraction * count)]
    kept: list[Negative] = []
    seen = {text_key(text) for text in answering}
    for negative in [*given, *written, *mined]:
        if len(kept) >= max(count, len(given)):
            break
        if text_key(negative.text) not in seen:
            seen.add(text_key(negative.text))
            kept.append(negative)
    return tuple(kept)


def _uniform(key: Keys) -> Floats:
    """SplitMix64: a well-mixed number in [0, 1) for each key."""
    with np.errstate(over="ignore"):
        mixed = key + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)  # type: ignore[return-value]
