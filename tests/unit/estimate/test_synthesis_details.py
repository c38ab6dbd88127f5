"""What synthesis would ask an LLM, and what that would cost."""

import json

from qzhou.config.synthesis import SynthesisSection
from qzhou.data.records import Document, RetrievalExample
from qzhou.data.storage import write_records
from qzhou.estimate.command import print_plan
from qzhou.estimate.options import PlanOptions
from qzhou.run.files import MANIFEST
from qzhou.run.run import Run
from qzhou.synthesis.details import RequestCounts, synthesis_details
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


def test_the_details_count_requests_tokens_money_and_what_is_paid_already():
    examples = [RetrievalExample(id=f"r{n}", dataset="d", query="why?", positives=("so",)) for n in range(10)]
    requests = example_requests(examples, "retrieval", SETTINGS, seed=0)[:10]
    _, queries = corpus_requests([Document(id="x", text="text"), Document(id="y", text="t")], "d", SETTINGS, seed=0)
    prompt, answer = expected_tokens(requests[0].messages)

    counts = RequestCounts(SETTINGS)
    counts.add([*requests, *queries], requests[:4])
    found = counts.table(spent=0.25)

    assert f"paraphrase, m: 10 requests (4 answered already), about {6 * prompt:,} prompt" in found
    assert f"cost {6 * (prompt * 2 + answer * 8) / 1e6:.4f}" in found
    assert "query, m: 2 requests" in found
    assert "in all: 12 requests" in found
    assert "spent by earlier attempts: 0.2500; max_cost 9" in found
    shown = next(line for line in found.splitlines() if "e.g. paraphrase (paraphrase.en@v3)" in line)
    assert json.loads(shown.split("): ", 1)[1]) == requests[0].fields


def test_the_details_of_a_run_are_printed_and_nothing_is_sent(make_recipe, capsys):
    settings = {"endpoint": "http://127.0.0.1:9/v1", "model": "m", "paraphrase_rows": 3}
    recipe = make_recipe(synthesis={**settings, "paraphrases_per_row": 2})
    transform = Run.open(recipe).folder / "transform"
    rows = [RetrievalExample(id=str(n), dataset="docs", query=f"why {n}?", positives=("so",)) for n in range(5)]
    write_records(transform / "examples" / "retrieval" / "docs", rows, RetrievalExample)
    names = ("stage", "fingerprint", "code_version", "finished_at")
    empty = {"inputs": {}, "outputs": {}, "settings": {}, "wall_s": 1.0}
    transform.write_json(MANIFEST, dict.fromkeys(names, "") | empty)

    print_plan(recipe, PlanOptions(stage="synthesis"), synthesis_details)

    printed = capsys.readouterr().out
    assert "nothing is sent" in printed
    assert "in all: 6 requests, about" in printed
    assert '"query": "why ' in printed
