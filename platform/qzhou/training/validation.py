"""A quick look at how well the model retrieves while it trains: held-out queries among held-out documents.

Shape letters in this file: Q queries, M documents, K ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pytrec_eval

from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt
from qzhou.data.records import RetrievalExample, normalized_text, stable_id
from qzhou.data.storage import Folder, read_records
from qzhou.encoder.encoder import token_ids
from qzhou.run.files import held_out_places
from qzhou.training.engine import Engine
from qzhou.training.gradient_cache import embed
from qzhou.training.sharding import ShardedBatch, shard_batch

QUERIES, DOCUMENTS = 200, 1_000  # of all datasets together; seconds on a GPU
RANKS = 10


@dataclass(frozen=True, slots=True)
class Validation:
    """Queries and documents, and which documents are relevant to each query.

    Attributes:
        texts: Token ids of the queries and then of the documents.
        qrels: Number of a query -> number of each relevant document -> 1.
    """

    texts: ShardedBatch
    qrels: dict[str, dict[str, int]]

    @classmethod
    def of(
        cls, examples: Sequence[tuple[Prompt, RetrievalExample]], recipe: Recipe, tokenizer: Any, engine: Engine
    ) -> Validation | None:
        """Validation on a sample of held-out examples, drawn by hash; None without any."""
        shuffled = sorted(examples, key=lambda one: stable_id("validation", one[1].id))
        asked = shuffled[:QUERIES]
        if not asked:
            return None
        documents: dict[str, str] = {}
        for place, (prompt, one) in enumerate(shuffled):
            if len(documents) < DOCUMENTS or place < QUERIES:
                documents |= {normalized_text(text): prompt.document(text) for text in one.positives}
        number = {key: str(place) for place, key in enumerate(documents)}
        # examples with the same query have all their positives in common
        relevant: dict[str, dict[str, int]] = {}
        for _, one in shuffled:
            keys = map(normalized_text, one.positives)
            own = {number[key]: 1 for key in keys if key in number}
            relevant.setdefault(normalized_text(one.query), {}).update(own)
        queries = [prompt.query(one.query) for prompt, one in asked]
        model = recipe.model
        ids = token_ids(tokenizer, queries, max_tokens=model.max_query_tokens)
        ids += token_ids(tokenizer, list(documents.values()), max_tokens=model.max_document_tokens)
        texts = shard_batch(
            ids,
            rank=engine.rank,
            world=engine.world,
            micro_batch_tokens=engine.micro_batch_tokens,
            packed=engine.packed,
        )
        qrels = {str(q): relevant[normalized_text(one.query)] for q, (_, one) in enumerate(asked)}
        return cls(texts, qrels)

    def __call__(self, engine: Engine) -> dict[str, float]:
        """``ndcg_at_10``; ``accuracy``: share of queries with a relevant first document."""
        vectors = embed(self.texts, engine.forward).float().cpu()
        score_QM = vectors[: len(self.qrels)] @ vectors[len(self.qrels) :].T
        best = score_QM.topk(min(RANKS, score_QM.shape[1]), dim=1)
        rankings = {
            str(q): dict(zip(map(str, documents), scores, strict=True))
            for q, (documents, scores) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        }
        evaluator = pytrec_eval.RelevanceEvaluator(self.qrels, {"ndcg_cut.10", "P.1"})
        measures = evaluator.evaluate(rankings).values()
        return {
            "ndcg_at_10": round(fmean(one["ndcg_cut_10"] for one in measures), 6),
            "accuracy": round(fmean(one["P_1"] for one in measures), 6),
        }


def held_out_examples(recipe: Recipe, run_folder: Folder) -> list[tuple[Prompt, RetrievalExample]]:
    """The retrieval examples that no stage trains on, with their prompts."""
    return [
        (dataset.prompt.with_instruction(one.instruction), one)
        for dataset in recipe.datasets
        for place in held_out_places(run_folder, "retrieval", dataset.name)
        for one in read_records(place, RetrievalExample)
    ]
