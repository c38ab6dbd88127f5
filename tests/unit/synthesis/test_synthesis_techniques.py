"""Which rows are asked about, and in which words."""

import json
import typing

import pytest

from qzhou.data.records import LabeledExample, PairExample, RetrievalExample, Source
from qzhou.synthesis.techniques import (
    PROMPT_NAMES,
    QUESTION_TYPES,
    TECHNIQUES,
    VERSION,
    SynthesisTechnique,
    draw,
    personas,
    prompt_language,
    requests_for,
    side_to_paraphrase,
    system_prompt,
)


def labeled(number: int, technique: str = "raw") -> LabeledExample:
    return LabeledExample(
        id=f"id{number}", dataset="d", text=f"text {number}", label="a", source=Source(technique=technique)
    )


def test_the_same_rows_are_chosen_whatever_their_order():
    rows = [labeled(number) for number in range(50)]

    first = draw(rows, "paraphrase", count=10, seed=3)

    assert len(first) == 10
    assert draw(rows[::-1], "paraphrase", count=10, seed=3) == first


def test_more_rows_keep_those_chosen_before():
    rows = [labeled(number) for number in range(50)]

    assert draw(rows, "paraphrase", count=20, seed=3)[:10] == draw(rows, "paraphrase", count=10, seed=3)


def test_seeds_and_techniques_choose_different_rows():
    rows = [labeled(number) for number in range(50)]

    draws = [draw(rows, "paraphrase", count=10, seed=3), draw(rows, "paraphrase", count=10, seed=4)]
    draws.append(draw(rows, "hard_negative", count=10, seed=3))

    assert len({tuple(row.id for row in draw) for draw in draws}) == 3


def test_a_retrieval_request_carries_query_and_first_positive():
    example = RetrievalExample(id="x", dataset="d", query="why?", positives=("because", "so"))

    (request,) = requests_for(example, "augmentation")

    assert json.loads(request.user) == {"technique": "augmentation", "query": "why?", "positive": "because"}
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert request.prompt == f"augment.en@{VERSION}"


def test_a_pair_request_carries_one_side_and_both_sides_get_their_turn():
    pairs = [PairExample(id=f"p{n}", dataset="d", text_a="left", text_b="right", score=1.0) for n in range(20)]

    texts = {(side_to_paraphrase(pair), requests_for(pair, "paraphrase")[0].fields["text"]) for pair in pairs}

    assert texts == {("text_a", "left"), ("text_b", "right")}


def test_pairs_and_labelled_texts_are_only_paraphrased():
    assert TECHNIQUES["pair"] == TECHNIQUES["classification"] == ("paraphrase",)


@pytest.mark.parametrize("technique", typing.get_args(SynthesisTechnique))
@pytest.mark.parametrize(
    ("language", "wanted"), [("en", "one JSON object and nothing else"), ("zh", "只回答一个 JSON 对象")]
)
def test_every_prompt_is_there_in_both_languages_and_asks_for_json(technique, language, wanted):
    name = PROMPT_NAMES.get(technique, technique)
    assert wanted in system_prompt(f"{name}.{language}@{VERSION}")


def test_the_prompts_name_every_choice():
    for language in ("en", "zh"):
        prompt = system_prompt(f"query_configuration.{language}@{VERSION}")
        assert all(f"`{one}`" in prompt for one in QUESTION_TYPES)
        assert len(personas(language)) == len(set(personas(language))) >= 20


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("秋天的树叶为什么会变红？", "zh"),
        ("使用 numpy.sum 计算数组元素之和。", "zh"),
        ("Why do leaves turn red?", "en"),
        ("フランスの首都はどこですか", "en"),
        ("프랑스의 수도는 어디입니까", "en"),
        ("The character 火 means fire.", "en"),
    ],
)
def test_chinese_texts_are_asked_about_in_chinese(text, language):
    assert prompt_language(text) == language
    row = LabeledExample(id="x", dataset="d", text=text, label="a")
    assert requests_for(row, "paraphrase")[0].prompt == f"paraphrase.{language}@{VERSION}"
