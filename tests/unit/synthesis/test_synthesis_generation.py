"""From examples to requests and from outcomes to examples, without Ray and without a network."""

import json

import pytest

from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.data.records import Document, LabeledExample, Negative, RetrievalExample
from qzhou.synthesis.chat import Answer, ChatResult
from qzhou.synthesis.generation import check_relevance, corpus_requests, example_requests, generate, merge
from qzhou.synthesis.ledger import Ledger

SETTINGS = SynthesisSection(
    endpoint="http://x/v1", model="m", paraphrase_rows=2, augment_rows=1, hard_negative_rows=3
)
EXAMPLES = [
    RetrievalExample(id=f"r{n}", dataset="d", query=f"Query number {n}?", positives=(f"Answer number {n}.",))
    for n in range(5)
]
DOCUMENTS = [
    Document(id=f"doc{n}", text=f"Document {n} tells how glass is blown, cut and cooled.") for n in range(9)
]
SUBJECTS = {("d", one.id): one for one in (*EXAMPLES, *DOCUMENTS)}


def outcome(content, *, reused=False):
    text = content if isinstance(content, str) else json.dumps(content)
    answer = Answer(key="k", model="llm", content=text, prompt_tokens=10, completion_tokens=4, cost=0.5)
    return ChatResult(answer=answer, reused=reused)


class LLM:
    """Answers as its function says and remembers what it was asked, round by round."""

    def __init__(self, answer):
        self.answer, self.rounds = answer, []

    def __call__(self, requests):
        self.rounds.append(list(requests))
        return {one: self.answer(one) for one in requests}


def write(answer, requests, settings=SETTINGS, ledger=None):
    llm = LLM(answer)
    return generate(requests, SUBJECTS, llm, settings, ledger or Ledger()), llm


def well(request):
    content = {"query": f"Asked {request.example_id}?", "positive": f"Said {request.example_id}."}
    return outcome({**content, "negative": "Reply figure 9."})


def test_each_technique_asks_for_its_number_of_rows_and_variants():
    settings = SETTINGS.model_copy(update={"hard_negatives_per_row": 2})
    requests = example_requests(EXAMPLES, "retrieval", settings, seed=0)

    assert [one.technique for one in requests] == ["paraphrase"] * 2 + ["augmentation"] + ["hard_negative"] * 6
    assert (
        len({one.user for one in requests}) == 9
    )  # no two are identical, or the second would be answered by the first


def test_a_labelled_dataset_is_only_paraphrased():
    rows = [LabeledExample(id=str(n), dataset="d", text=f"t{n}", label="a") for n in range(5)]

    assert [one.technique for one in example_requests(rows, "classification", SETTINGS, seed=0)] == [
        "paraphrase"
    ] * 2


def test_several_models_share_the_requests_by_weight_and_always_in_the_same_way():
    pool = tuple(
        LLMSection(model=name, endpoints=("http://x",), weight=weight) for name, weight in (("a", 3), ("b", 1))
    )
    settings = SynthesisSection(models=pool, paraphrase_rows=2000)
    rows = [LabeledExample(id=str(n), dataset="d", text=f"text number {n}", label="a") for n in range(2000)]

    requests = example_requests(rows, "classification", settings, seed=0)

    assert sum(one.model == "a" for one in requests) == pytest.approx(1500, abs=60)
    assert example_requests(rows, "classification", settings, seed=0) == requests


def merged(result):
    found = merge([one.id for one in EXAMPLES], result)
    return [*found.applied(EXAMPLES), *found.new], found.kept


def test_raw_rows_keep_their_order_and_ids_and_new_rows_follow():
    result, _ = write(well, example_requests(EXAMPLES, "retrieval", SETTINGS, seed=0))

    examples, kept = merged(result)

    assert [example.id for example in examples[:5]] == [example.id for example in EXAMPLES]
    assert len(examples) == 5 + 3 == len({example.id for example in examples})
    assert sum(len(example.negatives) for example in examples[:5]) == 3
    techniques = [one.request.technique for one in kept.records]
    assert [techniques.count(name) for name in ("paraphrase", "augmentation", "hard_negative")] == [2, 1, 3]


def test_the_same_new_example_is_kept_once_and_so_is_the_same_negative():
    settings = SETTINGS.model_copy(update={"augment_rows": 0, "hard_negative_rows": 1, "hard_negatives_per_row": 2})
    content = {"query": "Query anew?", "positive": "Answer anew.", "negative": "Reply figure 9."}

    result, _ = write(lambda _: outcome(content), example_requests(EXAMPLES, "retrieval", settings, seed=0))
    examples, kept = merged(result)

    assert len(examples) == 6
    assert [one.reason for one in kept.dropped] == ["duplicate", "duplicate"]


