"""Validation: held-out queries among held-out documents."""

import dataclasses
import math

import pytest
import torch

from qzhou.data.prompts import Prompt
from qzhou.data.records import Negative, RetrievalExample
from qzhou.errors import DataError
from qzhou.training.examples import TrainingSet
from qzhou.training.gradient_cache import embed
from qzhou.training.validation import ClassificationSet, PairSet, RetrievalSet, Validation, overall, set_aside_sets
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
    validation = Validation.of([RetrievalSet.of(examples())], recipe, found.tokenizer, engine)
    (retrieval,) = validation.sets

    scores = validation(engine)

    vectors = embed(validation.texts, engine.forward)
    count = len(retrieval.qrels)
    ndcg, first = [], []
    for q, relevant in enumerate(retrieval.qrels.values()):
        cosines = (vectors[q] @ vectors[count:].T).tolist()
        ranking = sorted(range(len(cosines)), key=lambda m: -cosines[m])[:10]
        gain = sum(1 / math.log2(k + 2) for k, m in enumerate(ranking) if str(m) in relevant)
        ndcg.append(gain / sum(1 / math.log2(k + 2) for k in range(min(10, len(relevant)))))
        first.append(str(ranking[0]) in relevant)
    assert scores["ndcg_at_10"] == pytest.approx(sum(ndcg) / count, abs=1e-5)
    assert scores["accuracy"] == pytest.approx(sum(first) / count, abs=1e-5)
    # examples with the same query have their answers in common
    assert max(map(len, retrieval.qrels.values())) > 2


def test_without_held_out_rows_there_is_nothing_to_validate(make_recipe, tiny_qwen2):
    recipe, found = three_tasks(make_recipe), model_of(tiny_qwen2)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)

    assert Validation.of([], recipe, found.tokenizer, engine) is None
    assert isinstance(engine.full_state(), dict)
    assert torch.is_tensor(next(iter(engine.full_state().values())))


def circle(*degrees):
    """Unit vectors of the plane by their angles."""
    return torch.tensor([[math.cos(math.radians(one)), math.sin(math.radians(one))] for one in degrees])


@pytest.mark.parametrize(
    ("angles", "scores", "expected"),
    [
        ((10, 20, 30), (3, 2, 1), 1.0),
        ((10, 20, 30), (1, 2, 3), -1.0),
        ((10, 20, 30), (2, 3, 1), 0.5),
        ((10, 20, 30), (1, 1, 1), None),
    ],
)
def test_pairs_are_scored_by_the_order_of_their_cosines(angles, scores, expected):
    pairs = PairSet(["a"] * 3, ["b"] * 3, list(scores))

    found = pairs.scores(torch.cat([circle(0, 0, 0), circle(*angles)]))

    assert found.get("spearman") == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("aabb", {"nearest_label": 1.0}),
        ("abab", {"nearest_label": 0.0}),
        ("aabc", {"nearest_label": 1.0}),  # b and c have no other text of their class
        ("abcd", {}),
    ],
)
def test_texts_are_scored_by_the_class_of_their_nearest_neighbour(labels, expected):
    found = ClassificationSet(list("wxyz"), list(labels)).scores(circle(0, 10, 90, 100))

    assert found == expected


def test_the_score_is_the_mean_over_tasks_whatever_the_number_of_their_sets():
    assert overall({"ndcg_at_10": 0.6, "accuracy": 0.1, "spearman": 0.2}) == pytest.approx(0.4)
    with pytest.raises(DataError, match=r"all pairs have the same score.*Set it to 'last'"):
        overall({"accuracy": 0.1})


def test_queries_that_are_set_aside_look_among_negatives_and_the_answers_of_other_rows():
    aside = RetrievalExample(
        id="aside",
        dataset="r",
        query="who",
        positives=("answer",),
        negatives=(Negative(text="no", origin="mined"),),
    )
    trained = [RetrievalExample(id=str(n), dataset="r", query=f"q{n}", positives=(f"p{n}",)) for n in range(2_000)]
    data = dataclasses.replace(TrainingSet.of("r", Prompt("Find"), trained), set_aside=(aside,))

    (found,) = set_aside_sets({"r": data, "other": TrainingSet.of("other", Prompt(), trained)})

    assert found.queries == [Prompt("Find").query("who")]
    assert found.documents[:2] == ["answer", "no"]
    assert found.qrels == {"0": {"0": 1}}
    # from the whole of the rows
    assert (len(found.documents), found.documents[-1]) == (1_000, "p1994")
