"""A block of queries after the search: rankings, what is dropped, what is chosen. No ray in here.

Shape letters in this file: N queries, K ranks, P positives, E (query, answer) pairs, G negatives that are kept.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qzhou.config.sections import MiningSection
from qzhou.data.records import Drop, Negative, RetrievalExample, stable_id
from qzhou.mining.corpus import Corpus
from qzhou.mining.identity import Digests, Floats, Groups, Ints, is_among, key_digests
from qzhou.mining.select import Ranking, in_window, standing
from qzhou.mining.shard import Block, Found

# room for a query's answers before the window; with more of them it may get fewer negatives
ANSWERS_RANKED = 100

Texts = Callable[[Ints], list[str]]
Judge = Callable[[Sequence[tuple[str, str]]], Floats]


@dataclass(frozen=True, slots=True)
class Queries:
    """A block of examples, what answers them, and the negatives that they keep whatever is mined.

    Attributes:
        positive_row_P: Rows of their positives among the documents.
        owner_P: Which example each belongs to.
        owner_E: Of each known answer, those of relatives and equal queries included.
        answer_E: Its key digest.
        answering: The same as a set for each example.
        own: Negatives that each example came with and keeps.
        owner_G: Which example each of them belongs to.
        own_G: Its key digest.
    """

    examples: list[RetrievalExample]
    positive_row_P: Ints
    owner_P: Ints
    owner_E: Ints
    answer_E: Digests
    answering: list[set[int]]
    own: list[list[Negative]]
    owner_G: Ints
    own_G: Digests

    @classmethod
    def of(cls, corpus: Corpus, examples: list[RetrievalExample], mining: MiningSection) -> Queries:
        owner_E, answer_E = corpus.answers.of(Groups.of(examples))
        answering: list[set[int]] = [set() for _ in examples]
        for owner, answer in zip(owner_E.tolist(), answer_E.tolist(), strict=True):
            answering[owner].add(answer)
        own = [
            standing(one.negatives, answers, mining)
            for one, answers in zip(examples, answering, strict=True)
        ]
        return cls(
            examples,
            *corpus.positive_rows(examples),
            owner_E,
            answer_E,
            answering,
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
    return max(mining.rank_to, mining.consistency_top_k or 0) + min(
        corpus.most_answers, ANSWERS_RANKED
    )


def ranking_of(
    corpus: Corpus, queries: Queries, block: Block, found: Found, closest: float
) -> tuple[Ranking, Floats]:
    """What a teacher found, and the second lowest score of each query's positives (nan where there is one) [N]."""
    score_P = np.einsum("pd,pd->p", block.query_ND[queries.owner_P], block.positive_PD)
    lowest_N, second_N = two_lowest(score_P, queries.owner_P, len(queries.examples))
    key_NK = corpus.key_M[found.row_NK]
    ranking = Ranking(
        score_NK=found.score_NK,
        row_NK=found.row_NK,
        key_NK=key_NK,
        is_positive_NK=is_among(queries.owner_E, queries.answer_E, key_NK),
        is_own_NK=is_among(queries.owner_G, queries.own_G, key_NK),
        is_repeat_NK=found.positive_cosine_NK > closest,
        positive_score_N=lowest_N,
    )
    return ranking, second_N


def two_lowest(score_P: Floats, owner_P: Ints, count: int) -> tuple[Floats, Floats]:
    """The lowest and the second lowest score of each owner [count]; nan where there is none."""
    order = np.lexsort((score_P, owner_P))
    first = np.searchsorted(owner_P[order], np.arange(count))
    size = np.bincount(owner_P, minlength=count)
    padded = np.append(score_P[order], [np.nan, np.nan]).astype(np.float32)
    lowest = np.where(size > 0, padded[first], np.nan)
    return lowest, np.where(size > 1, padded[first + 1], np.nan)


def judged(
    rankings: Sequence[Ranking], queries: Queries, mining: MiningSection, texts: Texts, judge: Judge
) -> tuple[list[Ranking], Floats]:
    """The rankings with a reranker's scores in place of the teachers', and the second lowest of the positives [N].

    It reads every candidate inside a window and every known answer that was found, each pair once.
    """
    wanted = [in_window(one, mining) | (one.is_positive_NK & one.is_there) for one in rankings]
    query = np.concatenate([*(np.nonzero(one)[0] for one in wanted), queries.owner_P])
    row = np.concatenate(
        [
            *(one.row_NK[fits] for one, fits in zip(rankings, wanted, strict=True)),
            queries.positive_row_P,
        ]
    )
    pairs, place = np.unique(np.stack([query, row], axis=1), axis=0, return_inverse=True)
    documents = texts(pairs[:, 1])
    asked = [
        (queries.examples[number].query, text)
        for number, text in zip(pairs[:, 0], documents, strict=True)
    ]
    score = judge(asked)[place.ravel()]
    lowest_N, second_N = two_lowest(
        score[len(score) - len(queries.owner_P) :], queries.owner_P, len(queries.examples)
    )
    found, start = [], 0
    for ranking, fits in zip(rankings, wanted, strict=True):
        score_NK = ranking.score_NK.copy()
        score_NK[fits] = score[start : start + int(fits.sum())]
        start += int(fits.sum())
        found.append(dataclasses.replace(ranking, score_NK=score_NK, positive_score_N=lowest_N))
    return found, second_N


def inconsistent(example: RetrievalExample, top_k: int | None) -> Drop:
    """The drop of a pair that the teacher does not believe in."""
    return Drop(
        stage="mining",
        dataset=example.dataset,
        reason="inconsistent",
        detail=f"a positive is not among the teacher's first {top_k}",
        record=json.dumps(dataclasses.asdict(example), ensure_ascii=False),
    )
