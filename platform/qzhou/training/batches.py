"""Rows of a dataset to the texts, targets and masks of one global batch.

Every rank builds the whole batch, which costs nothing beside encoding it, so that losses and masks
need no communication. Choices inside a batch (which positive, which negatives) follow from (seed, step).

Shape letters in this file: B queries or texts, M documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qzhou.prompts import Prompt
from qzhou.records import Example, LabeledExample, PairExample, RetrievalExample, answers, family, text_key
from qzhou.training.plan import PlannedBatch

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The examples of one dataset in memory, with how their texts are presented.

    ``rows_by_label`` is there for classification alone: where the texts of each class stand.
    """

    name: str
    prompt: Prompt
    examples: Sequence[Example]
    rows_by_label: Mapping[str, Ints]

    @classmethod
    def of(cls, name: str, prompt: Prompt, examples: Sequence[Example]) -> TrainingSet:
        """Classes with a single text are left out: it could have no positive."""
        by_label: dict[str, list[int]] = {}
        for example in examples:
            if isinstance(example, LabeledExample):
                by_label.setdefault(example.label, []).append(0)
        kept = [
            one for one in examples if not isinstance(one, LabeledExample) or len(by_label[one.label]) > 1
        ]  # fmt: skip
        rows: dict[str, list[int]] = {}
        for row, example in enumerate(kept):
            if isinstance(example, LabeledExample):
                rows.setdefault(example.label, []).append(row)
        return cls(name, prompt, kept, {label: np.array(found) for label, found in rows.items()})


@dataclass(frozen=True, slots=True)
class RetrievalBatch:
    """Texts carry their prompts. ``positive_B`` and the masks are as :func:`losses.info_nce` takes them.

    ``owner_M`` is the query whose positive or hard negative each document is.
    """

    queries: list[str]
    documents: list[str]
    positive_B: Tensor
    owner_M: Tensor
    blocked_document_BM: Tensor
    blocked_query_BB: Tensor


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Two texts a pair, and their ordinal scores."""

    texts_a: list[str]
    texts_b: list[str]
    score_P: Tensor


@dataclass(frozen=True, slots=True)
class ClassificationBatch:
    """Texts, one positive each, and the negatives of the whole batch with their labels."""

    texts: list[str]
    positives: list[str]
    negatives: list[str]
    label_B: Tensor
    negative_label_M: Tensor


Batch = RetrievalBatch | PairBatch | ClassificationBatch


def build_batch(planned: PlannedBatch, data: TrainingSet, *, negatives_per_query: int, seed: int) -> Batch:
    """The global batch of a step.

    Args:
        data: The planned dataset.
        negatives_per_query: Hard negatives drawn per example; fewer where an example has fewer.
        seed: Of the run.
    """
    generator = np.random.default_rng([seed, 3, planned.step])
    examples = [data.examples[row] for row in planned.rows]
    if planned.task == "pair":
        pairs = [one for one in examples if isinstance(one, PairExample)]
        return PairBatch(
            [data.prompt.query(one.text_a) for one in pairs],
            [data.prompt.document(one.text_b) for one in pairs],
            torch.tensor([one.score for one in pairs], dtype=torch.float64),
        )
    if planned.task == "classification":
        labeled = [one for one in examples if isinstance(one, LabeledExample)]
        return _classification(labeled, planned.rows, data, negatives_per_query, generator)
    retrieval = [one for one in examples if isinstance(one, RetrievalExample)]
    return _retrieval(retrieval, data.prompt, negatives_per_query, generator)


def _retrieval(
    examples: Sequence[RetrievalExample], prompt: Prompt, count: int, generator: np.random.Generator
) -> RetrievalBatch:
    positives = [one.positives[generator.integers(len(one.positives))] for one in examples]
    negatives, owners = [], list(range(len(examples)))
    for number, one in enumerate(examples):
        drawn = generator.permutation(len(one.negatives))[:count]
        negatives += [one.negatives[place].text for place in sorted(drawn)]
        owners += [number] * len(drawn)
    documents = positives + negatives
    keys = [text_key(text) for text in documents]
    blocked = np.array([[key in own for key in keys] for own in answers(examples)])
    blocked[np.arange(len(examples)), np.arange(len(examples))] = False  # the positive itself stays
    families = np.array([family(one) for one in examples])
    query_keys = np.array([text_key(one.query) for one in examples])
    same = (query_keys[:, None] == query_keys[None, :]) | (families[:, None] == families[None, :])
    return RetrievalBatch(
        [prompt.query(one.query) for one in examples],
        [prompt.document(text) for text in documents],
        torch.arange(len(examples)),
        torch.tensor(owners),
        torch.from_numpy(blocked),
        torch.from_numpy(same),
    )


def _classification(
    examples: Sequence[LabeledExample],
    rows: Ints,
    data: TrainingSet,
    count: int,
    generator: np.random.Generator,
) -> ClassificationBatch:
    """Positive: another text of the class; negatives: texts of other classes, drawn by class, then text."""
    labels = list(data.rows_by_label)
    number_of = {label: number for number, label in enumerate(labels)}
    positives, negatives, negative_labels = [], [], []
    for row, example in zip(rows, examples, strict=True):
        same = data.rows_by_label[example.label]
        others = same[same != row]
        positives.append(int(others[generator.integers(len(others))]))
        for _ in range(count if len(labels) > 1 else 0):
            step = 1 + int(generator.integers(len(labels) - 1))
            label = labels[(number_of[example.label] + step) % len(labels)]
            negatives.append(int(generator.choice(data.rows_by_label[label])))
            negative_labels.append(number_of[label])
    return ClassificationBatch(
        [data.prompt.query(one.text) for one in examples],
        [data.prompt.document(_text(data, row)) for row in positives],
        [data.prompt.document(_text(data, row)) for row in negatives],
        torch.tensor([number_of[one.label] for one in examples]),
        torch.tensor(negative_labels, dtype=torch.int64),
    )


def _text(data: TrainingSet, row: int) -> str:
    example = data.examples[row]
    assert isinstance(example, LabeledExample)
    return example.text
