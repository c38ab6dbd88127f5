"""Selection of negatives among ranked documents. Pure, one vectorised pass per block.

Shape letters in this file: N queries, K ranks, T teachers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, replace

import numpy as np

from qzhou.config.mining import MiningSection
from qzhou.data.records import Negative
from qzhou.data.splitmix import splitmix64
from qzhou.data.text_digests import Bools, Digests, Floats, Ints, is_among, key_digests


@dataclass(frozen=True, slots=True)
class Ranking:
    """The K documents that one teacher ranks first for each of some queries.

    Attributes:
        score_NK: How well each document fits the query (a cosine, or a reranker's score), the teacher's best document
            first; -inf where there is none.
        row_NK: Row of the corpus.
        key_NK: Key digest of the document; the draw depends on it, not on the row.
        is_positive_NK: Whether it is relevant to the query: by id or by normalised text.
        is_own_NK: Whether it is one of the query's negatives already; ranked, never chosen.
        is_repeat_NK: Whether it says the same as a positive; ranked, never chosen.
        positive_score_N: The lowest score of one of the query's positives.
    """

    score_NK: Floats
    row_NK: Ints
    key_NK: Digests
    is_positive_NK: Bools
    is_own_NK: Bools
    is_repeat_NK: Bools
    positive_score_N: Floats

    def of(self, queries: Ints) -> Ranking:
        """The ranking of some of the queries, by their place."""
        return Ranking(*(getattr(self, field.name)[queries] for field in fields(self)))

    @property
    def is_there(self) -> Bools:
        """Whether there is a document at this rank [N, K]."""
        return self.score_NK > -np.inf

    @property
    def rank(self) -> Ints:
        """Ranks from 1, over the documents that are not positives [N, K]."""
        return np.cumsum(self.is_there & ~self.is_positive_NK, axis=1)


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen documents per query, and why others were refused.

    Attributes:
        rows: Per query, rows of the corpus, in the order in which they were drawn; may be shorter than asked, never
            padded.
        scores: How well they fit the query.
        rejected: Reason -> candidates refused for it.
        later: The queries that took theirs from behind the window (``mining.later_rank_to``).
    """

    rows: list[list[int]]
    scores: list[list[float]]
    rejected: Mapping[str, int]
    later: tuple[int, ...] = ()


def in_window(ranking: Ranking, mining: MiningSection) -> Bools:
    """Whether each document is a candidate [N, K]: no positive, its rank in the window."""
    return _is_candidate(ranking, mining.rank_from, mining.rank_to)


def _is_candidate(ranking: Ranking, first: int, last: int) -> Bools:
    rank_NK = ranking.rank
    return ranking.is_there & ~ranking.is_positive_NK & (rank_NK >= first) & (rank_NK <= last)


def max_negative_score(positive_score_N: Floats, mining: MiningSection) -> Floats:
    """The score that a negative must stay below [N].

    It is ``p - (1 - positive_ratio) * |p|`` with p the lowest score of the query's
    positives, which equals ``positive_ratio * p`` for p > 0 and stays below p for a
    negative score too; and ``p - margin``, whichever is lower; infinite without either.

    Source: ratio and margin: TopK-PercPos and TopK-MarginPos, NV-Retriever
        (arXiv:2407.15831).
    """
    limits: list[np.ndarray] = [np.full_like(positive_score_N, np.inf)]
    if mining.positive_ratio is not None:
        limits.append(positive_score_N - (1.0 - mining.positive_ratio) * np.abs(positive_score_N))
    if mining.margin is not None:
        limits.append(positive_score_N - mining.margin)
    return np.asarray(np.min(limits, axis=0))


def select_negatives(rankings: Sequence[Ranking], key_N: Digests, mining: MiningSection) -> Selection:
    """Choose at most ``mining.negatives_per_query`` negatives per query from a rank window.

    Inside the window a document must score below :func:`max_negative_score`, and between
    ``min_score`` and ``max_score``. Of these it draws, uniformly or by softmax; the draw
    depends on the query's key, of ``key_N``, and the document alone. Each of several
    teachers has a ranking and a window of its own, and what one of them refuses none may
    choose. Queries that are left without any take from the ranks behind the window, up to
    ``later_rank_to``.

    Source: rank window: QZhou-Embedding (arXiv:2508.21632), section 6.1.
    """
    found = _selected(rankings, key_N, mining)
    empty = np.flatnonzero([not rows for rows in found.rows])
    if not mining.later_rank_to or not len(empty):
        return found
    window = {"rank_from": mining.rank_to + 1, "rank_to": mining.later_rank_to}
    behind = _selected([one.of(empty) for one in rankings], key_N[empty], mining.model_copy(update=window))
    for place, rows, scores in zip(empty.tolist(), behind.rows, behind.scores, strict=True):
        found.rows[place], found.scores[place] = rows, scores
    later = (place for place, rows in zip(empty.tolist(), behind.rows, strict=True) if rows)
    return replace(found, later=tuple(later))


def _selected(rankings: Sequence[Ranking], key_N: Digests, mining: MiningSection) -> Selection:
    rejected: Counter[str] = Counter()
    allowed = [_allowed(ranking, mining, rejected) for ranking in rankings]
    refused = [_is_candidate(one, 1, mining.rank_to) & ~fine for one, fine in zip(rankings, allowed, strict=True)]
    for number, ranking in enumerate(rankings):
        for other, rival in enumerate(rankings):
            if other != number:
                vetoed = allowed[number] & _named(ranking, rival, refused[other])
                rejected["refused by another teacher"] += int(vetoed.sum())
                allowed[number] = allowed[number] & ~vetoed
                # named by both: it is drawn once
                if other < number:
                    allowed[number] &= ~_named(ranking, rival, allowed[other])
    score_NK = np.concatenate([one.score_NK for one in rankings], axis=1)
    row_NK = np.concatenate([one.row_NK for one in rankings], axis=1)
    allowed_NK = np.concatenate(allowed, axis=1)
    order_NK = np.where(allowed_NK, _order(rankings, allowed, key_N, mining), np.inf)
    drawn_NK = np.argsort(order_NK, axis=1, kind="stable")[:, : mining.negatives_per_query]
    chosen = [drawn[allowed_NK[query, drawn]] for query, drawn in enumerate(drawn_NK)]
    rejected["not drawn"] = int(allowed_NK.sum()) - sum(map(len, chosen))
    rows = [row_NK[query, drawn].tolist() for query, drawn in enumerate(chosen)]
    scores = [score_NK[query, drawn].astype(float).tolist() for query, drawn in enumerate(chosen)]
    return Selection(rows, scores, dict(rejected))


def _named(ranking: Ranking, rival: Ranking, marked_NK: Bools) -> Bools:
    """Whether each document of a query is among those of a rival that are marked [N, K]; sorted, never K by K."""
    return is_among(np.nonzero(marked_NK)[0], rival.key_NK[marked_NK], ranking.key_NK)


def _allowed(ranking: Ranking, mining: MiningSection, rejected: Counter[str]) -> Bools:
    """Candidates that pass all criteria [N, K]; counts others by the first they fail."""
    score_NK, left = ranking.score_NK, in_window(ranking, mining)
    rejected["is a positive"] += int((ranking.is_positive_NK & ranking.is_there).sum())
    before = ~ranking.is_positive_NK & ranking.is_there & (ranking.rank < mining.rank_from)
    rejected["ranked before the window"] += int(before.sum())
    criteria = {
        "is a negative already": ranking.is_own_NK,
        "repeats a positive": ranking.is_repeat_NK,
        "too close to the positive": score_NK >= max_negative_score(ranking.positive_score_N, mining)[:, None],
        "above max_score": score_NK > (np.inf if mining.max_score is None else mining.max_score),
        "below min_score": score_NK < (-np.inf if mining.min_score is None else mining.min_score),
    }
    for reason, fails in criteria.items():
        rejected[reason] += int((left & fails).sum())
        left = left & ~fails
    return left


def leave_one_out_false_negatives(ranking: Ranking, second_score_N: Floats, mining: MiningSection) -> Bools:
    """Which positives would qualify as negatives, were they not known as relevant [N, K].

    Each is left out alone; the others give the positive's score: ``second_score_N`` is the
    second lowest of a query, nan where there is only one. The share of positives that
    qualify estimates how many unknown positives the criteria let in.
    """
    is_lowest = ranking.score_NK <= ranking.positive_score_N[:, None]
    left_NK = np.where(is_lowest, second_score_N[:, None], ranking.positive_score_N[:, None])
    # a positive takes no rank while it is known
    rank_NK = ranking.rank + 1
    window = (rank_NK >= mining.rank_from) & (rank_NK <= mining.rank_to)
    low = -np.inf if mining.min_score is None else mining.min_score
    high = np.inf if mining.max_score is None else mining.max_score
    score_NK = ranking.score_NK
    fits = (score_NK < max_negative_score(left_NK, mining)) & (score_NK >= low) & (score_NK <= high)
    several = ~np.isnan(second_score_N)[:, None]
    return np.asarray(several & ranking.is_positive_NK & ranking.is_there & window & fits)


def existing_negatives(
    existing: Sequence[Negative], relevant_keys: AbstractSet[int], mining: MiningSection
) -> list[Negative]:
    """The negatives that an example keeps whatever is mined: all given ones, then LLM-written up to their share.

    The share is rounded to the nearest number of negatives; ``relevant_keys`` are key
    digests of the texts relevant to the query.
    """
    count = mining.negatives_per_query
    given = _distinct([one for one in existing if one.origin != "synthetic"], relevant_keys)
    written = [one for one in existing if one.origin == "synthetic"]
    share = round(mining.llm_negative_fraction * count)
    return _distinct([*given, *written[:share]], relevant_keys)[: max(count, len(given))]


def combine(
    own: Sequence[Negative], mined: Sequence[Negative], relevant_keys: AbstractSet[int], *, count: int
) -> tuple[Negative, ...]:
    """The negatives of an example: its own (:func:`existing_negatives`), then mined ones up to ``count``."""
    return tuple(_distinct([*own, *mined], relevant_keys)[: max(count, len(own))])


def _distinct(negatives: Sequence[Negative], relevant_keys: AbstractSet[int]) -> list[Negative]:
    """Negatives without those that repeat one before them or are relevant, compared by the digests of their keys."""
    kept: list[Negative] = []
    seen = set(relevant_keys)
    keys = key_digests(one.text for one in negatives).tolist()
    for negative, key in zip(negatives, keys, strict=True):
        if key not in seen:
            seen.add(key)
            kept.append(negative)
    return kept


def is_consistent(ranking: Ranking, *, top_k: int) -> Bools:
    """Whether the worst positive of each query is among the teacher's first ``top_k``, other positives not counted.

    Args:
        ranking: Of K >= top_k + the query's positives, or of the whole corpus.
        top_k: Counted from 1.

    Source: ranking consistency filter, KaLM-Embedding (arXiv:2501.01028), section 3.2.
    """
    better = (ranking.score_NK > ranking.positive_score_N[:, None]) & ~ranking.is_positive_NK
    return np.asarray(better.sum(axis=1) < top_k)


def _order(rankings: Sequence[Ranking], allowed: Sequence[Bools], key_N: Digests, mining: MiningSection) -> Floats:
    """A number by which candidates are drawn, the smallest first [N, T * K]."""
    by_rank = len(rankings) > 1 and not mining.reranker  # teachers' cosines cannot be compared
    orders = [_drawn(ranking, key_N, mining, by_rank) for ranking in rankings]
    # the teachers take turns, each by its own order
    if mining.combine == "each" and len(rankings) > 1:
        turns = []
        for number, (order, fine) in enumerate(zip(orders, allowed, strict=True)):
            sorted_NK = np.argsort(np.where(fine, order, np.inf), axis=1, kind="stable")
            place = np.argsort(sorted_NK, axis=1)
            turns.append((place * len(rankings) + number).astype(np.float32))
        orders = turns
    return np.concatenate(orders, axis=1)


def _drawn(ranking: Ranking, key_N: Digests, mining: MiningSection, by_rank: bool) -> Floats:
    """The order in which one teacher's candidates are drawn; softmax by Gumbel's trick (arXiv:1903.06059)."""
    if mining.sampling == "top":
        return ranking.rank.astype(np.float32) if by_rank else -ranking.score_NK
    uniform_NK = _uniform(key_N[:, None] ^ ranking.key_NK)
    if mining.sampling == "uniform":
        return uniform_NK
    with np.errstate(divide="ignore", invalid="ignore"):
        gumbel_NK = -np.log(-np.log(uniform_NK))
        return np.asarray(-(ranking.score_NK / mining.sampling_temperature + gumbel_NK))


def _uniform(key: Digests) -> Floats:
    """A well-mixed number in [0, 1) for each key."""
    return (splitmix64(key) >> np.uint64(11)).astype(np.float64) / float(1 << 53)  # type: ignore[return-value]
