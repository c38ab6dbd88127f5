"""The client against a real HTTP server on the loopback address that fails on purpose."""

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.data.storage import Folder
from qzhou.errors import EndpointError
from qzhou.synthesis.chat import ChatRequest
from qzhou.synthesis.client import ChatClient
from qzhou.synthesis.rate_limiter import RateLimiter, RequestLimits
from qzhou.synthesis.response_cache import ResponseCache, totals

OK = (200, {})


class FaultyServer(ThreadingHTTPServer):
    """Answers the n-th request for a text as its script says: (status, headers), then 200 for ever."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script=(), delay_s=0.0, structured=True):
        super().__init__(("127.0.0.1", 0), FaultyHandler)
        self.script, self.delay_s = script, delay_s
        self.asked, self.busy, self.most_busy, self.lock = Counter(), 0, 0, threading.Lock()
        self.formats, self.structured = [], structured

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with self.server.lock:
            tried = self.server.asked[text]
            self.server.asked[text] += 1
            self.server.formats.append(body.get("response_format", {}).get("json_schema"))
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        time.sleep(self.server.delay_s)
        status, headers = self.server.script[tried] if tried < len(self.server.script) else OK
        if "response_format" in body and not self.server.structured:
            status = 400
        message = {"role": "assistant", "content": f"re: {text}"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "its-real-name"}
        answer["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        answer["usage"] = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        said = self.headers["Authorization"]
        content = json.dumps(answer if status == 200 else {"error": {"message": f"no, {said}"}}).encode()
        with self.server.lock:
            self.server.busy -= 1
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serving(**faults) -> Iterator[FaultyServer]:
    server = FaultyServer(**faults)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def ask(url, texts, folder, waits=None, **settings):
    """Outcomes of one client's life; ``waits`` collects the seconds it would have slept."""
    waits = [] if waits is None else waits

    async def sleep(seconds):
        waits.append(seconds)

    async def life():
        made = settings if "models" in settings else {"endpoint": url, "model": "m", **settings}
        asked = SynthesisSection(**{"max_retries": 2, **made})
        client = client_of(asked, folder, sleep=sleep, jitter=lambda: 0.0)
        try:
            return await client.send([question(text, asked.pool[0].model) for text in texts])
        finally:
            await client.close()

    return asyncio.run(life())


def client_of(settings, folder, **more):
    cache = folder if isinstance(folder, ResponseCache) else ResponseCache(Folder.open(str(folder)))
    rate_limiter = RateLimiter(RequestLimits(settings, spent=totals(cache.folder)[1]))
    keys = Keys.of(["OPENAI_API_KEY"], {"OPENAI_API_KEY": "sk-secret-of-mine"})
    return ChatClient(settings, keys=keys, cache=cache, rate_limiter=rate_limiter, **more)


def question(text, model="m", schema=None):
    return ChatRequest(model=model, messages=[{"role": "user", "content": text}], schema=schema)


def test_an_answer_names_the_model_the_endpoint_says_it_is(tmp_path):
    with serving() as server:
        (outcome,) = ask(server.url, ["hello"], tmp_path)

    answer = outcome.answer
    assert (answer.model, answer.content) == ("its-real-name", "re: hello")
    assert (answer.prompt_tokens, answer.completion_tokens, outcome.reused) == (3, 2, False)


def test_retry_after_is_honoured(tmp_path):
    waits = []
    with serving(script=[(429, {"Retry-After": "7"})]) as server:
        (outcome,) = ask(server.url, ["hello"], tmp_path, waits)

    assert outcome.answer is not None
    assert waits == [7 + 0.5 / 2]


def test_a_rate_limit_drops_no_row_while_there_is_patience(tmp_path):
    """At 429 for three tries in ten one row of a thousand was dropped after five retries."""
    waits = []
    with serving(script=[(429, {})] * 9) as server:
        (patient,) = ask(server.url, ["hello"], tmp_path / "a", waits)
    with serving(script=[(429, {})] * 9) as server:
        (hurried,) = ask(server.url, ["hello"], tmp_path / "b", give_up_after_s=1.0)

    assert patient.answer is not None
    assert len(waits) == 9
    assert "status 429" in hurried.failure
    assert server.asked["hello"] == 4  # the first, two retries, and one more after less than a second of waiting


