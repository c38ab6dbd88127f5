"""What a recipe would cost."""

import json

from qzhou.config.synthesis import SynthesisSection
from qzhou.data.records import Document, RetrievalExample
from qzhou.synthesis.estimate import Estimate
from qzhou.synthesis.generation import corpus_requests, example_requests
from qzhou.synthesis.ledger import expected_tokens

SETTINGS = SynthesisSection(
    endpoint="http://x/v1",
    model="m",
    paraphrase_rows=10,
    query_rows=2,
    input_price=2.0,
    output_price=8.0,
    max_cost=9.0,
)


def test_tokens_are_guessed_by_the_script():
    english = [{"role": "system", "content": "x" * 400}, {"role": "user", "content": "y" * 200}]
    chinese = [{"role": "system", "content": "x" * 400}, {"role": "user", "content": "秋" * 200}]

    assert expected_tokens(english) == (158, 50)
    assert expected_tokens(chinese) == (268, 160)


def test_the_estimate_counts_requests_tokens_money_and_what_is_paid_already():
    examples = [
        RetrievalExample(id=f"r{n}", dataset="d", query="why?", positives=("so",))
        for n in range(10)
    ]
    requests = example_requests(examples, "retrieval", SETTINGS, seed=0)[:10]
    _, queries = corpus_requests(
        [Document(id="x", text="text"), Document(id="y", text="t")], "d", SETTINGS, seed=0
    )
    prompt, answer = expected_tokens(requests[0].messages)

    expected = Estimate(SETTINGS)
    expected.add([*requests, *queries], requests[:4])
    found = expected.table(spent=0.25)

    assert f"paraphrase, m: 10 requests (4 answered already), about {6 * prompt:,} prompt" in found
    assert f"cost {6 * (prompt * 2 + answer * 8) / 1e6:.4f}" in found
    assert "query_configuration, m: 4 requests" in found  # a configuration and a query for each
    assert "in all: 14 requests" in found
    assert "spent by earlier attempts: 0.2500; max_cost 9" in found
    shown = next(
        line for line in found.splitlines() if "e.g. paraphrase (paraphrase.en@v2)" in line
    )
    assert json.loads(shown.split("): ", 1)[1]) == {
        "technique": "paraphrase",
        "query": "why?",
        "positive": "so",
    }
