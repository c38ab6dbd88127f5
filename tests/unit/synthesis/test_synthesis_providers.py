"""What providers do differently: fields they refuse, moderated inputs, answers in parts, batches that end early."""

import asyncio
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.data.records import RetrievalExample
from qzhou.data.storage import Folder
from qzhou.errors import EndpointError
from qzhou.synthesis.batch_api import BatchSender
from qzhou.synthesis.chat import ChatRequest
from qzhou.synthesis.client import ChatClient
from qzhou.synthesis.generation import example_requests
from qzhou.synthesis.llm_worker import LLMWorker, result_from_json
from qzhou.synthesis.rate_limiter import RateLimiter, RequestLimits
from qzhou.synthesis.response_cache import ResponseCache, totals
from qzhou.synthesis.schemas import response_schema

KEYS = Keys.of(["OPENAI_API_KEY"], {"OPENAI_API_KEY": "sk-secret-of-mine"})
SCHEMA = response_schema("query")


def completion(text, finish="stop", **usage):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 3, "completion_tokens": 2} | usage
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@contextlib.contextmanager
def provider(reply):
    """An endpoint whose ``reply(body)`` gives (status, JSON, headers); what came is in ``bodies`` and ``paths``."""
    seen = {"bodies": [], "paths": [], "headers": []}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen["bodies"].append(body)
            seen["paths"].append(self.path)
            seen["headers"].append({name.lower(): value for name, value in self.headers.items()})
            status, content, headers = (*reply(body), {})[:3]
            raw = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": len(raw), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def refused(message, status=400):
    return status, {"detail": message}  # not in OpenAI's form: what the SDK says of it is a number


def ask(url, texts, folder, *, waits=None, **settings):
    """The results of texts, one after the other."""

    async def sleep(seconds):
        (waits if waits is not None else []).append(seconds)

    async def life():
        asked = SynthesisSection(**{"endpoint": url, "model": "m", "max_retries": 1, "concurrency": 1, **settings})
        cache = ResponseCache(Folder.open(str(folder)))
        limits = RateLimiter(RequestLimits(asked))
        client = ChatClient(asked, keys=KEYS, cache=cache, rate_limiter=limits, sleep=sleep)
        try:
            requests = [ChatRequest(model="m", messages=[{"role": "user", "content": text}], schema=SCHEMA)
                        for text in texts]  # fmt: skip
            return [(await client.send([request]))[0] for request in requests]
        finally:
            await client.close()

    return asyncio.run(life())


def test_a_moderated_input_is_that_input_s_fault_alone(tmp_path):
    """OpenRouter answers 403 to one flagged input: the job ended, and so did every rerun."""

    def reply(body):
        flagged = body["messages"][-1]["content"] == "bad"
        return refused("your input was flagged", 403) if flagged else (200, completion("fine"))

    with provider(reply) as (url, _):
        results = ask(url, ["a", "bad", "b"], tmp_path)

    assert [result.answer and result.answer.content for result in results] == ["fine", None, "fine"]
    assert "403" in results[1].failure


@pytest.mark.parametrize("texts", [["bad"], ["bad", "a"], ["a", "b"]])
def test_a_moderated_input_ends_no_rerun_and_may_come_first(tmp_path, texts):
    def reply(body):
        flagged = body["messages"][-1]["content"] == "bad"
        return refused("your input was flagged", 403) if flagged else (200, completion("fine"))

    with provider(reply) as (url, _):
        first, again = ask(url, texts, tmp_path), ask(url, texts, tmp_path)

    for results in (first, again):
        assert [result.answer is None for result in results] == [text == "bad" for text in texts]


def test_a_key_without_permission_still_ends_the_work(tmp_path):
    with provider(lambda _: refused("no permission", 403)) as (url, _), pytest.raises(EndpointError, match="403"):
        ask(url, [f"text {n}" for n in range(20)], tmp_path)