def test_a_server_error_is_retried_with_growing_waits(tmp_path):
    waits = []
    with serving(script=[(500, {}), (503, {})]) as server:
        (outcome,) = ask(server.url, ["hello"], tmp_path, waits)

    assert outcome.answer is not None
    assert waits == [0.25, 0.5]


def test_a_request_that_keeps_failing_is_an_outcome_and_no_crash(tmp_path):
    with serving(script=[(500, {})] * 9) as server:
        (outcome,) = ask(server.url, ["hello"], tmp_path)

    assert outcome.answer is None
    assert "status 500" in outcome.failure
    assert server.asked == {"hello": 3}


def test_a_bad_request_is_not_retried(tmp_path):
    with serving(script=[(400, {})]) as server:
        (outcome,) = ask(server.url, ["hello"], tmp_path)

    assert "status 400" in outcome.failure
    assert server.asked == {"hello": 1}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_ends_the_work_and_never_shows_the_key(tmp_path, status):
    with (
        serving(script=[(status, {})] * 9) as server,
        pytest.raises(EndpointError, match=rf"127.0.0.1.*status {status}") as caught,
    ):
        ask(server.url, [f"hello {n}" for n in range(9)], tmp_path)

    assert "OPENAI_API_KEY" in str(caught.value)
    assert "sk-sec" not in str(caught.value)
    assert "***" in str(caught.value)


def test_an_endpoint_that_is_down_is_reported_with_what_was_kept(tmp_path):
    with serving() as server:
        ask(server.url, ["a", "b"], tmp_path)
    with pytest.raises(EndpointError, match=r"cannot be reached"):
        ask(server.url, ["c"], tmp_path)


@pytest.mark.slow
def test_a_failing_endpoint_rests_and_a_single_probe_brings_it_back(tmp_path):
    waits = []
    with serving(script=[(503, {})]) as server:
        outcomes = ask(server.url, [str(n) for n in range(30)], tmp_path, waits, concurrency=30, max_retries=0)

    lost = [outcome for outcome in outcomes if outcome.answer is None]
    # from the twentieth failure in a row on it is the endpoint's: nobody else loses a try
    assert len(lost) == 19
    assert server.asked.total() == 30 + 11


def test_another_endpoint_takes_over_from_one_that_refuses(tmp_path):
    with serving(script=[(401, {})] * 9) as closed, serving() as good:
        model = LLMSection(model="m", endpoints=(closed.url, good.url))
        outcomes = ask("", ["a", "b", "c"], tmp_path, models=(model,), concurrency=1)

    assert [outcome.answer.content for outcome in outcomes] == ["re: a", "re: b", "re: c"]
    assert (closed.asked.total(), good.asked.total()) == (1, 3)


def test_the_work_ends_cleanly_before_more_is_spent_than_allowed(tmp_path):
    prices = {"input_price": 1e5, "output_price": 1e5}  # five tokens an answer: 0.5
    with serving() as server:
        with pytest.raises(EndpointError, match=r"max_cost \(4\) is spent: 3\.5000 for"):
            ask(server.url, [str(n) for n in range(50)], tmp_path, max_cost=4, concurrency=2, **prices)
        first = server.asked.total()
        answers, cost = totals(Folder.open(str(tmp_path)))
        assert answers == first
        assert 2.5 < cost <= 4
        with pytest.raises(EndpointError, match="is spent"):
            ask(server.url, [str(n) for n in range(50)], tmp_path, max_cost=4, **prices)

        assert server.asked.total() == first  # what earlier attempts spent counts


