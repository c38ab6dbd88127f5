import json
import math

import pytest

from qzhou.config.dataset import Dataset
from qzhou.data.records import Drop, stable_id
from qzhou.errors import RecipeError
from qzhou.transform.rules.examples import swapped_id
from qzhou.transform.rules.fields import Fields, columns_of, drop, number
from qzhou.transform.rules.rules import RULES


def dataset(rule, **settings):
    if rule == "qrels":
        settings |= {key: {"reader": "jsonl", "paths": ("x",)} for key in ("corpus", "queries")}
    return Dataset.model_validate({"name": "d", "reader": "jsonl", "paths": ("x",), "rule": rule, **settings})


def outcomes(rule, *rows, **settings):
    return RULES[rule](rows, Fields(dataset(rule, **settings), 1000))


def make(rule, row, **settings):
    """The example of one row, or its drop."""
    return outcomes(rule, row, **settings)[0]


def test_a_title_asks_for_its_body():
    made = make("title_body", {"title": " A  title ", "body": "Its\tbody"})

    assert (made.query, made.positives, made.negatives) == ("A title", ("Its body",), ())
    assert made.id == stable_id("d", "A title", "Its body")


def test_columns_map_fields_of_the_rule_to_columns_of_the_row():
    columns = {"query": "q", "positive": "pos", "negative": "neg"}
    row = {"q": "why", "pos": ["because", "so", "so"], "neg": ["BECAUSE", "no", ""]}

    made, leak = outcomes("question_answer", row, columns=columns)

    assert (made.query, made.positives) == ("why", ("because", "so"))
    # a positive never stands among the negatives
    assert [negative.text for negative in made.negatives] == ["no"]
    assert {negative.origin for negative in made.negatives} == {"given"}
    assert (leak.reason, leak.record, leak.part) == ("negative_is_positive", "BECAUSE", True)


def test_question_and_answer_are_the_default_columns():
    made = make("question_answer", {"question": "why", "answer": "because"})

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
    made = make("title_body", row, min_positive_chars=5)

    assert isinstance(made, Drop)
    assert (made.stage, made.dataset, made.reason) == ("transform", "d", reason)
    assert all(key in made.record for key in row)


def test_a_label_may_be_a_number_and_neither_side_may_be_blank():
    made = make("labeled", {"text": "hello", "label": 0})

    assert (made.text, made.label) == ("hello", "d/0")  # another dataset's class 0 is another class
    assert make("labeled", {"text": "", "label": 1}).reason == "blank_text"
    assert make("labeled", {"text": "hello", "label": None}).reason == "blank_label"


@pytest.mark.parametrize(
    ("value", "score"), [(3, 3.0), ("3.8", 3.8), (" Yes ", 1.0), (False, 0.0), ("true", 1.0), ("no", 0.0)]
)
def test_a_score_is_a_number_or_yes_and_no(value, score):
    made = make("scored_pair", {"text_a": "a", "text_b": "b", "score": value})

    assert (made.text_a, made.text_b, made.score) == ("a", "b", score)


@pytest.mark.parametrize("value", [None, "high", math.nan, math.inf, [1]])
def test_what_is_no_score_is_dropped(value):
    made = make("scored_pair", {"text_a": "a", "text_b": "b", "score": value})

    assert made.reason == "score_not_a_number"


@pytest.mark.parametrize(
    ("value", "point", "comma"),
    [
        ("3.5", 3.5, None),
        ("3,5", None, 3.5),
        (" -2 ", -2.0, -2.0),
        (3.5, 3.5, 3.5),
        ("1.234,5", None, None),  # a mark of thousands, which is not guessed at
        ("1,234.5", None, None),
        ("1,2,3", None, None),
        ("1_0", None, None),
        ("", None, None),
        (None, None, None),
        ("nan", None, None),
        ("inf", None, None),
    ],
)
def test_a_number_is_read_with_the_decimal_mark_of_its_dataset_or_not_at_all(value, point, comma):
    assert (number(value), number(value, ",")) == (point, comma)


def test_a_score_with_the_other_mark_says_which_setting_reads_it():
    made = make("scored_pair", {"text_a": "a cat", "text_b": "a dog", "score": "3,5"})

    assert made.reason == "score_not_a_number"
    assert made.detail == """score is '3,5'; decimal = "," reads it"""