@pytest.mark.parametrize(
    ("refuses", "message", "field", "kept"),
    [
        (lambda body: "temperature" in body, "'temperature' does not support 0.7 with this model", "temperature", None),
        (lambda body: "max_tokens" in body, "'max_tokens' is not supported: use 'max_completion_tokens' instead",
         "max_tokens", "max_completion_tokens"),
        (lambda body: "max_tokens" in body, "unknown field max_tokens", "max_tokens", None),
        (lambda body: "model" in body, "Server is pinned to 'folder'; requested 'm'.", "model", None),
    ],
)  # fmt: skip
def test_a_field_that_a_model_refuses_is_left_out_from_then_on(tmp_path, refuses, message, field, kept):
    """Reasoning models of OpenAI: 200 requests gave 400 calls, no answer and no error."""
    with provider(lambda body: refused(message) if refuses(body) else (200, completion("fine"))) as (url, seen):
        results = ask(url, ["a", "b"], tmp_path)

    assert all(result.answer for result in results)
    assert [field in body for body in seen["bodies"]] == [True, False, False]
    assert kept is None or kept in seen["bodies"][-1]


@pytest.mark.parametrize(("status", "message"), [(400, "no"), (415, "no"), (422, "no"), (501, "no"),
                                                 (500, "failed to compile the grammar")])  # fmt: skip
def test_where_there_are_no_schemas_json_mode_is_tried(tmp_path, status, message):
    def reply(body):
        kind = body.get("response_format", {}).get("type")
        return refused(message, status) if kind == "json_schema" else (200, completion("fine"))

    with provider(reply) as (url, seen):
        results = ask(url, "abcde", tmp_path)

    assert all(result.answer for result in results)
    kinds = [body["response_format"]["type"] for body in seen["bodies"]]
    assert kinds == 3 * ["json_schema", "json_object"] + 2 * ["json_object"]


def test_a_schema_that_one_input_breaks_is_still_asked_for(tmp_path):
    """One 400 of 31 turned structured output off for that endpoint for good."""

    def reply(body):
        is_bad = body["messages"][-1]["content"] == "bad"
        return refused("no") if is_bad and body.get("response_format") else (200, completion("fine"))

    with provider(reply) as (url, seen):
        ask(url, ["a", "bad", "b", "bad ", "c"], tmp_path)

    assert seen["bodies"][-1]["response_format"]["type"] == "json_schema"


def test_an_answer_may_come_in_parts(tmp_path):
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "fine"}]
    with provider(lambda _: (200, completion(parts))) as (url, _):
        (result,) = ask(url, ["a"], tmp_path)

    assert result.answer.content == "fine"


def test_an_answer_that_was_cut_is_not_reused_and_the_next_one_may_be_longer(tmp_path):
    """Cut and empty answers were replayed for ever, since their key was answered."""
    with provider(lambda _: (200, completion("half an ans", "length"))) as (url, seen):
        first = ask(url, ["a", "b"], tmp_path)
        ask(url, ["a"], tmp_path)

    limits = [body["max_tokens"] for body in seen["bodies"]]
    assert [one.answer.finish_reason for one in first] == ["length", "length"]
    assert len(limits) == 3
    assert limits[1] == 2 * limits[0] > 4000


def test_what_the_recipe_adds_to_requests_is_sent(tmp_path):
    """And Azure's ``?api-version=`` stays a query: it ended up inside the path."""
    model = {
        "model": "m", "temperature": 0.2, "top_p": 0.9, "max_tokens": 77, "headers": {"X-Title": "mine"},
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
    }  # fmt: skip
    with provider(lambda _: (200, completion("fine"))) as (url, seen):
        models = (LLMSection(endpoints=(f"{url}/d?api-version=2024-06-01",), **model),)
        (result,) = ask(url, ["a"], tmp_path, endpoint="", models=models)

    (body,), (path,), (headers,) = seen["bodies"], seen["paths"], seen["headers"]
    assert result.answer
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.2, 0.9, 77)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert headers["x-title"] == "mine"
    assert urlsplit(path).path == "/v1/d/chat/completions"
    assert parse_qs(urlsplit(path).query) == {"api-version": ["2024-06-01"]}