def test_structured_output_is_asked_for_until_an_endpoint_refuses_it(tmp_path):
    schema = {"name": "relevance_check", "strict": True, "schema": {"type": "object"}}

    async def life(settings):
        client = client_of(settings, tmp_path)
        found = [await client.send([question(text, schema=schema)]) for text in "abcd"]
        await client.close()
        return found

    with serving(structured=False) as server:
        settings = SynthesisSection(endpoint=server.url, model="m")
        outcomes = asyncio.run(life(settings))

    assert [outcome.answer.content for (outcome,) in outcomes] == ["re: a", "re: b", "re: c", "re: d"]
    # three times the schema, JSON mode and neither; then the endpoint is known
    assert server.formats == 3 * [schema, None, None] + [None]


def test_a_request_that_takes_too_long_is_retried_and_given_up(tmp_path):
    with serving(delay_s=3) as server:
        (outcome,) = ask(server.url, ["slow"], tmp_path, timeout_s=1, max_retries=1)

    assert "no answer within 1 s" in outcome.failure


def test_identical_requests_are_sent_once(tmp_path):
    with serving() as server:
        outcomes = ask(server.url, ["same", "other", "same", "same"], tmp_path)

    assert server.asked == {"same": 1, "other": 1}
    assert [outcome.reused for outcome in outcomes] == [False, False, True, True]
    assert [outcome.answer.content for outcome in outcomes] == ["re: same", "re: other", "re: same", "re: same"]


def test_a_resumed_cache_sends_nothing_again(tmp_path):
    with serving() as server:
        first = ask(server.url, ["a", "b"], tmp_path)
        second = ask(server.url, ["b", "a"], tmp_path)

    assert server.asked == {"a": 1, "b": 1}
    assert [outcome.answer for outcome in second] == [outcome.answer for outcome in first[::-1]]
    assert all(outcome.reused for outcome in second)


def test_only_the_torn_answer_is_asked_again(tmp_path):
    with serving() as server:
        ask(server.url, ["a", "b"], tmp_path, concurrency=1)
        (written,) = tmp_path.glob("*.jsonl")
        written.write_bytes(written.read_bytes()[:-3])
        ask(server.url, ["a", "b"], tmp_path)

    assert sorted(server.asked.values()) == [1, 2]


def test_concurrency_is_reached_and_never_exceeded(tmp_path):
    with serving(delay_s=0.05) as server:
        ask(server.url, [str(number) for number in range(12)], tmp_path, concurrency=3)

    assert server.most_busy == 3


def test_waiting_for_a_retry_holds_no_slot(tmp_path):
    order = []

    async def life(url):
        waits = asyncio.Event()

        async def sleep(_):
            waits.set()
            while "b" not in order:  # would hang if "a" slept in the only slot
                await asyncio.sleep(0.01)

        client = client_of(SynthesisSection(endpoint=url, model="m", concurrency=1), tmp_path, sleep=sleep)

        async def one(text):
            await client.send([question(text)])
            order.append(text)

        async with asyncio.timeout(300):
            first = asyncio.create_task(one("a"))
            await waits.wait()
            server.script = []
            await asyncio.gather(first, one("b"))
        await client.close()

    with serving(script=[(503, {})]) as server:
        asyncio.run(life(server.url))

    assert order == ["b", "a"]


def test_answers_under_way_are_kept_when_the_endpoint_is_given_up(tmp_path):
    async def life(url, cache):
        client = client_of(SynthesisSection(endpoint=url, model="m"), cache)
        slow = asyncio.create_task(client.send([question("slow")]))
        while server.asked["slow"] < 2:
            await asyncio.sleep(0.01)
        server.script, server.delay_s = [(401, {})], 0.0
        with pytest.raises(EndpointError):
            await client.send([question("refused")])
        (outcome,) = await slow
        await client.close()
        return outcome

    cache = ResponseCache(Folder.open(str(tmp_path)))
    with serving(script=[], delay_s=0.4) as server:
        server.asked["slow"] = 1  # past the script that is set while it is under way
        outcome = asyncio.run(life(server.url, cache))

    assert outcome.answer is not None
    assert totals(cache.folder)[0] == 1


def test_a_port_that_nobody_listens_on_is_an_endpoint_error(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match="cannot be reached"):
            ask(url, ["a"], tmp_path)
