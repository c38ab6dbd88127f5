"""Which of the ranked documents become negatives. Pure, one vectorised pass per dataset.

Shape letters in this file: Q queries, K ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qzhou.recipe import MiningSection
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
    mining: MiningSection,
    *,
    is_repeat_QK: Bools | None = None,
) -> Selection:
    """Choose up to ``mining.negatives_per_query`` negatives per query from a window of ranks.

    Ranks count from 1 over the documents that are not positives. Inside the window a document must score below
    ``p - (1 - positive_ratio) * |p|`` with p the positive's score, which equals ``positive_ratio * p`` for p > 0 and
    stays below p for a negative score too; below ``p - margin``; and between ``min_score`` and ``max_score``. From what
    is left they are drawn, uniformly or by softmax; the draw depends on the query's key and the document alone.

    Args:
        scores_QK: Cosines, best first; -inf where there is no document.
        rows_QK: Rows of the corpus.
        is_positive_QK: Whether the document answers the query: by id or by normalised text.
        positive_score_Q: The lowest cosine between the query and one of its positives.
        key_Q: Seeds the draw of each query.
        mining: Of the recipe.
        is_repeat_QK: Whether the document says the same as a positive; counted among the ranks, never chosen.

    Source: rank window: QZhou-Embedding (arXiv:2508.21632), section 6.1; ratio and margin: TopK-PercPos and
        TopK-MarginPos, NV-Retriever (arXiv:2407.15831).
    """
    there = scores_QK > -np.inf
    rank_QK = np.cumsum(~is_positive_QK, axis=1)
    in_window = there & ~is_positive_QK & (rank_QK >= mining.rank_from) & (rank_QK <= mining.rank_to)
    repeats = np.zeros_like(in_window) if is_repeat_QK is None else in_window & is_repeat_QK
    ceiling_Q = positive_score_Q - (1.0 - mining.positive_ratio) * np.abs(positive_score_Q)
    if mining.margin is not None:
        ceiling_Q = np.minimum(ceiling_Q, positive_score_Q - mining.margin)
    close = in_window & ~repeats & (scores_QK >= ceiling_Q[:, None])
    left = in_window & ~repeats & ~close
    high = left & (scores_QK > (np.inf if mining.max_score is None else mining.max_score))
    low = left & (scores_QK < (-np.inf if mining.min_score is None else mining.min_score))
    allowed = left & ~high & ~low
    order_QK = np.where(allowed, _order(scores_QK, rows_QK, key_Q, mining), np.inf)
    chosen = np.zeros_like(allowed)
    first = np.argsort(order_QK, axis=1, kind="stable")[:, : mining.negatives_per_query]
    np.put_along_axis(chosen, first, True, axis=1)
    chosen &= allowed
    return Selection(
        rows=[rows_QK[query, chosen[query]].tolist() for query in range(len(rows_QK))],
        scores=[scores_QK[query, chosen[query]].astype(float).tolist() for query in range(len(rows_QK))],
        rejected={
            "is a positive": int((is_positive_QK & there).sum()),
            "ranked before the window": int((~is_positive_QK & (rank_QK < mining.rank_from)).sum()),
            "repeats a positive": int(repeats.sum()),
            "too close to the positive": int(close.sum()),
            "above max_score": int(high.sum()),
            "below min_score": int(low.sum()),
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


def is_consistent(scores_QK: Floats, is_positive_QK: Bools, positive_score_Q: Floats, *, top_k: int) -> Bools:
    """Whether the worst positive of each query is among the teacher's first ``top_k``, other positives not counted.

    Args:
        scores_QK: Cosines, best first; K >= top_k + the query's positives, or the whole corpus.
        is_positive_QK: Whether the document answers the query.
        positive_score_Q: The lowest cosine between the query and one of its positives.
        top_k: Counted from 1.

    Source: ranking consistency filter, KaLM-Embedding (arXiv:2501.01028), section 3.2.
    """
    better_Q = ((scores_QK > positive_score_Q[:, None]) & ~is_positive_QK).sum(axis=1)
    return np.asarray(better_Q < top_k)


def _order(scores_QK: Floats, rows_QK: Ints, key_Q: Keys, mining: MiningSection) -> Floats:
    """A number by which candidates are drawn, the smallest first; softmax by Gumbel's trick (arXiv:1903.06059)."""
    if mining.sampling == "top":
        return -scores_QK
    uniform_QK = _uniform(key_Q[:, None] ^ rows_QK.astype(np.uint64))
    if mining.sampling == "uniform":
        return uniform_QK
    with np.errstate(divide="ignore", invalid="ignore"):
        gumbel_QK = -np.log(-np.log(uniform_QK))
        return np.asarray(-(scores_QK / mining.sampling_temperature + gumbel_QK))


def _uniform(key: Keys) -> Floats:
    """SplitMix64: a well-mixed number in [0, 1) for each key."""
    with np.errstate(over="ignore"):
        mixed = key + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)  # type: ignore[return-value]
