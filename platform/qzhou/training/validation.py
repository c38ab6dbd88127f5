"""How good the model is while it trains, on rows that it does not train on. Seconds on a GPU.

Shape letters in this file: N texts of a set, Q queries, M documents, P pairs, D embedding
width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

import pytrec_eval
import torch
from scipy.stats import spearmanr
from torch import Tensor

from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt
from qzhou.data.records import (
    LabeledExample,
    PairExample,
    RetrievalExample,
    normalized_text,
    relevant_keys,
    stable_id,
)
from qzhou.data.storage import Folder, read_records
from qzhou.encoder.encoder import token_ids
from qzhou.errors import DataError
from qzhou.run.files import held_out_places
from qzhou.training.batches import TextGroups
from qzhou.training.engine import Engine
from qzhou.training.examples import TrainingSet
from qzhou.training.gradient_cache import embed
from qzhou.training.sharding import ShardedBatch, shard_batch

QUERIES, DOCUMENTS = 200, 1_000  # of a set
RANKS = 10
# the score of each task; nDCG and the share of texts with a neighbour of their class are from 0 to 1
MAIN_MEASURES = ("ndcg_at_10", "spearman", "nearest_label")

Prompted = Sequence[tuple[Prompt, RetrievalExample]]


class ValidationSet(Protocol):
    """Texts, and how vectors of them are scored."""

    @property
    def groups(self) -> TextGroups:
        """The texts, in the order of their vectors."""

    def scores(self, vector_ND: Tensor) -> dict[str, float]:
        """Measures by name, of unit vectors."""


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Queries among documents.

    Attributes:
        queries: Q texts with their prompts.
        documents: M texts with their prompts.
        qrels: Number of a query -> number of each relevant document -> 1.
    """

    queries: list[str]
    documents: list[str]
    qrels: dict[str, dict[str, int]]

    @classmethod
    def of(cls, examples: Prompted, others: Iterable[str] = ()) -> RetrievalSet:
        """A set of a sample of examples, drawn by hash, among their positives and ``others``.

        Examples with the same query, and those that were made of one, have all their positives
        in common.
        """
        shuffled = sorted(examples, key=lambda one: stable_id("validation", one[1].id))
        asked = shuffled[:QUERIES]
        documents: dict[str, str] = {}
        for place, (prompt, one) in enumerate(shuffled):
            if len(documents) < DOCUMENTS or place < QUERIES:
                documents |= {normalized_text(text): prompt.document(text) for text in one.positives}
        for text in others:
            if len(documents) < DOCUMENTS:
                documents.setdefault(normalized_text(text), shuffled[0][0].document(text))
        number = {key: str(place) for place, key in enumerate(documents)}
        relevant = relevant_keys([one for _, one in shuffled])[: len(asked)]
        queries = [prompt.query(one.query) for prompt, one in asked]
        qrels = {str(q): {number[key]: 1 for key in keys if key in number} for q, keys in enumerate(relevant)}
        return cls(queries, list(documents.values()), qrels)

    @property
    def groups(self) -> TextGroups:
        """Queries, then documents."""
        return [("query", self.queries), ("document", self.documents)]

    def scores(self, vector_ND: Tensor) -> dict[str, float]:
        """``ndcg_at_10``; ``accuracy``: share of queries with a relevant first document."""
        score_QM = vector_ND[: len(self.queries)] @ vector_ND[len(self.queries) :].T
        best = score_QM.topk(min(RANKS, score_QM.shape[1]), dim=1)
        rankings = {
            str(q): dict(zip(map(str, documents), scores, strict=True))
            for q, (documents, scores) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        }
        evaluator = pytrec_eval.RelevanceEvaluator(self.qrels, {"ndcg_cut.10", "P.1"})
        measures = evaluator.evaluate(rankings).values()
        return {
            "ndcg_at_10": fmean(one["ndcg_cut_10"] for one in measures),
            "accuracy": fmean(one["P_1"] for one in measures),
        }


@dataclass(frozen=True, slots=True)
class PairSet:
    """P pairs of texts and their ordinal scores."""

    texts_a: list[str]
    texts_b: list[str]
    score_P: list[float]

    @property
    def groups(self) -> TextGroups:
        """First texts, then second ones."""
        return [("document", self.texts_a), ("document", self.texts_b)]

    def scores(self, vector_ND: Tensor) -> dict[str, float]:
        """``spearman``: rank correlation of cosines and scores, -1 where all cosines are equal.

        Nothing where all scores are equal.
        """
        if len(set(self.score_P)) < 2:
            return {}
        a_PD, b_PD = vector_ND.chunk(2)
        cosine_P = (a_PD * b_PD).sum(1).numpy()
        if len(set(cosine_P.tolist())) < 2:
            return {"spearman": -1.0}
        return {"spearman": float(spearmanr(cosine_P, self.score_P).statistic)}


