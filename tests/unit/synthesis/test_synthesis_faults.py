"""Two thousand requests to an endpoint that goes wrong in every way: each ends once, and nothing is paid twice."""

import asyncio
import json
import re
import resource
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pyarrow as pa
import pytest

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.data.records import RetrievalExample
from qzhou.data.storage import Folder
from qzhou.errors import EndpointError
from qzhou.synthesis.batch_api import BatchSender
from qzhou.synthesis.builtin import answer_by_rules
from qzhou.synthesis.chat import ChatRequest, request_key
from qzhou.synthesis.client import ChatClient
from qzhou.synthesis.generation import example_requests, generate, merge
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.llm_worker import LLMWorker
from qzhou.synthesis.rate_limiter import RateLimiter, RequestLimits
from qzhou.synthesis.response_cache import ResponseCache, totals
from qzhou.synthesis.schemas import schema_name
from tests.llm_faults import FAULTS, Behaviour
from tests.llm_server import LLMServer, serving

ROWS = 2000
KEY = "sk-never-to-be-seen"


def settings_of(url, **more):
    return SynthesisSection(endpoint=url, model="m", hard_negative_rows=ROWS, **more)


class RecordedLimits(RequestLimits):
    """Limits that record when they let requests start, by their own clock, which no busy machine delays."""

    def __init__(self, settings):
        super().__init__(settings)
        self.started = []

    def start(self, now, reservation):
        wait_s = super().start(now, reservation)
        if wait_s == 0:
            self.started.append(now)
        return wait_s


def asking(settings, folder, limits=None):
    """What stands for the pipeline's sender: one client, one response cache, one rate limiter."""

    def ask(requests):
        async def life():
            cache = ResponseCache(folder)
            rate_limiter = RateLimiter(limits or RequestLimits(settings))
            keys = Keys.of(["OPENAI_API_KEY"], {})
            client = ChatClient(settings, keys=keys, cache=cache, rate_limiter=rate_limiter, jitter=lambda: 0.0)
            outcomes = await client.send([ChatRequest(model=one.model, messages=one.messages) for one in requests])
            await client.close()
            return dict(zip(requests, outcomes, strict=True))

        return asyncio.run(life())

    return ask


def examples(count):
    return [
        RetrievalExample(
            id=f"r{n}",
            dataset="d",
            query=f"Return the first row of array {n}.",
            positives=(f"The first row of array {n} is returned as a new list of {n} elements.",),
        )
        for n in range(count)
    ]


@pytest.mark.slow
def test_at_a_tenth_of_faults_of_every_kind_each_row_ends_once(tmp_path):
    faults = dict.fromkeys(FAULTS, 0.1 / len(FAULTS))
    rows = examples(ROWS)
    endpoint = LLMServer(answer_by_rules, Behaviour(latency_s=0.02, latency_spread=0.5, **faults))
    with serving(endpoint) as url:
        settings = settings_of(url, concurrency=24, timeout_s=1.0, max_retries=8, parse_retries=3)
        requests = example_requests(rows, "retrieval", settings, seed=0)
        result = generate(requests, {("d", one.id): one for one in rows}, asking(settings, Folder.open(str(tmp_path))),
                         settings, Ledger())  # fmt: skip

    counts = endpoint.counts
    assert set(counts.faults) == set(FAULTS)  # every kind was met
    kept = merge([one.id for one in rows], result).kept
    ended = [one.seed.id for one in kept.records]
    ended += [json.loads(one.record)["request"]["example_id"] for one in kept.dropped]
    assert sorted(ended) == sorted(one.id for one in rows)
    assert len(kept.records) > 0.97 * ROWS
    plain = counts.plain()
    assert plain["completed"] == plain["distinct"]
    assert plain["twice"] == 0
    assert counts.peak <= 24
    # answers without use: asked again in other words
    retried = counts.faults["empty"] + counts.faults["babble"]
    assert plain["distinct"] <= ROWS + retried


# How models wrap what they were asked for; none of it changes the object inside.
SHAPES = {
    "bare": "{}",
    "fenced": "```json\n{}\n```",
    "fenced in capitals, with prose": "Here you are:\n```JSON\n{}\n```\nI hope this helps!",
    "thoughts": "<think>They want a document {{like this}}.</think>\n{}",
    "thoughts whose tag stands in the prompt": "They want a document.\n</think>\n\n{}",
    "thoughts under another name": "<thinking>Hm.</thinking>{}",
    "prose around": "Sure! {} Let me know whether you want another one.",
    "a token of the chat": "{}<|im_end|>",
    "a channel": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{}",
    "a byte order mark": "\ufeff{}",
    "a trailing comma": "{}",
    "a raw line break in a string": "{}",
}