def test_a_pair_of_equal_texts_is_dropped():
    made = make("scored_pair", {"text_a": "Some text", "text_b": "some  text", "score": 1})

    assert made.reason == "texts_equal"


@pytest.mark.parametrize(
    ("label", "score"), [("entailment", 2), ("Neutral", 1), ("contradiction", 0), (0, 2), (1, 1), (2, 0), ("0", 2)]
)
def test_nli_labels_become_the_scores_of_the_paper(label, score):
    assert make("nli", {"text_a": "a", "text_b": "b", "label": label}).score == score


@pytest.mark.parametrize("label", ["-", -1, None, 3])
def test_an_nli_label_without_meaning_is_dropped(label):
    assert make("nli", {"text_a": "a", "text_b": "b", "label": label}).reason == "unknown_label"


def test_the_swapped_id_of_a_pair_is_the_id_of_the_pair_with_its_sides_exchanged():
    pair = make("scored_pair", {"text_a": "a", "text_b": "b", "score": 2})
    other = make("scored_pair", {"text_a": "b", "text_b": "a", "score": 2})

    assert swapped_id(pair) == other.id != pair.id
    assert swapped_id(other) == pair.id


def test_a_field_that_the_rule_does_not_have_is_refused():
    with pytest.raises(RecipeError, match=r"columns\.quer: the rule 'title_body' has no such field. Known: query"):
        columns_of(dataset("title_body", columns={"quer": "title"}))


def test_a_dropped_record_is_kept_whole_and_can_be_written_as_utf8():
    made = drop("d", "reason", "x" * 10_000, {"text": "\ud800" + "y" * 100_000})

    assert made.record.endswith('y"}')
    assert len(made.record) > 100_000
    assert len(made.detail) <= 500
    made.record.encode("utf-8")


def texts(negatives):
    return [negative.text for negative in negatives]


@pytest.mark.parametrize(
    "messages",
    [
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
        ],
        [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}],
        '[{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]',
        [
            {"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "image_url"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        ],
    ],
)
def test_a_single_turn_of_chat_is_a_question_and_its_answer(messages):
    made = make("chat", {"messages": messages})

    assert (made.query, made.positives) == ("u", ("a",))


def test_a_number_that_became_a_float_is_the_same_label_and_bytes_are_text():
    made = [make("labeled", {"text": "t", "label": label}) for label in (1, 1.0, "1", b"1")]

    assert {one.label for one in made} == {"d/1"}
    assert make("labeled", {"text": b"\xff", "label": 1}).reason == "blank_text"


@pytest.mark.parametrize(
    ("roles", "reason"),
    [("uaua", "not_single_turn"), ("ua u", "not_single_turn"), ("au", "not_single_turn"), ("", "blank_messages")],
)
def test_a_longer_conversation_has_no_single_question(roles, reason):
    names = {"u": "user", "a": "assistant", " ": "tool"}

    assert make("chat", {"messages": [{"role": names[one], "content": one} for one in roles]}).reason == reason


def test_a_question_asks_for_its_passage_and_in_the_older_form_both_for_the_answer():
    row = {"question": "Who?", "context": "It was Ada.", "answers": [{"text": "Ada"}, {"text": "Ada"}]}

    made, older = (make("reading_comprehension", row), make("reading_comprehension", row, context_in_query=True))

    assert (made.query, made.positives) == ("Who?", ("It was Ada.",))
    assert older.query == "It was Ada.\n<please read the text above and answer the question below:>\nWho?"
    assert older.positives == ("Ada",)


def test_evidence_supports_refutes_or_is_dropped():
    row = {
        "claim": "c",
        "evidence": ["for", "against", "unclear", ""],
        "label": ["SUPPORTS", "REFUTES", "NEI", "?"],
    }

    made, *parts = sorted(outcomes("claim_evidence", row), key=lambda one: isinstance(one, Drop))

    assert (made.query, made.positives, texts(made.negatives)) == ("c", ("for",), ["against"])
    assert [(one.reason, one.part) for one in parts] == [("not_enough_info", True), ("blank_evidence", True)]


def test_evidence_without_a_label_is_not_lost():
    found = outcomes("claim_evidence", {"claim": "c", "evidence": ["for", "more"], "label": ["supports"]})

    assert sorted(getattr(one, "reason", "") for one in found) == ["", "unknown_label"] or "not_enough_info" in str(
        found
    )


