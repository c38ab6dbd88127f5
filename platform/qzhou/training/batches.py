"""From planned rows to the texts, targets and masks of one global batch.

Every rank builds the whole batch, which costs nothing beside encoding it. So losses and
masks need no communication. Choices inside a batch (which positive, which negatives) follow
from (seed, step).

Shape letters in this file: B queries or texts, M documents, P pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from qzhou.data.records import (
    TASKS,
    LabeledExample,
    PairExample,
    RetrievalExample,
    Task,
    normalized_text,
    origin_id,
    relevant_keys,
)
from qzhou.training.batch_plan import PlannedBatch, PlannedRows
from qzhou.training.examples import Classes, TrainingSet

Side = Literal["query", "document"]  # which limit of length a text has
TextGroups = list[tuple[Side, list[str]]]


@dataclass(frozen=True, slots=True)
class RetrievalBatch:
    """Queries and documents with their prompts.

    Attributes:
        queries: B texts.
        documents: M texts: the positive of each query, then the hard negatives.
        positive_B: Row of each query's positive in ``documents``.
        owner_M: The query whose positive or hard negative each document is.
        false_negative_mask_BM: True where a document answers a query and is not the positive drawn for it.
        same_query_mask_BB: True where two queries are the same text or a paraphrase and its original.
        score_M: A teacher's score of each document for its owner, nan where it has none; None where nobody has.
    """

    queries: list[str]
    documents: list[str]
    positive_B: Tensor
    owner_M: Tensor
    false_negative_mask_BM: Tensor
    same_query_mask_BB: Tensor
    score_M: Tensor | None = None

    task: Task = "retrieval"

    @property
    def size(self) -> int:
        """Number of queries."""
        return len(self.queries)

    @property
    def text_groups(self) -> TextGroups:
        """The texts to encode."""
        return [("query", self.queries), ("document", self.documents)]

    @property
    def own_mask(self) -> Tensor:
        """True where a document is the query's positive or one of its hard negatives [B, M]."""
        return self.owner_M[None, :] == torch.arange(self.size)[:, None]

    @property
    def hard_negative_mask(self) -> Tensor:
        """True where a document is a hard negative of the query."""
        own = self.own_mask
        own[torch.arange(self.size), self.positive_B] = False
        return own

    @property
    def scored_mask(self) -> Tensor:
        """True where a document is in the query's list: its positive and hard negatives that a teacher has scored.

        A query whose positive has no score, or none of whose negatives has one, has no list
        [B, M].
        """
        if self.score_M is None:
            return torch.zeros(self.size, len(self.documents), dtype=torch.bool)
        listed = self.own_mask & ~self.score_M.isnan()[None, :] & ~self.false_negative_mask_BM
        has_list = listed[torch.arange(self.size), self.positive_B] & (listed.sum(1) > 1)
        return listed & has_list[:, None]


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Pairs of texts, their ordinal scores, and the number of the dataset on whose scale each score is."""

    texts_a: list[str]
    texts_b: list[str]
    score_P: Tensor
    scale_P: Tensor

    task: Task = "pair"

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.texts_a)

    @property
    def text_groups(self) -> TextGroups:
        """The texts to encode."""
        return [("document", self.texts_a), ("document", self.texts_b)]


@dataclass(frozen=True, slots=True)
class ClassificationBatch:
    """Texts, a positive for each, and the whole batch's negatives with their labels."""

    texts: list[str]
    positives: list[str]
    negatives: list[str]
    label_B: Tensor
    negative_label_M: Tensor

    task: Task = "classification"

    @property
    def size(self) -> int:
        """Number of texts without positives and negatives."""
        return len(self.texts)

    @property
    def text_groups(self) -> TextGroups:
        """The texts to encode."""
        return [("document", self.texts), ("document", self.positives), ("document", self.negatives)]


Batch = RetrievalBatch | PairBatch | ClassificationBatch


def build_batches(
    planned: PlannedBatch, data: Mapping[str, TrainingSet], *, negatives_per_query: int, seed: int
) -> list[Batch]:
    """The global batch of a step: one batch of each task in the plan; several only where grouping is "none".

    Args:
        planned: The rows of the step.
        data: Dataset name -> its examples; at least the planned datasets.
        negatives_per_query: Hard negatives drawn per example; fewer where it has fewer.
        seed: Of the run.
    """
    builders = {"retrieval": _retrieval, "pair": _pairs, "classification": _classification}
    batches = []
    for number, task in enumerate(TASKS):
        parts = [(part, data[part.dataset]) for part in planned.parts if part.task == task]
        if parts:
            generator = np.random.default_rng([seed, 3, planned.step, number])
            batches.append(builders[task](parts, negatives_per_query, generator))
    return batches


Parts = Sequence[tuple[PlannedRows, TrainingSet]]