def in_shape(messages):
    """The rules' answer in one of the shapes, by the row."""
    content = answer_by_rules(messages)
    shapes = list(SHAPES)
    shape = shapes[int(re.search(r"array (\d+)", messages[1]["content"])[1]) % len(shapes)]
    if shape == "a trailing comma":
        content = content[:-1] + ",}"
    if shape == "a raw line break in a string":
        content = content.replace(" of ", " of\n", 1)
    return SHAPES[shape].replace("{{", "{").replace("}}", "}").replace("{}", content, 1)


@pytest.mark.parametrize(
    ("fault", "answer", "behaviour", "kept", "dropped"),
    [
        ("none", answer_by_rules, {}, 96, {}),
        ("answers in twelve shapes", in_shape, {}, 96, {}),
        ("429 for three in ten", answer_by_rules, {"rate_limited_silently": 0.3}, 96, {}),
        ("503 for three in ten", answer_by_rules, {"unavailable": 0.3}, 96, {}),
        ("nothing but babble", answer_by_rules, {"babble": 1.0}, 0, {"not_json": 96}),
        ("nothing but empty answers", answer_by_rules, {"empty": 1.0}, 0, {"no_text": 96}),
    ],
)
def test_rows_are_kept_or_dropped_with_a_reason_and_none_is_paid_for_twice(
    tmp_path, fault, answer, behaviour, kept, dropped
):
    rows = examples(96)
    endpoint = LLMServer(answer, Behaviour(**behaviour))
    with serving(endpoint) as url:
        settings = settings_of(url, concurrency=12, max_retries=12)
        requests = example_requests(rows, "retrieval", settings, seed=0)
        seeds = {("d", one.id): one for one in rows}
        result = generate(requests, seeds, asking(settings, Folder.open(str(tmp_path))), settings, Ledger())

    found = merge([one.id for one in rows], result).kept
    plain = endpoint.counts.plain()
    assert (len(found.records), Counter(one.reason for one in found.dropped)) == (kept, dropped), fault
    assert plain["twice"] == 0
    assert len(found.records) + len(found.dropped) == 96


def test_a_full_disk_ends_the_work_with_its_name_and_what_was_kept_is_not_paid_for_again(tmp_path):
    """A limit on the size of files stands for the disk; Linux gives another error number, and Python the same class."""
    folder, rows = Folder.open(str(tmp_path)).create(), examples(96)
    endpoint = LLMServer(answer_by_rules)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(endpoint) as url:
        settings = settings_of(url, concurrency=4)
        requests = example_requests(rows, "retrieval", settings, seed=0)
        table = pa.table(
            {
                "index": list(range(96)),
                "model": ["m"] * 96,
                "schema": [schema_name(one) for one in requests],
                "messages": [json.dumps(one.messages) for one in requests],
            }
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            full = asyncio.run(LLMWorker(settings, folder, Keys.of(["OPENAI_API_KEY"], {}))(table)).to_pylist()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        kept = totals(folder)[0]
        again = asyncio.run(LLMWorker(settings, folder, Keys.of(["OPENAI_API_KEY"], {}))(table)).to_pylist()

    assert all(row["stopped"].startswith("answers cannot be kept in the response cache: ") for row in full)
    assert 0 < kept < 96
    assert all(json.loads(row["result"])["answer"] for row in again)
    assert totals(folder)[0] == 96
    reused = sum(json.loads(row["result"])["reused"] for row in again)
    assert reused == kept


def test_limits_of_the_server_are_kept_to_without_a_single_refusal(tmp_path):
    endpoint = LLMServer(answer_by_rules, Behaviour(requests_per_minute=100, concurrency=3))
    with serving(endpoint) as url:
        settings = settings_of(url, concurrency=3, requests_per_minute=1200, max_retries=0)
        rows = examples(60)
        limits = RecordedLimits(settings)
        send = asking(settings, Folder.open(str(tmp_path)), limits)
        found = send(example_requests(rows, "retrieval", settings, seed=0))

    started = limits.started
    assert all(one.answer for one in found.values())
    assert len(started) == endpoint.counts.received == 60
    assert endpoint.counts.peak <= 3
    assert endpoint.counts.faults == {}
    longest_burst = max(sum(start <= one < start + 1 for one in started) for start in started)
    assert longest_burst <= 2 * 20  # a second's worth saved up, and a second's worth that comes in


def test_the_endpoint_knows_the_sdk_and_tells_what_came():
    with serving(LLMServer(answer_by_rules, Behaviour(structured=False))) as url:
        client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="response_format"):
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], response_format={"type": "json_object"}
            )
        client.close()
        counts = json.load(urllib.request.urlopen(url.removesuffix("/v1") + "/counts", timeout=60))

    assert (counts["received"], counts["completed"], counts["under_way"]) == (1, 0, 0)