def test_a_wait_of_a_day_is_cut_and_said(tmp_path, capsys):
    waits, replies = [], iter([(*refused("later", 429), {"Retry-After": 86_400}), (200, completion("fine"))])
    with provider(lambda _: next(replies)) as (url, _):
        (result,) = ask(url, ["a"], tmp_path, waits=waits, give_up_after_s=300)

    assert result.answer
    assert 300 <= waits[0] < 302
    assert "asks to wait 86,400 s; it is asked again after 300 s" in capsys.readouterr().out


def test_a_worker_in_a_dead_one_s_place_pays_for_nothing_twice(tmp_path):
    folder = Folder.open(str(tmp_path))
    table = pa.table({
        "index": [0, 1], "model": ["m", "m"], "schema": ["query", "query"],
        "messages": [json.dumps([{"role": "user", "content": text}]) for text in "ab"],
    })  # fmt: skip

    async def answered(url):
        settings = SynthesisSection(endpoint=url, model="m")
        return await LLMWorker(settings, folder, KEYS, known)(table)

    with provider(lambda _: (200, completion("fine"))) as (url, seen):
        known = folder.files(".jsonl")
        first, again = asyncio.run(answered(url)), asyncio.run(answered(url))

    assert len(seen["bodies"]) == 2
    for table in (first, again):
        assert [result_from_json(one).answer.content for one in table["result"].to_pylist()] == ["fine", "fine"]


class Batches:
    """OpenAI's Batch API as an object: ``outcomes`` are (status, share of the lines that are answered) in turn."""

    def __init__(self, *outcomes, text="fine", undone=None):
        self.outcomes, self.lines, self.sizes, self.text, self.polls = iter(outcomes), {}, [], text, 0
        self.undone = undone  # what the error file says of each request that has no answer

    def client(self):
        this = self

        class Found:
            def __init__(self, **fields):
                self.__dict__ |= fields

        class Files:
            async def create(self, *, file, purpose):
                assert purpose == "batch"
                name = f"file{len(this.lines)}"
                this.lines[name] = file[1].decode().split("\n")
                return Found(id=name)

            async def content(self, name):
                return Found(text=this.lines[name])

        class Open:
            async def create(self, *, input_file_id, **_):
                lines = [json.loads(line) for line in this.lines[input_file_id]]
                this.sizes.append(len(lines))
                status, share = next(this.outcomes)
                done = lines[: round(share * len(lines))]
                answers = [
                    {"custom_id": one["custom_id"], "response": {"body": completion(this.text)}} for one in done
                ]
                name = f"batch{len(this.sizes)}"
                text = "\n".join(json.dumps(one, ensure_ascii=False) for one in answers)
                this.lines[f"out-{name}"], this.lines[name] = text, status
                undone = [
                    {"custom_id": one["custom_id"], **this.undone} for one in lines[len(done) :] if this.undone
                ]
                this.lines[f"error-{name}"] = "\n".join(map(json.dumps, undone))
                return Found(id=name)

            async def retrieve(self, name):
                this.polls += 1
                status = this.lines[name]
                errors = Found(data=[Found(message="Enqueued token limit reached")]) if status == "failed" else None
                error_file = f"error-{name}" if this.undone else None
                return Found(status=status, output_file_id=f"out-{name}", error_file_id=error_file, errors=errors)

        class Client:
            files, batches = Files(), Open()

            async def close(self):
                pass

        return Client()