def test_a_refused_answer_goes_back_with_the_reason_so_often_as_allowed():
    request = example_requests(EXAMPLES, "retrieval", SETTINGS, seed=0)[0]
    settings = SETTINGS.model_copy(update={"parse_retries": 2})
    ledger = Ledger()

    result, llm = write(
        lambda one: well(one) if len(one.refused) == 2 else outcome("Sure!"), [request], settings, ledger
    )

    assert len(result.records) == 1
    assert result.dropped == []
    chat = llm.rounds[2][0].messages
    assert [message["role"] for message in chat] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert chat[2]["content"] == "Sure!"
    assert "holds no JSON object" in chat[3]["content"]
    assert (ledger.total.requests, ledger.total.refused, ledger.total.cost) == (3, 2, 1.5)

    result, llm = write(lambda _: outcome("Sure!"), [request], SETTINGS)
    assert [len(one) for one in llm.rounds] == [1, 1]
    assert [one.reason for one in result.dropped] == ["not_json"]


def test_an_unanswered_request_is_dropped_with_its_failure():
    request = example_requests(EXAMPLES, "retrieval", SETTINGS, seed=0)[0]

    result, _ = write(lambda _: ChatResult(answer=None, failure="status 500: out of order"), [request])

    assert [(one.reason, one.detail) for one in result.dropped] == [("no_answer", "status 500: out of order")]


def test_a_bare_document_gets_its_queries():
    settings = SETTINGS.model_copy(update={"query_rows": 4, "queries_per_row": 2})
    documents, requests = corpus_requests(DOCUMENTS, "d", settings, seed=0)

    def answer(request):
        asked = request.fields
        return outcome(
            {"persona": "2", "query": f"how is glass shaped, {asked['words']} {asked['question_type']}?"}
        )

    result, llm = write(answer, requests, settings)

    assert (len(documents), len(requests), len(llm.rounds)) == (4, 8, 1)
    assert {one.record.positives for one in result.records} == {(document.text,) for document in documents}
    source = result.records[0].record.source
    assert (source.technique, source.prompt, source.parent) == ("query_generation", "query.en@v3", documents[0].id)
    assert merge([], result).new == [one.record for one in result.records]


def test_a_relevance_check_drops_positives_that_do_not_answer_and_negatives_that_do():
    result, _ = write(well, example_requests(EXAMPLES, "retrieval", SETTINGS, seed=0))
    new = {one.record.id for one in result.records if not isinstance(one.record, Negative)}
    bad = next(one.record for one in result.records if one.request.technique == "paraphrase")

    def verdict(request):
        asked = request.fields
        answers = asked["document"].startswith("Said") and asked["document"] != bad.positives[0]
        return outcome({"verdict": "answers" if answers else "does_not_answer"})

    kept = check_relevance(result.records, LLM(verdict), SETTINGS, Ledger())
    assert [one.reason for one in kept.dropped] == ["positive_not_relevant"]
    assert {one.record.id for one in kept.records if not isinstance(one.record, Negative)} == new - {bad.id}

    credulous = check_relevance(result.records, LLM(lambda _: outcome({"verdict": "answers"})), SETTINGS, Ledger())
    assert {one.reason for one in credulous.dropped} == {"negative_relevant"}
    assert len(credulous.dropped) == 3 + 1  # an augmentation brings its negative

    silent = check_relevance(
        result.records, LLM(lambda _: ChatResult(answer=None, failure="x")), SETTINGS, Ledger()
    )
    assert silent.dropped == []


def test_the_ledger_counts_what_was_paid_and_what_was_reused():
    requests = example_requests(EXAMPLES, "retrieval", SETTINGS, seed=0)[:2]
    ledger = Ledger()
    ledger.count(requests[0], outcome({}), refused=True)
    ledger.count(requests[1], outcome({}, reused=True), refused=False)
    ledger.count(requests[1], ChatResult(answer=None, failure="status 500"), refused=True)

    found = ledger.as_json()

    assert found["total"] == {
        "requests": 3,
        "answered": 2,
        "refused": 2,
        "reused": 1,
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "cost": 0.5,
        "reused_tokens": 14,
        "reused_cost": 0.5,
    }
    assert [(row["model"], row["technique"]) for row in found["rows"]] == [("m", "paraphrase")]
    assert found["rows"][0]["answered_as"] == ["llm"]