def test_the_endpoint_starts_from_the_command_line_and_refuses_a_taken_port():
    with serving(LLMServer(answer_by_rules)) as url:
        port = url.split(":")[2].removesuffix("/v1")
        command = [sys.executable, "-m", "tests.llm_server", "--port", port, "--latency_s", "0.5"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} cannot be used")


def batched(url, folder, requests, **more):
    prices = {"input_price": 1e3, "output_price": 1e3}
    settings = SynthesisSection(models=(LLMSection(model="m", endpoints=(url,), **prices),), mode="batch", **more)
    keyed = {request_key("m", one.messages, settings.sampling["m"]): one for one in requests}

    async def sleep(_):
        await asyncio.sleep(0.05)

    keys = Keys.of(["OPENAI_API_KEY"], {"OPENAI_API_KEY": KEY})
    return BatchSender(settings, keys, folder, sleep).send(keyed), keyed


def test_a_batch_is_handed_in_and_its_answers_are_kept(tmp_path):
    folder = Folder.open(str(tmp_path))
    endpoint = LLMServer(answer_by_rules, Behaviour(latency_s=0.2, server_error=0.2))
    with serving(endpoint) as url:
        settings = settings_of(url)
        requests = example_requests(examples(50), "retrieval", settings, seed=0)
        outcomes, keyed = batched(url, folder, requests)

    assert set(outcomes) == set(keyed)
    assert all(one.answer for one in outcomes.values()), "what failed for a while is handed in again"
    assert endpoint.counts.faults["server_error"] > 0
    answers, cost = totals(folder)
    assert answers == 50
    assert cost > 0
    assert (folder / "batches").files() == []


def test_a_batch_that_was_handed_in_before_the_kill_is_found_by_its_id(tmp_path):
    folder = Folder.open(str(tmp_path))
    endpoint = LLMServer(answer_by_rules)
    with serving(endpoint) as url:
        requests = example_requests(examples(10), "retrieval", settings_of(url), seed=0)
        client = openai.OpenAI(base_url=url, api_key="k")
        keys = [request_key("m", one.messages, {"temperature": 0.7}) for one in requests]
        lines = [
            json.dumps({"custom_id": key, "body": {"model": "m", "messages": one.messages, "temperature": 0.7}})
            for key, one in zip(keys, requests, strict=True)
        ]
        file = client.files.create(file=("requests.jsonl", "\n".join(lines).encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        client.close()
        (folder / "batches").write_json(f"{batch.id}.json", {"model": "m", "keys": keys})

        outcomes, _ = batched(url, folder, requests)

    assert all(one.answer for one in outcomes.values())
    assert endpoint.counts.plain()["completed"] == 10  # not twenty


def test_a_batch_of_a_model_that_the_recipe_no_longer_names_is_skipped_and_stays_on_record(tmp_path, capsys):
    folder = Folder.open(str(tmp_path))
    (folder / "batches").write_json("batch_old.json", {"model": "gone", "keys": ["a", "b"]})
    with serving(LLMServer(answer_by_rules)) as url:
        outcomes, keyed = batched(url, folder, example_requests(examples(3), "retrieval", settings_of(url), seed=0))

    assert set(outcomes) == set(keyed)
    assert all(one.answer for one in outcomes.values())
    assert "batch batch_old is skipped: the recipe no longer names its model 'gone'" in capsys.readouterr().out
    assert (folder / "batches").files() == ["batch_old.json"]


def test_batches_that_would_cost_more_than_allowed_are_not_handed_in(tmp_path):
    endpoint = LLMServer(answer_by_rules)
    with serving(endpoint) as url:
        requests = example_requests(examples(10), "retrieval", settings_of(url), seed=0)
        with pytest.raises(EndpointError, match=r"max_cost \(0.5\) would be exceeded: 0.0000 is spent, and the 10"):
            batched(url, Folder.open(str(tmp_path)), requests, max_cost=0.5)

    assert endpoint.counts.received == 0


def test_the_batch_api_never_shows_the_key(tmp_path):
    class Quoting(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"error": {"message": f"wrong key {self.headers['Authorization']}"}}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quoting)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    with pytest.raises(EndpointError, match=r"Batch API refuses: .*\*\*\*") as caught:
        batched(
            url, Folder.open(str(tmp_path)), example_requests(examples(3), "retrieval", settings_of(url), seed=0)
        )
    server.shutdown()
    server.server_close()

    assert "sk-nev" not in str(caught.value)