def batched(api, folder, count=10):
    rows = [RetrievalExample(id=str(n), dataset="d", query=f"q{n}", positives=(f"p{n}",)) for n in range(count)]
    models = (LLMSection(model="m", endpoints=("http://127.0.0.1:1/v1",)),)
    settings = SynthesisSection(models=models, mode="batch", paraphrase_rows=count)
    requests = {one.key(settings.sampling): one for one in example_requests(rows, "retrieval", settings, seed=0)}

    async def sleep(_):
        pass

    return BatchSender(settings, KEYS, Folder.open(str(folder)), sleep, lambda *_: api.client()).send(requests)


def test_what_an_expired_batch_leaves_is_handed_in_again(tmp_path):
    """Of 100 requests 60 were dropped, and the stage was done."""
    api = Batches(("expired", 0.4), ("completed", 1.0))

    results = batched(api, tmp_path)

    assert api.sizes == [10, 6]
    assert all(result.answer for result in results.values())
    assert totals(Folder.open(str(tmp_path)))[0] == 10


EXPIRED = {"response": None, "error": {"code": "batch_expired", "message": "This request could not be executed."}}


@pytest.mark.parametrize(
    "undone",
    [EXPIRED, {"response": {"status_code": 429, "body": {"error": {"message": "slow down"}}}, "error": None}],
)
def test_what_an_error_file_lists_as_undone_is_handed_in_again(tmp_path, undone):
    """OpenAI writes a line for each request that it did not come to; these became drops."""
    api = Batches(("expired", 0.4), ("expired", 0.5), ("completed", 1.0), undone=undone)

    results = batched(api, tmp_path)

    assert api.sizes == [10, 6, 3]
    assert all(result.answer for result in results.values())


def test_a_batch_of_which_nothing_was_done_is_an_error_in_the_endpoint_s_words(tmp_path):
    api = Batches(("expired", 0.0), undone=EXPIRED)

    with pytest.raises(EndpointError, match=r"10 requests have no answer: .*could not be executed"):
        batched(api, tmp_path)


QUOTED = {"message": "wrong key sk-secret-of-mine"}


@pytest.mark.parametrize(
    "undone",
    [
        {"response": None, "error": {"code": "batch_expired", **QUOTED}},
        {"response": {"status_code": 429, "body": {"error": QUOTED}}, "error": {"code": "rate_limit", **QUOTED}},
    ],
)
def test_what_an_error_file_quotes_of_the_key_is_not_shown(tmp_path, undone):
    with pytest.raises(EndpointError, match=r"have no answer: wrong key \*\*\*") as caught:
        batched(Batches(("expired", 0.0), undone=undone), tmp_path)

    assert "secret" not in str(caught.value)


def test_what_an_answer_quotes_of_the_key_is_not_kept(tmp_path):
    undone = {"response": {"status_code": 400, "body": {"error": QUOTED}}, "error": None}

    results = batched(Batches(("completed", 0.9), undone=undone), tmp_path)

    assert [one.failure for one in results.values() if one.failure] == ["status 400: wrong key ***"]


def test_a_request_that_always_fails_is_dropped_in_the_end_with_its_reason(tmp_path):
    undone = {"response": {"status_code": 500, "body": {"error": {"message": "out of order"}}}, "error": None}
    api = Batches(*[("completed", 0.9)] + [("completed", 0.0)] * 20, undone=undone)

    results = batched(api, tmp_path)

    (failed,) = [result for result in results.values() if result.answer is None]
    assert failed.failure == "status 500: out of order"


def test_a_batch_that_fails_is_an_error_and_no_drop(tmp_path):
    api = Batches(("expired", 0.4), ("failed", 0.0))

    with pytest.raises(
        EndpointError, match="6 requests have no answer: batch batch2 has failed: Enqueued token limit"
    ):
        batched(api, tmp_path)

    assert totals(Folder.open(str(tmp_path)))[0] == 4
    assert not (Folder.open(str(tmp_path)) / "batches").files()


def test_a_line_separator_inside_an_answer_ends_no_line(tmp_path):
    results = batched(Batches(("completed", 1.0), text="one\u2028two"), tmp_path)

    assert {result.answer.content for result in results.values()} == {"one\u2028two"}
