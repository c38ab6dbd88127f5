"""Which rows are asked about, and in which words."""

import json
import typing
from dataclasses import replace

import pytest

from qzhou.config.synthesis import FiltersSection
from qzhou.data.records import Document, Drop, LabeledExample, PairExample, RetrievalExample, Source
from qzhou.synthesis.chat import Answer
from qzhou.synthesis.parsing import parse
from qzhou.synthesis.techniques import (
    DIFFICULTIES,
    QUESTION_TYPES,
    TECHNIQUES,
    VERSION,
    SynthesisTechnique,
    draw,
    length_of,
    personas,
    prompt_language,
    query_requests,
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

    assert json.loads(request.user) == {
        "technique": "augmentation",
        "query": "why?",
        "positive": "because",
        "length": {"query": "about 1 words", "positive": "about 1 words"},
    }
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert request.prompt == f"augmentation.en@{VERSION}"


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
    assert wanted in system_prompt(f"{technique}.{language}@{VERSION}")


def test_the_prompts_name_every_choice():
    for language in ("en", "zh"):
        prompt = system_prompt(f"query.{language}@{VERSION}")
        assert all(f"`{one}`" in prompt for one in (*QUESTION_TYPES, *DIFFICULTIES))
        assert len(personas(language)) == len(set(personas(language))) >= 40


@pytest.mark.parametrize("technique", ["paraphrase", "augmentation", "hard_negative"])
def test_examples_vary_from_row_to_row_and_stand_behind_what_all_prompts_share(technique):
    rows = [RetrievalExample(id=str(n), dataset="d", query=f"why {n}?", positives=(f"so {n}",)) for n in range(40)]

    prompts = {requests_for(row, technique)[0].messages[0]["content"] for row in rows}

    shared = system_prompt(f"{technique}.en@{VERSION}")
    assert len(prompts) == 4
    assert all(one.startswith(shared + "\n\n") for one in prompts)


def examples_of_prompts():
    for technique in ("paraphrase", "augmentation", "hard_negative"):
        for language, texts in (("en", "why {}?"), ("zh", "第{}个问题是什么？")):
            rows = [
                RetrievalExample(id=str(n), dataset="d", query=texts.format(n), positives=("x",)) for n in range(40)
            ]
            shown = {requests_for(row, technique)[0].messages[0]["content"].splitlines()[-1] for row in rows}
            for one in sorted(shown):
                start = one.index("{")
                request, end = json.JSONDecoder().raw_decode(one, start)
                answer, _ = json.JSONDecoder().raw_decode(one, one.index("{", end))
                yield pytest.param(technique, language, request, answer, id=f"{technique}-{request['query'][:12]}")


@pytest.mark.parametrize(("technique", "language", "shown", "answer"), examples_of_prompts())
def test_every_example_passes_the_gates_that_answers_have_to_pass(technique, language, shown, answer):
    example = RetrievalExample(id="x", dataset="d", query=shown["query"], positives=(shown["positive"],))
    (asked,) = requests_for(example, technique)
    other = {"en": "zh", "zh": "en"}[language]  # whose examples are others, or this one would count as leaked
    said = Answer(key="k", model="m", content=json.dumps(answer), prompt_tokens=1, completion_tokens=1)

    found = parse(replace(asked, prompt=f"{technique}.{other}@{VERSION}"), example, said, FiltersSection())

    assert not isinstance(found, Drop), (found.reason, found.detail)
    assert asked.fields == shown, "as a request would say it"


def test_a_query_s_type_difficulty_and_length_are_drawn_and_the_persona_is_chosen_from_many():
    document = Document(id="d1", text="How glass is blown, cut and cooled, and what a kiln has to do with it.")
    many = [Document(id=f"d{n}", text=document.text) for n in range(60)]

    asked = [request.fields for one in many for request in query_requests(one, "d", seed=0, variants=2)]

    assert {one["question_type"] for one in asked} == set(QUESTION_TYPES)
    assert {one["difficulty"] for one in asked} == set(DIFFICULTIES)
    assert {one["words"] for one in asked if one["question_type"] == "keywords"} == {2, 3, 4, 6}
    pairs = zip(asked[::2], asked[1::2], strict=True)
    assert all(first["question_type"] != second["question_type"] for first, second in pairs)
    assert {len(one["personas"]) for one in asked} == {12}
    assert asked[0]["personas"][0].startswith("1: ")
    assert query_requests(document, "d", seed=0) == query_requests(document, "d", seed=0)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("How do bees find their way?", "about 6 words"),
        ("秋天的树叶为什么会变红？", "about 11 characters"),
        ("フランスの首都はどこですか、教えてください。", "about 20 characters"),
        ("เมืองหลวงของฝรั่งเศสคืออะไร", "about 23 characters"),
        ("프랑스의 수도는 어디입니까", "about 3 words"),
    ],
)
def test_a_length_is_in_what_a_language_counts_by(text, length):
    assert length_of(text) == length


@pytest.mark.parametrize(
    "text", ["Glass cools slowly.", "Glass is cut, ground and cooled slowly in a kiln.", "玻璃要慢慢冷却。"]
)
def test_no_query_is_asked_for_that_is_longer_than_its_document(text):
    for number in range(50):
        (request,) = query_requests(Document(id=str(number), text=text), "d", seed=0)
        characters = request.fields["words"] * (2 if prompt_language(text) == "zh" else 6)
        assert characters <= max(12, len(text))


def test_of_a_long_document_as_much_is_shown_as_an_encoder_reads():
    (english,) = query_requests(Document(id="e", text="word " * 900), "d", seed=0, max_tokens=100)
    (chinese,) = query_requests(Document(id="c", text="玻璃" * 900), "d", seed=0, max_tokens=100)

    assert (len(english.fields["document"]), len(chinese.fields["document"])) == (500, 200)


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
