"""A block of queries: its relevant texts, its rankings after the search, its reranking. No ray in here.

Shape letters in this file: N queries, K ranks, P positives, E (query, relevant text) pairs,
G negatives that are kept.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qzhou.config.mining import MiningSection
from qzhou.data.records import Drop, Negative, RetrievalExample, stable_id
from qzhou.data.text_digests import Digests, Floats, Groups, Ints, is_among, key_digests
from qzhou.mining.corpus import Corpus
from qzhou.mining.negative_selection import Ranking, existing_negatives, in_window
from qzhou.mining.shard import QueryBlock, SearchResult

# ranks for a query's relevant documents before the window; with more of them it may get fewer negatives
RELEVANT_RANKED = 100

Texts = Callable[[Ints], list[str]]  # rows of the corpus to their texts
Score = Callable[[Sequence[tuple[str, str]]], Floats]  # pairs of query and document to their scores


@dataclass(frozen=True, slots=True)
class Queries:
    """A block of examples, the texts relevant to them, and the negatives that they keep whatever is mined.

    Attributes:
        positive_row_P: Rows of their positives among the documents.
        owner_P: Which example each belongs to.
        owner_E: Which example each relevant text belongs to, those of relatives and equal queries included.
        key_E: Its key digest.
        relevant_keys: The same as a set for each example.
        own: Negatives that each example came with and keeps.
        owner_G: Which example each of them belongs to.
        own_G: Its key digest.
    """

    examples: list[RetrievalExample]
    positive_row_P: Ints
    owner_P: Ints
    owner_E: Ints
    key_E: Digests
    relevant_keys: list[set[int]]
    own: list[list[Negative]]
    owner_G: Ints
    own_G: Digests

    @classmethod
    def of(cls, corpus: Corpus, examples: list[RetrievalExample], mining: MiningSection) -> Queries:
        """The block of some examples of a corpus."""
        owner_E, key_E = corpus.relevant.of(Groups.of(examples))
        relevant_keys: list[set[int]] = [set() for _ in examples]
        for owner, key in zip(owner_E.tolist(), key_E.tolist(), strict=True):
            relevant_keys[owner].add(key)
        own = [
            existing_negatives(one.negatives, keys, mining)
            for one, keys in zip(examples, relevant_keys, strict=True)
        ]
        return cls(
            examples,
            *corpus.positive_rows(examples),
            owner_E,
            key_E,
            relevant_keys,
            own,
            owner_G=np.repeat(np.arange(len(examples)), [len(negatives) for negatives in own]),
            own_G=key_digests(negative.text for negatives in own for negative in negatives),
        )

    def seeds(self, seed: int) -> Digests:
        """Seeds each query's draw [N]."""
        ids = [stable_id(one.dataset, seed, one.id)[:16] for one in self.examples]
        return np.array([int(one, 16) for one in ids], dtype=np.uint64)


def depth_of(corpus: Corpus, mining: MiningSection) -> int:
    """How many ranks are needed of each query; the same for all, or neighbours in a block would change one."""
    last = max(mining.rank_to, mining.later_rank_to, mining.consistency_top_k or 0)
    return last + min(corpus.most_relevant, RELEVANT_RANKED)


def ranking_of(
    corpus: Corpus, queries: Queries, block: QueryBlock, found: SearchResult, closest: float
) -> tuple[Ranking, Floats]:
    """The ranking by a teacher, and the score of each positive [P].

    A document whose cosine to a positive is above ``closest`` repeats it.
    """
    score_P = np.einsum("pd,pd->p", block.query_ND[queries.owner_P], block.positive_PD)
    lowest_N, _ = two_lowest(score_P, queries.owner_P, len(queries.examples))
    key_NK = corpus.key_M[found.row_NK]
    ranking = Ranking(
        score_NK=found.score_NK,
        row_NK=found.row_NK,
        key_NK=key_NK,
        is_positive_NK=is_among(queries.owner_E, queries.key_E, key_NK),
        is_own_NK=is_among(queries.owner_G, queries.own_G, key_NK),
        is_repeat_NK=found.positive_cosine_NK > closest,
        positive_score_N=lowest_N,
    )
    return ranking, score_P


def two_lowest(score_P: Floats, owner_P: Ints, count: int) -> tuple[Floats, Floats]:
    """The lowest and the second lowest score of each of ``count`` owners [count]; nan where there is none."""
    order = np.lexsort((score_P, owner_P))
    first = np.searchsorted(owner_P[order], np.arange(count))
    size = np.bincount(owner_P, minlength=count)
    padded = np.append(score_P[order], [np.nan, np.nan]).astype(np.float32)
    lowest = np.where(size > 0, padded[first], np.nan)
    return lowest, np.where(size > 1, padded[first + 1], np.nan)


