import hashlib

import pytest

from qzhou.recipe import Dataset
from qzhou.records import LabeledExample, PairExample, RetrievalExample
from qzhou.transform.dedup import HeldOutTexts, identity, sample, text_digest
from qzhou.transform.judging import Mark, verdicts
from qzhou.transform.splits import held_out


def retrieval(query, *positives):
    return RetrievalExample(id=f"{query}-{positives}", dataset="d", query=query, positives=positives)


def pair(text_a, text_b, score=1.0):
    return PairExample(id="", dataset="d", text_a=text_a, text_b=text_b, score=score)


def labeled(text, label):
    return LabeledExample(id="", dataset="d", text=text, label=label)


def test_the_side_of_a_group_follows_from_its_name_alone():
    groups = [f"module{i}" for i in range(4000)]
    held = {group for group in groups if held_out(group, 0.1)}

    assert len(held) == pytest.approx(400, rel=0.2)
    assert held <= {group for group in groups if held_out(group, 0.2)}
    assert not any(held_out(group, 0.0) for group in groups)
    assert all(held_out(group, 1.0) for group in groups)
    first = int.from_bytes(hashlib.sha256(b"module0").digest()[:8], "big") / 2**64
    assert held_out("module0", first + 1e-9)
    assert not held_out("module0", first - 1e-9)


def test_repeats_are_equal_up_to_case_and_white_space():
    assert identity(retrieval("A query", "Answer")) == identity(retrieval("a  QUERY", "answer"))
    assert identity(retrieval("query", "one")) != identity(retrieval("query", "two"))
    assert identity(retrieval("a b", "c")) != identity(retrieval("a", "b c"))


def test_a_second_label_score_or_side_makes_a_repeat():
    assert identity(labeled("text", "x")) == identity(labeled("Text", "y"))
    assert identity(pair("a", "b", 1.0)) == identity(pair("B", "A", 0.0))


def test_training_texts_are_compared_with_what_evaluation_of_their_kind_asks():
    held = HeldOutTexts()
    held.add("retrieval", [text_digest("query"), text_digest("document")])
    held.add("pair", [text_digest("sentence")])

    assert held.meet("retrieval", [text_digest("x"), text_digest("Document")])
    assert held.meet("retrieval", [text_digest("query"), text_digest("x")])
    assert not held.meet("retrieval", [text_digest("sentence")])
    assert held.meet("classification", [text_digest("sentence")])
    assert held.meet("pair", [text_digest("x"), text_digest("query")])
    assert not held.meet("classification", [text_digest("document")])


def test_a_sample_does_not_depend_on_the_order_of_rows():
    ids = [f"id{i}" for i in range(100)]
    drawn = {ids[position] for position in sample(ids, 10, seed=3)}
    backwards = ids[::-1]

    assert len(drawn) == 10
    assert drawn == {backwards[position] for position in sample(backwards, 10, seed=3)}
    assert drawn != {ids[position] for position in sample(ids, 10, seed=4)}
    assert sample(ids, 1000, seed=3) == set(range(100))


def dataset(name, rule, **settings):
    return Dataset.model_validate({"name": name, "reader": "jsonl", "paths": ("x",), "rule": rule, **settings})


def mark(*texts, held=False, reason=""):
    digests = [text_digest(text) for text in texts]
    return Mark(reason, held, "-".join(texts), text_digest(*texts), b"".join(digests))


def judge(datasets, rows, **settings):
    marks = {name: (lambda found=found: found) for name, found in rows.items()}
    return verdicts(datasets, marks, **{"deduplicate": True, "seed": 0, **settings})


def test_repeats_and_contamination_are_found_across_datasets():
    first, second = dataset("first", "title_body"), dataset("second", "question_answer")
    rows = {
        "first": [mark("q", "d"), mark("", reason="blank_query"), mark("held", "elsewhere")],
        "second": [mark("Q", "D"), mark("held", "answer", held=True), mark("HELD", "answer", held=True)],
    }

    assert judge([first, second], rows) == {
        "first": ["training", "blank_query", "in_held_out"],
        "second": ["duplicate", "held out", "duplicate"],
    }


def test_without_deduplication_repeats_stay_and_contamination_still_goes():
    rows = {"d": [mark("q", "d"), mark("q", "d"), mark("h", "x", held=True), mark("h", "y")]}

    judged = judge([dataset("d", "title_body")], rows, deduplicate=False)

    assert judged == {"d": ["training", "training", "held out", "in_held_out"]}


def test_a_sample_leaves_held_out_rows_alone_and_counts_a_pair_twice():
    rows = {"d": [mark(f"a{i}", f"b{i}", held=i < 5) for i in range(20)]}

    retrieval_rows = judge([dataset("d", "title_body", max_rows=6)], rows)["d"]
    pair_rows = judge([dataset("d", "scored_pair", max_rows=6)], rows)["d"]

    assert [retrieval_rows.count(verdict) for verdict in ("held out", "training", "sampled out")] == [5, 6, 9]
    assert [pair_rows.count(verdict) for verdict in ("held out", "training", "sampled out")] == [5, 3, 12]
