"""The body of the actor that sends requests, called without Ray."""

import asyncio
import json

import pyarrow as pa

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import SynthesisSection
from qzhou.data.records import LabeledExample
from qzhou.data.storage import Folder
from qzhou.synthesis.llm_worker import LLMWorker, result_from_json
from qzhou.synthesis.response_cache import cached_answers
from qzhou.synthesis.schemas import schema_name
from qzhou.synthesis.techniques import requests_for
from tests.llm_server import LLMServer, serving


def answered(settings, folder, requests):
    """Index -> (result, stopped), of one batch."""
    worker = LLMWorker(settings, folder, Keys.of(["OPENAI_API_KEY"], {}))
    columns = {
        "index": list(range(len(requests))),
        "model": [request.model for request in requests],
        "schema": [schema_name(request) for request in requests],
        "messages": [json.dumps(request.messages) for request in requests],
    }
    rows = asyncio.run(worker(pa.table(columns))).to_pylist()
    return {row["index"]: (result_from_json(row["result"]), row["stopped"]) for row in rows}


def requests_of(pool, count=3):
    rows = [
        LabeledExample(id=f"l{n}", dataset="d", text=f"Return item {n} of the list.", label="a")
        for n in range(count)
    ]
    return [requests_for(row, "paraphrase", pool=pool)[0] for row in rows]


def test_results_come_back_by_index_and_stand_in_the_cache(tmp_path):
    settings, folder = SynthesisSection(endpoint="builtin"), Folder.open(str(tmp_path))
    requests = requests_of(settings.pool)

    found = answered(settings, folder, requests)

    cached = cached_answers(folder, [one.key(settings.sampling) for one in requests])
    for index, request in enumerate(requests):
        result, stopped = found[index]
        assert (stopped, result.reused, result.failure) == ("", False, "")
        assert result.answer == cached[request.key(settings.sampling)]
        assert set(json.loads(result.answer.content)) == {"text"}


def test_what_earlier_attempts_spent_is_counted_and_the_message_travels_in_a_column(tmp_path):
    folder = Folder.open(str(tmp_path))
    with serving(LLMServer(lambda _: '{"text": "Give back one item."}')) as url:
        settings = SynthesisSection(
            endpoint=url, model="m", input_price=1e3, output_price=1e3, max_cost=1.0, concurrency=1
        )
        requests = requests_of(settings.pool, count=30)
        first = answered(settings, folder, requests)
        again = answered(settings, folder, requests)

    assert {stopped.partition(" is spent")[0] for _, stopped in first.values()} == {"synthesis.max_cost (1)"}
    assert all(result.answer is None for result, _ in again.values())
    assert len(cached_answers(folder, [one.key(settings.sampling) for one in requests])) > 0