def reranked(
    rankings: Sequence[Ranking], queries: Queries, mining: MiningSection, texts: Texts, score: Score
) -> tuple[list[Ranking], Floats]:
    """The rankings with a reranker's scores in place of the teachers', and that of each positive [P].

    The reranker reads every candidate inside a teacher's window and every relevant text
    that was found, each pair once.
    """
    wanted = [in_window(one, mining) | (one.is_positive_NK & one.is_there) for one in rankings]
    rows = [one.row_NK[fits] for one, fits in zip(rankings, wanted, strict=True)]
    query = np.concatenate([*(np.nonzero(fits)[0] for fits in wanted), queries.owner_P])
    row = np.concatenate([*rows, queries.positive_row_P])
    pairs, place = np.unique(np.stack([query, row], axis=1), axis=0, return_inverse=True)
    asking = [queries.examples[number].query for number in pairs[:, 0]]
    found = score(list(zip(asking, texts(pairs[:, 1]), strict=True)))[place.ravel()]
    # in the order in which the pairs were put together: a part for each ranking, then the positives
    *parts, positive_P = np.split(found, np.cumsum([len(one) for one in rows]))
    lowest_N, _ = two_lowest(positive_P, queries.owner_P, len(queries.examples))
    replaced = []
    for ranking, fits, part in zip(rankings, wanted, parts, strict=True):
        score_NK = ranking.score_NK.copy()
        score_NK[fits] = part
        replaced.append(dataclasses.replace(ranking, score_NK=score_NK, positive_score_N=lowest_N))
    return replaced, positive_P


def relabelled(rankings: Sequence[Ranking], mining: MiningSection) -> tuple[list[Ranking], list[dict[int, float]]]:
    """The rankings without candidates that count as answers, and for each query the rows of these with their scores.

    Such a candidate has been read by the reranker, which scores it ``mining.relabel_from`` or
    more and no lower than the query's lowest positive. What repeats a positive is none.

    Source: relabelling of false negatives (RLHN, arXiv:2505.16967), there by a language model.
    """
    found: list[dict[int, float]] = [{} for _ in rankings[0].positive_score_N]
    least = mining.relabel_from
    assert least is not None
    left = []
    for one in rankings:
        is_answer = in_window(one, mining) & ~one.is_own_NK & ~one.is_repeat_NK
        is_answer &= one.score_NK >= np.maximum(least, one.positive_score_N)[:, None]
        for number, rank in zip(*(axis.tolist() for axis in np.nonzero(is_answer)), strict=True):
            found[number][int(one.row_NK[number, rank])] = float(one.score_NK[number, rank])
        # ranked as before, and never chosen
        left.append(dataclasses.replace(one, is_repeat_NK=one.is_repeat_NK | is_answer))
    return left, found


def with_answers(
    example: RetrievalExample, candidates: Mapping[str, float], own_scores: Mapping[str, float], least: float
) -> tuple[RetrievalExample, dict[str, float]]:
    """The example with answers as further positives, and their scores by their texts.

    They are the ``candidates`` and those of its given negatives that score ``least`` or more
    by ``own_scores``. What an LLM has written as a negative stays one. Scores of positives
    that came with the data go, since the further ones have none of theirs.
    """
    given = [one.text for one in example.negatives if one.origin == "given" and own_scores[one.text] >= least]
    moved = {text: own_scores[text] for text in given} | dict(candidates)
    if not moved:
        return example, {}
    negatives = tuple(one for one in example.negatives if one.text not in moved or one.origin == "synthetic")
    positives = (*example.positives, *moved)
    return dataclasses.replace(example, positives=positives, negatives=negatives, positive_scores=()), moved


def with_one_judge(
    example: RetrievalExample, positive_scores: Sequence[float], negative_scores: Mapping[str, float]
) -> RetrievalExample:
    """The example with scores of one judge alone: those of its data, if they are complete, or those of mining.

    Scores of two judges cannot be compared, and a list of them would teach what none of
    them has said. Where the data scored every positive and every given negative, negatives
    that were mined or written by an LLM have none.

    Args:
        example: With all its negatives.
        positive_scores: Of mining's teacher or reranker, one for each positive.
        negative_scores: Text -> the same of the negatives that the example came with; mined ones have theirs.
    """
    given = [one for one in example.negatives if one.origin == "given"]
    if example.positive_scores and given and all(one.score is not None for one in given):
        kept = [one if one.origin == "given" else dataclasses.replace(one, score=None) for one in example.negatives]
        return dataclasses.replace(example, negatives=tuple(kept))
    scored = [
        one if one.origin == "mined" else dataclasses.replace(one, score=negative_scores[one.text])
        for one in example.negatives
    ]
    return dataclasses.replace(example, positive_scores=tuple(positive_scores), negatives=tuple(scored))


def inconsistent(example: RetrievalExample, top_k: int | None) -> Drop:
    """The drop of an example with a positive outside the teacher's first ``top_k``."""
    return Drop(
        stage="mining",
        dataset=example.dataset,
        reason="inconsistent",
        detail=f"a positive is not among the teacher's first {top_k}",
        record=json.dumps(dataclasses.asdict(example), ensure_ascii=False),
    )
