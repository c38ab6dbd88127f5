"""Held-out queries among held-out documents, judged as the standard tool judges."""

import pytest
import pytrec_eval
import torch

from qzhou.data.prompts import Prompt
from qzhou.data.records import RetrievalExample
from qzhou.training.engine import TorchEngine
from qzhou.training.gradient_cache import embed
from qzhou.training.validation import Validation
from tests.ranks.problem import COLOURS, model_of, three_tasks


def examples():
    """Some queries are asked twice with different answers, some have two."""
    return [
        (
            Prompt("Find"),
            RetrievalExample(
                id=str(n), dataset="r", query=f"what is the {COLOURS[n // 2 * 2 % 11]}",
                positives=(f"the {colour} is a text", f"{colour} again")[: 1 + n % 2],
            ),
        )
        for n, colour in enumerate(COLOURS)
    ]  # fmt: skip


def test_ndcg_and_accuracy_are_those_of_trec_eval(make_recipe, tiny_qwen2):
    recipe, found = three_tasks(make_recipe), model_of(tiny_qwen2)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)
    validation = Validation.of(examples(), recipe, found.tokenizer, engine)

    scores = validation(engine)

    vectors = embed(validation.deal, engine.forward)
    count = len(validation.is_answer_QM)
    cosines = vectors[:count] @ vectors[count:].T
    qrels = {
        str(q): {str(m): 1 for m in row.nonzero()[:, 0].tolist()}
        for q, row in enumerate(validation.is_answer_QM)
    }
    ranked = {
        str(q): {str(m): float(score) for m, score in enumerate(row)}
        for q, row in enumerate(cosines)
    }
    judged = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "P.1"}).evaluate(ranked)
    assert scores["ndcg_at_10"] == pytest.approx(
        sum(one["ndcg_cut_10"] for one in judged.values()) / count, abs=1e-5
    )
    assert scores["accuracy"] == pytest.approx(
        sum(one["P_1"] for one in judged.values()) / count, abs=1e-5
    )
    assert validation.is_answer_QM.sum(1).max() > 2  # the same query's answers are all answers


def test_without_held_out_rows_there_is_nothing_to_validate(make_recipe, tiny_qwen2):
    recipe, found = three_tasks(make_recipe), model_of(tiny_qwen2)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)

    assert Validation.of([], recipe, found.tokenizer, engine) is None
    assert isinstance(engine.full_state(), dict)
    assert torch.is_tensor(next(iter(engine.full_state().values())))
