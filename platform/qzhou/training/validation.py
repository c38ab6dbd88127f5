"""A quick look at how well the model retrieves while it trains: held-out queries among held-out documents.

Shape letters in this file: Q queries, M documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt
from qzhou.data.records import RetrievalExample, normalized_text, stable_id
from qzhou.data.storage import Folder, read_records
from qzhou.encoder.encoder import token_ids
from qzhou.training.deal import Deal, deal
from qzhou.training.engine import Engine
from qzhou.training.gradient_cache import embed

QUERIES, DOCUMENTS = 200, 1_000  # of all datasets together; seconds on a GPU
RANKS = 10


@dataclass(frozen=True, slots=True)
class Validation:
    """Queries, and which documents answer each.

    Attributes:
        deal: Token ids of the queries and then of the documents.
        is_answer_QM: True where a document answers a query.
    """

    deal: Deal
    is_answer_QM: Tensor

    @classmethod
    def of(
        cls,
        examples: Sequence[tuple[Prompt, RetrievalExample]],
        recipe: Recipe,
        tokenizer: Any,
        engine: Engine,
    ) -> Validation | None:
        """A sample, drawn by hash, of held-out examples; None if there are none."""
        chosen = sorted(examples, key=lambda one: stable_id("validation", one[1].id))
        asked = chosen[:QUERIES]
        if not asked:
            return None
        documents: dict[str, str] = {}
        for prompt, one in chosen:
            if len(documents) < DOCUMENTS or any(one is other for _, other in asked):
                documents |= {
                    normalized_text(text): prompt.document(text) for text in one.positives
                }
        number = {key: place for place, key in enumerate(documents)}
        is_answer_QM = torch.zeros(len(asked), len(documents), dtype=torch.bool)
        answers: dict[str, set[int]] = {}
        for _, one in chosen:
            own = {
                number[normalized_text(text)]
                for text in one.positives
                if normalized_text(text) in number
            }
            answers.setdefault(normalized_text(one.query), set()).update(own)
        for row, (_, one) in enumerate(asked):
            is_answer_QM[row, sorted(answers[normalized_text(one.query)])] = True
        queries = [prompt.query(one.query) for prompt, one in asked]
        ids = token_ids(tokenizer, queries, max_tokens=recipe.model.max_query_tokens)
        ids += token_ids(
            tokenizer, list(documents.values()), max_tokens=recipe.model.max_document_tokens
        )
        dealt = deal(
            ids, rank=engine.rank, world=engine.world, micro_batch_tokens=engine.micro_batch_tokens
        )
        return cls(dealt, is_answer_QM)

    def __call__(self, engine: Engine) -> dict[str, float]:
        """``ndcg_at_10``, and ``accuracy``: the share of queries whose first document answers."""
        vectors = embed(self.deal, engine.forward).float().cpu()
        count = len(self.is_answer_QM)
        best_QK = (
            (vectors[:count] @ vectors[count:].T)
            .topk(min(RANKS, self.is_answer_QM.shape[1]), dim=1)
            .indices
        )
        gain_QK = self.is_answer_QM.gather(1, best_QK).double()
        discount_K = 1 / torch.arange(2, RANKS + 2, dtype=torch.float64).log2()
        reached_Q = (gain_QK * discount_K[: gain_QK.shape[1]]).sum(1)
        answers_Q = self.is_answer_QM.sum(1).clamp(1, RANKS)
        ideal_Q = discount_K.cumsum(0)[answers_Q - 1]
        return {
            "ndcg_at_10": round(float((reached_Q / ideal_Q).mean()), 6),
            "accuracy": round(float(gain_QK[:, 0].mean()), 6),
        }


def held_out(recipe: Recipe, run_folder: Folder) -> list[tuple[Prompt, RetrievalExample]]:
    """The retrieval examples that no stage trains on."""
    parent = run_folder / "transform" / "held_out" / "retrieval"
    found = []
    for dataset in recipe.datasets:
        found += [
            (dataset.prompt, one) for one in read_records(parent / dataset.name, RetrievalExample)
        ]
    return found