def test_rows_of_one_claim_become_one_example():
    rows = [
        {"claim": "c", "evidence": "for", "label": "entailment"},
        {"claim": "c", "evidence": "against", "label": "not_entailment"},
        {"claim": "c", "evidence": "other", "label": "none"},
    ]

    found = outcomes("claim_evidence", *rows, labels={"entailment": "supports", "not_entailment": "refutes"})

    made = next(one for one in found if not isinstance(one, Drop))
    assert (made.positives, texts(made.negatives)) == (("for",), ["against"])
    assert [(one.reason, one.part) for one in found if isinstance(one, Drop)] == [("not_enough_info", False)]
    assert [one.reason for one in outcomes("claim_evidence", rows[2], rows[2])] == ["not_enough_info"] * 2
    refuted = [{"claim": "c", "evidence": "against", "label": "REFUTES"}] * 2
    assert [one.reason for one in outcomes("claim_evidence", *refuted)] == ["no_support"] * 2


def test_grades_make_positives_and_negatives_and_the_middle_neither():
    rows = [{"query": "q", "document": f"d{grade}", "grade": str(grade)} for grade in (2, 0, 1, "x")]

    made, *drops = sorted(outcomes("graded", *rows, positive_grade=2), key=lambda one: isinstance(one, Drop))

    assert (made.positives, texts(made.negatives)) == (("d2",), ["d0"])
    assert sorted(one.reason for one in drops) == ["between_grades", "grade_not_a_number"]
    assert [one.reason for one in outcomes("graded", rows[1])] == ["no_positive"]


def test_judgements_without_their_document_or_query_are_named():
    raw = {"query-id": "1", "corpus-id": "7", "score": 1}
    row = {"raw": raw, "query_id": "1", "query": "q", "document_id": "7", "document": "text", "grade": 1}

    assert outcomes("qrels", row)[0].positives == ("text",)
    lost, made = outcomes("qrels", {**row, "document": None}, row)
    assert (lost.reason, "'7'" in lost.detail, made.positives) == ("unknown_document", True, ("text",))
    assert json.loads(lost.record) == raw  # as it stood, without what it was joined with
    assert [one.reason for one in outcomes("qrels", {**row, "query": None})] == ["unknown_query"]
    assert [one.reason for one in outcomes("qrels", {**row, "document": ""})] == ["blank_document"]


def test_duplicate_questions_are_symmetric_and_different_ones_are_negatives():
    rows = [{"text_a": "a", "text_b": "b", "label": 1.0}, {"text_a": "a", "text_b": "c", "label": "0"}]

    (made,) = outcomes("duplicate_questions", *rows)

    assert (made.query, made.positives, texts(made.negatives)) == ("a", ("b",), ["c"])
    asked = dataset("duplicate_questions", instruction="Find duplicates").prompt
    assert asked.document_prefix == asked.query_prefix != ""
    assert make("duplicate_questions", {**rows[0], "label": "maybe"}).reason == "unknown_label"


def test_triplets_keep_the_scores_of_their_teacher():
    row = {"query": "q", "pos": ["p", ""], "neg": ["n", "m"], "ps": [0.9, 0.1], "ns": [0.4, None]}

    made = make("triplets", row, columns={"positive_score": "ps", "negative_score": "ns"})

    assert (made.positives, made.positive_scores) == (("p",), (0.9,))
    assert [(one.text, one.score) for one in made.negatives] == [("n", 0.4), ("m", None)]


@pytest.mark.parametrize(("label", "score"), [(1, 1.0), ("0", 0.0), (True, 1.0), ("yes", 1.0), (0.0, 0.0)])
def test_binary_pairs_are_one_and_zero(label, score):
    assert make("binary_pair", {"text_a": "a", "text_b": "b", "label": label}).score == score


def test_short_texts_are_dropped_where_that_is_asked_for():
    assert make("title_body", {"title": "ab", "body": "text"}, min_query_chars=3).reason == "short_query"
    assert make("clustering", {"text": "ab", "label": 1}, min_query_chars=3).reason == "short_text"
    assert (
        make("binary_pair", {"text_a": "ab", "text_b": "abc", "label": 1}, min_query_chars=3).reason == "short_text"
    )
