"""From examples to requests and from outcomes to examples, without Ray and without a network."""

import json

from qzhou.recipe import SynthesisSection
from qzhou.records import LabeledExample, RetrievalExample
from qzhou.synthesis.client import Outcome
from qzhou.synthesis.journal import Answer
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.plan import merged, planned

SETTINGS = SynthesisSection(endpoint="builtin", paraphrase_rows=2, augment_rows=1, hard_negative_rows=3)
EXAMPLES = [
    RetrievalExample(id=f"r{n}", dataset="d", query=f"Query number {n}?", positives=(f"Answer number {n}.",))
    for n in range(5)
]


def outcome(content, *, reused=False):
    answer = Answer(key="k", model="llm", content=json.dumps(content), prompt_tokens=10, completion_tokens=4)
    return Outcome(answer=answer, reused=reused)


def test_each_technique_asks_for_its_number_of_rows():
    techniques = [request.technique for request in planned(EXAMPLES, "retrieval", SETTINGS, seed=0)]

    assert techniques == ["paraphrase"] * 2 + ["augmentation"] + ["hard_negative"] * 3


def test_a_labelled_dataset_is_only_paraphrased():
    rows = [LabeledExample(id=str(n), dataset="d", text=f"t{n}", label="a") for n in range(5)]

    assert [one.technique for one in planned(rows, "classification", SETTINGS, seed=0)] == ["paraphrase"] * 2


def test_a_dataset_with_too_many_rows_is_left_alone():
    settings = SETTINGS.model_copy(update={"max_dataset_rows": 4})

    assert planned(EXAMPLES, "retrieval", settings, seed=0) == ()


def test_raw_rows_keep_their_order_and_ids_and_new_rows_follow():
    requests = planned(EXAMPLES, "retrieval", SETTINGS, seed=0)
    content = {"query": "Asked anew?", "positive": "Said anew.", "negative": "Reply figure 9."}
    outcomes = {
        one: outcome({**content, "query": f"Asked {one.example_id}?"} | {"positive": f"Said {one.example_id}."})
        for one in requests
    }

    result = merged(EXAMPLES, requests, outcomes, Ledger("llm"))

    assert [example.id for example in result.examples[:5]] == [example.id for example in EXAMPLES]
    assert len(result.examples) == 5 + 3 == len({example.id for example in result.examples})
    assert sum(len(example.negatives) for example in result.examples[:5]) == 3
    assert result.made == {"paraphrase": 2, "augmentation": 1, "hard_negative": 3}


def test_the_same_new_example_is_kept_once():
    requests = planned(EXAMPLES, "retrieval", SETTINGS.model_copy(update={"augment_rows": 0}), seed=0)[:2]
    same = outcome({"query": "Query anew?", "positive": "Answer anew."})

    result = merged(EXAMPLES, requests, dict.fromkeys(requests, same), Ledger("llm"))

    assert len(result.examples) == 6
    assert [one.reason for one in result.dropped] == ["duplicate"]


def test_an_unanswered_request_is_dropped_with_its_failure():
    requests = planned(EXAMPLES, "retrieval", SETTINGS, seed=0)[:1]
    failed = Outcome(answer=None, failure="status 500: out of order")

    result = merged(EXAMPLES, requests, {requests[0]: failed}, Ledger("llm"))

    assert [(one.reason, one.detail) for one in result.dropped] == [("no_answer", "status 500: out of order")]
    assert list(result.examples) == EXAMPLES


def test_the_ledger_counts_what_was_paid_and_what_was_reused():
    requests = planned(EXAMPLES, "retrieval", SETTINGS, seed=0)[:2]
    ledger = Ledger("asked-for")
    ledger.count(requests[0], outcome({}), dropped=True)
    ledger.count(requests[1], outcome({}, reused=True), dropped=False)
    ledger.count(requests[1], Outcome(answer=None, failure="status 500"), dropped=True)

    written = ledger.as_json()

    assert written["total"] == {
        "requests": 3,
        "answered": 2,
        "dropped": 2,
        "reused": 1,
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "reused_tokens": 14,
    }
    assert [(row["model"], row["technique"]) for row in written["rows"]] == [
        ("asked-for", "paraphrase"),
        ("llm", "paraphrase"),
    ]