@dataclass(frozen=True, slots=True)
class ClassificationSet:
    """N texts and their classes."""

    texts: list[str]
    labels: list[str]

    @property
    def groups(self) -> TextGroups:
        """The texts."""
        return [("document", self.texts)]

    def scores(self, vector_ND: Tensor) -> dict[str, float]:
        """``nearest_label``: share of texts whose nearest other text is of their class.

        Only texts of which there is another one of their class count; nothing without any.
        """
        counted = [n for n, label in enumerate(self.labels) if self.labels.count(label) > 1]
        if not counted:
            return {}
        cosine_NN = (vector_ND @ vector_ND.T).fill_diagonal_(-torch.inf)
        nearest = cosine_NN.argmax(1).tolist()
        return {"nearest_label": fmean(self.labels[nearest[n]] == self.labels[n] for n in counted)}


@dataclass(frozen=True, slots=True)
class Validation:
    """Sets of texts, and this rank's share of them."""

    sets: Sequence[ValidationSet]
    texts: ShardedBatch

    @classmethod
    def of(cls, sets: Sequence[ValidationSet], recipe: Recipe, tokenizer: Any, engine: Engine) -> Validation | None:
        """Validation on some sets; None without any."""
        if not sets:
            return None
        limit = {"query": recipe.model.max_query_tokens, "document": recipe.model.max_document_tokens}
        groups = [group for one in sets for group in one.groups]
        ids = [one for side, texts in groups for one in token_ids(tokenizer, texts, max_tokens=limit[side])]
        share = shard_batch(
            ids,
            rank=engine.rank,
            world=engine.world,
            micro_batch_tokens=engine.micro_batch_tokens,
            packed=engine.packed,
        )
        return cls(sets, share)

    def __call__(self, engine: Engine) -> dict[str, float]:
        """The mean of each measure over the sets that have it."""
        return mean_scores(self.sets, embed(self.texts, engine.forward).float().cpu())


def mean_scores(sets: Sequence[ValidationSet], vector_ND: Tensor) -> dict[str, float]:
    """The mean of each measure over the sets that have it; vectors lie as the sets' texts do, set by set."""
    sizes = [sum(len(texts) for _, texts in one.groups) for one in sets]
    found: dict[str, list[float]] = {}
    for one, own in zip(sets, torch.split(vector_ND, sizes), strict=True):
        for name, value in one.scores(own).items():
            found.setdefault(name, []).append(value)
    return {name: round(fmean(values), 6) for name, values in found.items()}


def overall(scores: Mapping[str, float]) -> float:
    """One number of a validation: the mean over the tasks (nDCG@10, Spearman's correlation, nearest label).

    Raises:
        DataError: There is none, because all pairs have one score, or all texts different labels.
    """
    found = [scores[name] for name in MAIN_MEASURES if name in scores]
    if not found:
        raise DataError(
            "training.select is 'best', and nothing can be measured on the rows that are set aside: all pairs have the "
            "same score, or no two texts the same label. Set it to 'last', or add rows."
        )
    return fmean(found)


def held_out_sets(recipe: Recipe, run_folder: Folder) -> list[ValidationSet]:
    """What no stage trains on and the evaluation judges by: queries of all datasets among the documents of all."""
    examples = held_out_examples(recipe, run_folder)
    return [RetrievalSet.of(examples)] if examples else []


def held_out_examples(recipe: Recipe, run_folder: Folder) -> list[tuple[Prompt, RetrievalExample]]:
    """The retrieval examples that no stage trains on, with their prompts."""
    return [
        (dataset.prompt.with_instruction(one.instruction), one)
        for dataset in recipe.datasets
        for place in held_out_places(run_folder, "retrieval", dataset.name)
        for one in read_records(place, RetrievalExample)
    ]


def set_aside_sets(data: Mapping[str, TrainingSet]) -> list[ValidationSet]:
    """The rows that were set aside of each dataset; queries look among its negatives and other rows' answers too."""
    return [_set_aside(one) for one in data.values() if one.set_aside]


def _set_aside(data: TrainingSet) -> ValidationSet:
    first, prompt = data.set_aside[0], data.prompt
    if isinstance(first, RetrievalExample):
        own = [one for one in data.set_aside if isinstance(one, RetrievalExample)]
        trained = [one for one in data.take(data.spread(DOCUMENTS)) if isinstance(one, RetrievalExample)]
        others = [negative.text for one in own for negative in one.negatives]
        others += [text for one in trained for text in one.positives]
        return RetrievalSet.of([(prompt.with_instruction(one.instruction), one) for one in own], others)
    if isinstance(first, PairExample):
        pairs = [one for one in data.set_aside if isinstance(one, PairExample)]
        return PairSet(
            [prompt.query(one.text_a) for one in pairs],
            [prompt.document(one.text_b) for one in pairs],
            [one.score for one in pairs],
        )
    labeled = [one for one in data.set_aside if isinstance(one, LabeledExample)]
    return ClassificationSet([prompt.query(one.text) for one in labeled], [one.label for one in labeled])
