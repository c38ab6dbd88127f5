"""Validation: held-out queries among held-out documents."""

import math

import pytest
import torch

from qzhou.data.prompts import Prompt
from qzhou.data.records import RetrievalExample
from qzhou.training.gradient_cache import embed
from qzhou.training.validation import Validation
from tests.ranks.problem import COLOURS, model_of, three_tasks
from tests.torch_engine import TorchEngine


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


def test_ndcg_and_accuracy_are_their_formulas_in_loops(make_recipe, tiny_qwen2):
    recipe, found = three_tasks(make_recipe), model_of(tiny_qwen2)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)
    validation = Validation.of(examples(), recipe, found.tokenizer, engine)

    scores = validation(engine)

    vectors = embed(validation.texts, engine.forward)
    count = len(validation.qrels)
    ndcg, first = [], []
    for q, relevant in enumerate(validation.qrels.values()):
        cosines = (vectors[q] @ vectors[count:].T).tolist()
        ranking = sorted(range(len(cosines)), key=lambda m: -cosines[m])[:10]
        gain = sum(1 / math.log2(k + 2) for k, m in enumerate(ranking) if str(m) in relevant)
        ndcg.append(gain / sum(1 / math.log2(k + 2) for k in range(min(10, len(relevant)))))
        first.append(str(ranking[0]) in relevant)
    assert scores["ndcg_at_10"] == pytest.approx(sum(ndcg) / count, abs=1e-5)
    assert scores["accuracy"] == pytest.approx(sum(first) / count, abs=1e-5)
    # examples with the same query have their answers in common
    assert max(map(len, validation.qrels.values())) > 2


def test_without_held_out_rows_there_is_nothing_to_validate(make_recipe, tiny_qwen2):
    recipe, found = three_tasks(make_recipe), model_of(tiny_qwen2)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)

    assert Validation.of([], recipe, found.tokenizer, engine) is None
    assert isinstance(engine.full_state(), dict)
    assert torch.is_tensor(next(iter(engine.full_state().values())))
