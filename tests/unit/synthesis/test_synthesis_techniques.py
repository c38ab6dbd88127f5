"""Which rows are asked about, and in which words."""

import json

import pytest

from qzhou.records import LabeledExample, PairExample, RetrievalExample, Source
from qzhou.synthesis.techniques import PROMPTS, TECHNIQUES, chosen, requests_for, side_to_paraphrase, system_prompt


def labeled(number: int, technique: str = "raw") -> LabeledExample:
    return LabeledExample(
        id=f"id{number}", dataset="d", text=f"text {number}", label="a", source=Source(technique=technique)
    )


def test_the_same_rows_are_chosen_whatever_their_order():
    rows = [labeled(number) for number in range(50)]

    first = chosen(rows, "paraphrase", rows=10, seed=3)

    assert len(first) == 10
    assert chosen(rows[::-1], "paraphrase", rows=10, seed=3) == first


def test_more_rows_keep_those_chosen_before():
    rows = [labeled(number) for number in range(50)]

    assert chosen(rows, "paraphrase", rows=20, seed=3)[:10] == chosen(rows, "paraphrase", rows=10, seed=3)


def test_seeds_and_techniques_choose_different_rows():
    rows = [labeled(number) for number in range(50)]

    draws = [chosen(rows, "paraphrase", rows=10, seed=3), chosen(rows, "paraphrase", rows=10, seed=4)]
    draws.append(chosen(rows, "hard_negative", rows=10, seed=3))

    assert len({tuple(row.id for row in draw) for draw in draws}) == 3


def test_only_raw_rows_are_synthesised_from():
    rows = [labeled(0, "paraphrase"), labeled(1), labeled(2, "augmentation")]

    assert chosen(rows, "paraphrase", rows=3, seed=0) == [labeled(1)]


def test_a_retrieval_request_carries_query_and_first_positive():
    example = RetrievalExample(id="x", dataset="d", query="why?", positives=("because", "so"))

    request = requests_for(example, "augmentation")

    assert json.loads(request.user) == {"technique": "augmentation", "query": "why?", "positive": "because"}
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert request.prompt == "augment.en@v1"


def test_a_pair_request_carries_one_side_and_both_sides_get_their_turn():
    pairs = [PairExample(id=f"p{n}", dataset="d", text_a="left", text_b="right", score=1.0) for n in range(20)]

    texts = {(side_to_paraphrase(pair), json.loads(requests_for(pair, "paraphrase").user)["text"]) for pair in pairs}

    assert texts == {("text_a", "left"), ("text_b", "right")}


def test_pairs_and_labelled_texts_are_only_paraphrased():
    assert TECHNIQUES["pair"] == TECHNIQUES["classification"] == ("paraphrase",)


@pytest.mark.parametrize("label", PROMPTS.values())
def test_every_prompt_is_there_and_asks_for_json(label):
    assert "JSON object" in system_prompt(label)
