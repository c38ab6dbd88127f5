import math

import pytest

from qzhou.errors import RecipeError
from qzhou.recipe import Dataset
from qzhou.records import Drop, stable_id
from qzhou.transform.rules import (
    columns_of,
    drop,
    labeled,
    nli,
    question_answer,
    scored_pair,
    swapped,
    title_body,
)


def dataset(rule, **settings):
    return Dataset.model_validate({"name": "d", "reader": "jsonl", "paths": ("x",), "rule": rule, **settings})


def test_a_title_asks_for_its_body():
    made = title_body({"title": " A  title ", "body": "Its\tbody"}, dataset("title_body"), 100)

    assert (made.query, made.positives, made.negatives) == ("A title", ("Its body",), ())
    assert made.id == stable_id("d", "A title", "Its body")


def test_columns_map_fields_of_the_rule_to_columns_of_the_row():
    renamed = dataset("question_answer", columns={"query": "q", "positive": "pos", "negative": "neg"})
    row = {"q": "why", "pos": ["because", "so", "so"], "neg": ["BECAUSE", "no", ""]}

    made = question_answer(row, renamed, 100)

    assert (made.query, made.positives) == ("why", ("because", "so"))
    assert [negative.text for negative in made.negatives] == ["no"]  # a positive never stands among the negatives
    assert {negative.origin for negative in made.negatives} == {"given"}


def test_question_and_answer_are_the_default_columns():
    made = question_answer({"question": "why", "answer": "because"}, dataset("question_answer"), 100)

    assert (made.query, made.positives) == ("why", ("because",))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"title": " ", "body": "text"}, "blank_query"),
        ({"body": "text"}, "blank_query"),
        ({"title": "text", "body": None}, "blank_positive"),
        ({"title": "text", "body": math.nan}, "blank_positive"),
        ({"title": "text", "body": "abcd"}, "short_positive"),
        ({"title": "Same text", "body": "same  TEXT"}, "query_equals_positive"),
    ],
)
def test_a_retrieval_row_is_dropped_with_its_reason_and_the_raw_row(row, reason):
    made = title_body(row, dataset("title_body", min_positive_chars=5), 100)

    assert isinstance(made, Drop)
    assert (made.stage, made.dataset, made.reason) == ("transform", "d", reason)
    assert all(key in made.record for key in row)


def test_a_label_may_be_a_number_and_neither_side_may_be_blank():
    rule = dataset("labeled")

    made = labeled({"text": "hello", "label": 0}, rule, 100)

    assert (made.text, made.label) == ("hello", "0")
    assert labeled({"text": "", "label": 1}, rule, 100).reason == "blank_text"
    assert labeled({"text": "hello", "label": None}, rule, 100).reason == "blank_label"


@pytest.mark.parametrize(
    ("value", "score"), [(3, 3.0), ("3.8", 3.8), (" Yes ", 1.0), (False, 0.0), ("true", 1.0), ("no", 0.0)]
)
def test_a_score_is_a_number_or_yes_and_no(value, score):
    made = scored_pair({"text_a": "a", "text_b": "b", "score": value}, dataset("scored_pair"), 100)

    assert (made.text_a, made.text_b, made.score) == ("a", "b", score)


@pytest.mark.parametrize("value", [None, "high", math.nan, math.inf, [1]])
def test_what_is_no_score_is_dropped(value):
    made = scored_pair({"text_a": "a", "text_b": "b", "score": value}, dataset("scored_pair"), 100)

    assert made.reason == "score_not_a_number"


def test_a_pair_of_equal_texts_is_dropped():
    made = scored_pair({"text_a": "Some text", "text_b": "some  text", "score": 1}, dataset("scored_pair"), 100)

    assert made.reason == "texts_equal"


@pytest.mark.parametrize(
    ("label", "score"),
    [("entailment", 2), ("Neutral", 1), ("contradiction", 0), (0, 2), (1, 1), (2, 0), ("0", 2)],
)
def test_nli_labels_become_the_scores_of_the_paper(label, score):
    assert nli({"text_a": "a", "text_b": "b", "label": label}, dataset("nli"), 100).score == score


@pytest.mark.parametrize("label", ["-", -1, None, 3])
def test_an_nli_label_without_meaning_is_dropped(label):
    assert nli({"text_a": "a", "text_b": "b", "label": label}, dataset("nli"), 100).reason == "unknown_label"


def test_a_swapped_pair_keeps_its_score_and_swaps_back_to_itself():
    pair = scored_pair({"text_a": "a", "text_b": "b", "score": 2}, dataset("scored_pair"), 100)

    other = swapped(pair)

    assert (other.text_a, other.text_b, other.score) == ("b", "a", 2.0)
    assert other.id != pair.id
    assert swapped(other) == pair


def test_a_field_that_the_rule_does_not_have_is_refused():
    with pytest.raises(RecipeError, match=r"columns\.quer: the rule 'title_body' has no such field. Known: query"):
        columns_of(dataset("title_body", columns={"quer": "title"}))


def test_a_dropped_record_is_bounded_and_can_be_written_as_utf8():
    made = drop("d", "reason", "x" * 10_000, {"text": "\ud800" + "y" * 10_000})

    assert len(made.record) <= 2000
    assert len(made.detail) <= 500
    made.record.encode("utf-8")
