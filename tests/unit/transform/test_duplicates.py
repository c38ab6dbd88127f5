import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pytest

from qzhou.config.dataset import Dataset
from qzhou.data.records import LabeledExample, PairExample, RetrievalExample
from qzhou.transform.contamination.contamination_pass import sample_numbers
from qzhou.transform.deduplication.duplicates import DropReason, find_duplicates
from qzhou.transform.deduplication.keys import KeyList
from qzhou.transform.deduplication.near_duplicates import bands_for
from qzhou.transform.rules.held_out import held_out

CORPUS = {"reader": "jsonl", "paths": ["x"]}


def retrieval(query, *positives):
    return RetrievalExample(id=f"{query}-{positives}", dataset="d", query=query, positives=positives)


def pair(text_a, text_b, score=1.0, dataset="d"):
    return PairExample(id="", dataset=dataset, text_a=text_a, text_b=text_b, score=score)


def labeled(text, label="x", dataset="d"):
    return LabeledExample(id="", dataset=dataset, text=text, label=label)


def reasons(*rows, identity=True, share=False, near=None, rule="title_body"):
    """What becomes of (example, held out) rows, each in a shard of its own, in this order."""
    tables = []
    for number, row in enumerate(rows):
        settings = {"name": row[0].dataset, "rule": rule, "reader": "jsonl", "paths": ["x"], "allow_overlap": share}
        dataset = Dataset.model_validate(
            settings | ({"corpus": CORPUS, "queries": CORPUS} if rule == "qrels" else {})
        )
        keys = KeyList(dataset, with_identity=identity, with_texts=True, near_threshold=near)
        keys.add_all([row])
        own = keys.table()
        tables.append(own.set_column(2, "row", pa.array([number] * own.num_rows, pa.uint32())))
    table = pa.concat_tables(tables)
    found = dict.fromkeys(range(len(rows)), "")
    for position, reason, first in zip(
        *find_duplicates(table, np.zeros(table.num_rows, dtype=np.int64)), strict=True
    ):
        assert all(table[name][int(position)] == table[name][int(first)] for name in ("high", "low", "space"))
        row = table["row"][int(position)].as_py()
        found[row] = min(filter(None, (found[row], DropReason(reason).name.lower())), key=_rank)
    return list(found.values())


def _rank(name):
    return DropReason[name.upper()]


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


def test_repeats_are_equal_up_to_case_and_white_space_and_the_first_stays():
    rows = [retrieval("A query", "Answer"), retrieval("a  QUERY", "answer"), retrieval("A query", "other")]

    assert reasons(*((row, False) for row in rows)) == ["", "duplicate", ""]
    assert reasons((retrieval("a b", "c"), False), (retrieval("a", "b c"), False)) == ["", ""]


def test_a_second_label_score_or_side_makes_a_repeat():
    assert reasons((labeled("text", "x"), False), (labeled("Text", "y"), False)) == ["", "duplicate"]
    assert reasons((pair("a", "b", 1.0), False), (pair("B", "A", 0.0), False)) == ["", "duplicate"]


def test_a_text_that_stands_twice_in_one_example_repeats_nothing():
    assert reasons((retrieval("q", "same", "SAME"), False), (pair("x", "y"), False)) == ["", ""]


def test_what_is_held_out_comes_first_wherever_it_stands():
    rows = [(retrieval("q", "d"), False), (retrieval("Q", "D"), True), (retrieval("q", "d"), True)]

    assert reasons(*rows) == ["in_held_out", "", "duplicate"]


def test_training_texts_are_compared_with_what_evaluation_of_their_kind_asks():
    held = [(retrieval("query", "document"), True), (pair("sentence", "z"), True)]

    def of(example):
        return reasons(*held, (example, False))[-1]

    assert of(retrieval("x", "Document")) == "in_held_out"
    assert of(retrieval("query", "x")) == "in_held_out"
    assert of(retrieval("sentence", "x")) == ""
    assert of(labeled("sentence")) == "in_held_out"
    assert of(pair("x", "query")) == "in_held_out"
    assert of(labeled("document")) == ""