def _pairs(parts: Parts, count: int, generator: np.random.Generator) -> Batch:
    del count, generator  # nothing is drawn
    found = [
        (data.prompt, one, number)
        for number, (planned, data) in enumerate(parts)
        for one in data.take(planned.rows)
        if isinstance(one, PairExample)
    ]
    return PairBatch(
        [prompt.query(one.text_a) for prompt, one, _ in found],
        [prompt.document(one.text_b) for prompt, one, _ in found],
        torch.tensor([one.score for _, one, _ in found], dtype=torch.float64),
        torch.tensor([number for _, _, number in found]),
    )


def _retrieval(parts: Parts, count: int, generator: np.random.Generator) -> Batch:
    found = [
        (data.prompt.with_instruction(one.instruction), one)
        for planned, data in parts
        for one in data.take(planned.rows)
        if isinstance(one, RetrievalExample)
    ]
    examples = [one for _, one in found]
    places = [int(generator.integers(len(one.positives))) for one in examples]
    documents = [(prompt, one.positives[place]) for (prompt, one), place in zip(found, places, strict=True)]
    scores = [dict(enumerate(one.positive_scores)).get(place) for one, place in zip(examples, places, strict=True)]
    owners = list(range(len(found)))
    for number, (prompt, one) in enumerate(found):
        drawn = [one.negatives[place] for place in sorted(generator.permutation(len(one.negatives))[:count])]
        documents += [(prompt, negative.text) for negative in drawn]
        scores += [negative.score for negative in drawn]
        owners += [number] * len(drawn)
    return RetrievalBatch(
        [prompt.query(one.query) for prompt, one in found],
        [prompt.document(text) for prompt, text in documents],
        torch.arange(len(found)),
        torch.tensor(owners),
        _false_negatives(examples, [text for _, text in documents]),
        _same_queries(examples),
        torch.tensor([math.nan if score is None else score for score in scores]),
    )


def _false_negatives(examples: Sequence[RetrievalExample], documents: Sequence[str]) -> Tensor:
    """True [B, M] where a document answers a query and is not its drawn positive."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(documents):
        places.setdefault(normalized_text(text), []).append(place)
    mask_BM = torch.zeros(len(examples), len(documents), dtype=torch.bool)
    for row, relevant in enumerate(relevant_keys(examples)):
        mask_BM[row, [place for key in relevant for place in places.get(key, ())]] = True
        mask_BM[row, row] = False  # the positive itself stays
    return mask_BM


def _same_queries(examples: Sequence[RetrievalExample]) -> Tensor:
    """True [B, B] where two queries are the same text or a paraphrase and its original; also on the diagonal."""
    _, family_B = np.unique([origin_id(one) for one in examples], return_inverse=True)
    _, query_B = np.unique([normalized_text(one.query) for one in examples], return_inverse=True)
    return torch.from_numpy((query_B[:, None] == query_B) | (family_B[:, None] == family_B))


def _classification(parts: Parts, count: int, generator: np.random.Generator) -> Batch:
    """Positive: another text of the class; negatives: texts of other classes, drawn by class, then text."""
    texts: list[str] = []
    positives: list[str] = []
    negatives: list[str] = []
    labels: list[int] = []
    negative_labels: list[int] = []
    first = 0  # number of a dataset's first class: classes of different datasets are different
    for planned, data in parts:
        assert data.classes is not None
        same, others = _draw(planned, data.classes, count, generator)
        drawn = data.take(np.concatenate([planned.rows, same, others]))
        found = [one.text for one in drawn if isinstance(one, LabeledExample)]
        size, prompt = len(planned.rows), data.prompt
        texts += [prompt.query(text) for text in found[:size]]
        positives += [prompt.document(text) for text in found[size : 2 * size]]
        negatives += [prompt.document(text) for text in found[2 * size :]]
        labels += (first + data.classes.number_N[planned.rows]).tolist()
        negative_labels += (first + data.classes.number_N[others]).tolist()
        first += len(data.classes)
    return ClassificationBatch(
        texts, positives, negatives, torch.tensor(labels), torch.tensor(negative_labels, dtype=torch.int64)
    )


def _draw(
    planned: PlannedRows, classes: Classes, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """For each planned row another row of its class, and ``count`` rows of other classes (none if there are none)."""
    positives, negatives = [], []
    for row in planned.rows:
        own = int(classes.number_N[row])
        same = classes.members(own)
        # the last member stands in for the row itself, so that each of the others is as likely
        place = int(generator.integers(len(same) - 1))
        positives.append(same[place] if same[place] != row else same[-1])
        for _ in range(count if len(classes) > 1 else 0):
            other = (own + 1 + int(generator.integers(len(classes) - 1))) % len(classes)
            negatives.append(generator.choice(classes.members(other)))
    return np.array(positives, dtype=np.int64), np.array(negatives, dtype=np.int64)
