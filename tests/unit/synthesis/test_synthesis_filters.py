"""Copies, and what a teacher's scores say."""

import math

import pytest

from qzhou.config.synthesis import FiltersSection
from qzhou.data.prompts import Prompt
from qzhou.data.records import LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.synthesis.embedding_scores import texts_to_score
from qzhou.synthesis.filters import Scores, copied_share, refused_by_scores
from qzhou.synthesis.generation import SyntheticRecord
from qzhou.synthesis.techniques import requests_for


@pytest.mark.parametrize(
    ("text", "original", "share"),
    [
        ("one two three four five six", "One two three, four five six!", 1.0),
        ("one two three four five seven", "one two three four five six", 3 / 4),
        ("six five four three two one", "one two three four five six", 0.0),
        ("too short", "too short", 0.0),
        ("秋天的树叶会变红", "秋天的树叶会变黄", 5 / 6),
    ],
)
def test_the_copied_share_counts_trigrams(text, original, share):
    assert copied_share(text, original) == pytest.approx(share)


@pytest.mark.parametrize(
    ("scores", "filters", "reason"),
    [
        (Scores(rewrite=0.3), {"min_rewrite_cosine": 0.4}, "drifted"),
        (Scores(rewrite=0.99), {"max_rewrite_cosine": 0.98}, "too_alike"),
        (Scores(positive=0.39), {"min_positive_score": 0.4}, "positive_too_far"),
        (Scores(negative=0.8, reference_positive=0.8), {}, "negative_too_close"),
        (Scores(negative=-0.2, reference_positive=-0.3), {}, "negative_too_close"),
        (Scores(negative=0.8, reference_positive=0.7), {"negative_below_positive": False}, None),
        (Scores(negative=0.6, reference_positive=0.7), {}, None),
        (Scores(rewrite=-1.0, positive=-1.0), {}, None),
    ],
)
def test_scores_refuse_what_the_recipe_says(scores, filters, reason):
    refusal = refused_by_scores(scores, FiltersSection(**filters))

    assert (refusal[0] if refusal else None) == reason


def test_every_kind_of_record_is_compared_with_what_it_must_be_like():
    prompt = Prompt("Find it", symmetric=False)
    subject = RetrievalExample(id="x", dataset="d", query="q", positives=("p",))
    (request,) = requests_for(subject, "paraphrase")
    (negative,) = requests_for(subject, "hard_negative")
    new = RetrievalExample(id="y", dataset="d", query="q2", positives=("p2",))

    asked = "Instruct: Find it\nQuery: "
    assert texts_to_score(SyntheticRecord(request=request, seed=subject, record=new), prompt) == {
        "query": f"{asked}q2", "positive": "p2", "old_query": f"{asked}q", "old_positive": "p",
    }  # fmt: skip
    wrong = Negative(text="n", origin="synthetic")
    assert texts_to_score(SyntheticRecord(request=negative, seed=subject, record=wrong), prompt) == {
        "query": f"{asked}q", "negative": "n", "better": "p",
    }  # fmt: skip
    text = LabeledExample(id="l", dataset="d", text="t", label="a")
    (request,) = requests_for(text, "paraphrase")
    rewritten = LabeledExample(id="m", dataset="d", text="t2", label="a")
    assert set(texts_to_score(SyntheticRecord(request=request, seed=text, record=rewritten), prompt)) == {
        "query",
        "old_query",
    }
    pair = PairExample(id="l", dataset="d", text_a="a", text_b="b", score=math.pi)
    (request,) = requests_for(pair, "paraphrase")
    side = {"text_a": "a", "text_b": "b"}[request.side]
    assert texts_to_score(SyntheticRecord(request=request, seed=pair, record=pair), Prompt())["old_query"] == side