def test_an_official_split_may_share_documents_and_sides_but_no_queries_and_no_pairs():
    held = [(retrieval("query", "document"), True), (pair("a", "b"), True), (labeled("text"), True)]

    def of(example):
        return reasons(*held, (example, False), share=True)[-1]

    assert of(retrieval("other", "document")) == ""
    assert of(retrieval("query", "other")) == "in_held_out"
    assert of(pair("a", "c")) == ""
    assert of(pair("b", "a")) == "in_held_out"
    assert of(pair("b", "a", dataset="other")) == "in_held_out"
    assert of(labeled("text")) == "in_held_out"


def test_datasets_with_labels_and_scores_of_their_own_do_not_repeat_each_other():
    """Intents and scenarios of MASSIVE are two labels of the same texts: the second dataset was taken away."""
    rows = [labeled("text"), labeled("text", dataset="other"), pair("a", "b"), pair("b", "a", dataset="other")]

    assert reasons(*((row, False) for row in rows)) == [""] * 4
    assert reasons(*((row, True) for row in rows)) == [""] * 4, "official test rows"
    near = [labeled(SENTENCE.format("peace")), labeled(SENTENCE.format("Peace!"), dataset="other")]
    assert reasons(*((row, False) for row in near), near=0.8) == ["", ""]
    retrieved = [retrieval("q", "d"), dataclasses.replace(retrieval("q", "d"), dataset="other")]
    assert reasons(*((row, False) for row in retrieved)) == ["", "duplicate"], "the same question and answer"


def test_premise_and_hypothesis_exchanged_are_another_pair():
    rows = [(pair("a", "b", 2.0), False), (pair("b", "a", 1.0), False), (pair("A", "B", 0.0), False)]

    assert reasons(*rows, rule="nli") == ["", "", "duplicate"]
    assert reasons(*rows, rule="scored_pair") == ["", "duplicate", "duplicate"]


def test_queries_of_a_search_collection_share_its_documents_and_no_query():
    """NFCorpus kept 25 of 7,000 judgements, because each document is relevant to many queries."""
    held = (retrieval("query", "document"), True)

    def of(example):
        return reasons(held, (example, False), rule="qrels")[-1]

    assert of(retrieval("other", "document")) == ""
    assert of(retrieval("Query", "other")) == "in_held_out"


def test_without_deduplication_repeats_stay_and_held_out_texts_still_go():
    rows = [(retrieval("q", "d"), False)] * 2 + [(retrieval("h", "x"), True), (retrieval("h", "y"), False)]

    assert reasons(*rows, identity=False) == ["", "", "", "in_held_out"]


SENTENCE = (
    "the quick brown fox jumps over the lazy dog while nine old engineers look on and drink their cold tea in {}"
)


def test_near_duplicates_are_near_on_every_side():
    rows = [
        (retrieval(SENTENCE.format("peace"), SENTENCE.format("silence")), False),
        (retrieval(SENTENCE.format("Peace!"), SENTENCE.format("silent rooms")), False),
        (retrieval("another question about the same passage", SENTENCE.format("silence")), False),
        (retrieval("!!!", "..."), False),
        (retrieval("???", ",,,"), False),
    ]

    assert reasons(*rows, near=0.8) == ["", "near_duplicate", "", "", ""]


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.8, 0.9])
def test_the_curve_of_the_bands_rises_at_the_threshold(threshold, sides):
    """One side had the bands of two: texts of similarity 0.7 were near-duplicates at a threshold of 0.8."""
    bands, rows = bands_for(threshold, sides)

    def found(similarity):
        return 1 - (1 - similarity ** (sides * rows)) ** bands

    assert found(threshold + 0.1) > 0.75 or threshold == 0.9
    assert found(threshold - 0.15) < 0.25


def test_a_sample_does_not_depend_on_the_order_of_rows():
    ids = [f"id{i}" for i in range(100)]

    def drawn(ids, seed):
        return {ids[place] for place in np.argsort(sample_numbers(ids, seed))[:10]}

    assert drawn(ids, 3) == drawn(ids[::-1], 3)
    assert drawn(ids, 3) != drawn(ids, 4)
