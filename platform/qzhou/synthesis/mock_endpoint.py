"""An OpenAI-compatible endpoint without a model, that goes wrong on purpose and counts what it saw.

It is how the client is tested and measured, and what a person can try a recipe against before paying for one:

    python -m qzhou.synthesis.mock_endpoint --port 9000 --latency_s 0.2 --server_error 0.05

answers ``/v1/chat/completions`` and the Batch API (``/v1/files``, ``/v1/batches``); ``GET /counts`` tells what came.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import itertools
import json
import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from qzhou.llm import BUILTIN_MODEL

HANG_S = 3600.0
RETRY_AFTER_S = 1
LARGEST_BODY = 256 * 2**20

Answer = Callable[[Sequence[Mapping[str, str]]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the endpoint behaves; the faults are shares of the requests, together at most 1.

    Attributes:
        latency_s: Median seconds until an answer.
        latency_spread: Standard deviation of the logarithm of the latency; 0: always the median.
        requests_per_minute: More than this in any minute are answered with 429 and ``Retry-After``; 0: no limit.
        concurrency: More than this at the same time are answered with 429; 0: no limit.
        structured: Whether ``response_format`` with a JSON schema is known; if not, it is answered with 400.
        rate_limited: 429 with ``Retry-After``.
        rate_limited_silently: 429 without.
        server_error: 500.
        unavailable: 503.
        reset: The connection is torn before an answer.
        hang: No answer at all.
        truncated: The body ends in the middle.
        malformed: A body that is no JSON.
        wrong_schema: JSON that is no chat completion.
        empty: A completion without content.
        babble: A completion whose content is not what was asked for.
        seed: Which request meets which fault follows from it.
    """

    latency_s: float = 0.0
    latency_spread: float = 0.0
    requests_per_minute: int = 0
    concurrency: int = 0
    structured: bool = True
    rate_limited: float = 0.0
    rate_limited_silently: float = 0.0
    server_error: float = 0.0
    unavailable: float = 0.0
    reset: float = 0.0
    hang: float = 0.0
    truncated: float = 0.0
    malformed: float = 0.0
    wrong_schema: float = 0.0
    empty: float = 0.0
    babble: float = 0.0
    seed: int = 0


FAULTS = (
    "rate_limited", "rate_limited_silently", "server_error", "unavailable", "reset", "hang", "truncated", "malformed",
    "wrong_schema", "empty", "babble",
)  # fmt: skip


@dataclass(slots=True)
class Counts:
    """What the endpoint saw: ``completed`` counts whole completions by the hash of their request, ``arrivals`` and
    ``last_completed`` are seconds of a monotonic clock, ``served_s`` the sum of what completions took."""

    received: int = 0
    under_way: int = 0
    peak: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)
    arrivals: list[float] = field(default_factory=list)
    last_completed: float = 0.0
    served_s: float = 0.0

    def plain(self) -> dict[str, Any]:
        return {
            "received": self.received,
            "under_way": self.under_way,
            "peak": self.peak,
            "faults": dict(self.faults),
            "completed": sum(self.completed.values()),
            "distinct": len(self.completed),
            "twice": sum(count > 1 for count in self.completed.values()),
            "latency_s": round(self.served_s / sum(self.completed.values()), 6) if self.completed else 0.0,
            "seconds": round(self.last_completed - self.arrivals[0], 4) if self.completed else 0.0,
        }


class MockEndpoint:
    """The application. Not for many threads: one event loop serves it."""

    def __init__(self, answer: Answer, behaviour: Behaviour = Behaviour()) -> None:
        self.behaviour, self.counts, self._answer = behaviour, Counts(), answer
        self._tries: Counter[str] = Counter()
        self._recent: deque[float] = deque()
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count(1)

    def application(self) -> web.Application:
        made = web.Application(client_max_size=LARGEST_BODY)
        made.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/counts", self._show_counts),
                web.post("/v1/files", self._upload),
                web.get("/v1/files/{name}/content", self._download),
                web.post("/v1/batches", self._open_batch),
                web.get("/v1/batches/{name}", self._show_batch),
            ]
        )
        return made

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        counts = self.counts
        counts.received += 1
        counts.under_way += 1
        counts.peak = max(counts.peak, counts.under_way)
        counts.arrivals.append(time.monotonic())
        try:
            return await self._handled(request)
        finally:
            counts.under_way -= 1

    async def _handled(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        raw = await request.read()
        try:
            body = json.loads(raw)
            digest = request_hash(body)
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, f"not a chat request: {error!r}")
        if self._is_above_limits():
            self.counts.faults["above_limit"] += 1
            return _error(429, "too many requests", retry_after_s=RETRY_AFTER_S)
        if "response_format" in body and not self.behaviour.structured:
            return _error(400, "response_format is not supported")
        fault = self._fault(digest)
        if fault:
            self.counts.faults[fault] += 1
        content = {"empty": "", "babble": "Certainly! Here you are."}.get(fault) if fault else None
        try:
            completed = completion(body, self._answer(body["messages"]) if content is None else content)
        except ValueError as error:
            return _error(400, str(error))
        latency_s = HANG_S if fault == "hang" else self._latency_s(digest)
        await asyncio.sleep(max(0.0, arrived + latency_s - time.monotonic()))  # its own work is part of the latency
        if fault in _STATUS:
            wait_s = RETRY_AFTER_S if fault == "rate_limited" else None
            return _error(_STATUS[fault], fault.replace("_", " "), retry_after_s=wait_s)
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "malformed":
            return web.Response(text="<html>Bad gateway", content_type="application/json")
        if fault == "wrong_schema":
            return web.json_response({"object": "chat.completion", "choices": []})
        if fault == "truncated":
            return await self._torn(request, json.dumps(completed).encode())
        self.counts.completed[digest] += 1
        self.counts.last_completed = time.monotonic()
        self.counts.served_s += self.counts.last_completed - arrived
        return web.json_response(completed)

    async def _torn(self, request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

    def _fault(self, digest: str) -> str:
        """The fault that this try of a request meets, or an empty string."""
        place = self._drawn(digest, "fault")
        self._tries[digest] += 1
        for name in FAULTS:
            place -= getattr(self.behaviour, name)
            if place < 0:
                return name
        return ""

    def _latency_s(self, digest: str) -> float:
        spread = self.behaviour.latency_spread
        if not spread:
            return self.behaviour.latency_s
        return self.behaviour.latency_s * math.exp(random.Random(f"{digest} {self._tries[digest]}").gauss(0, spread))

    def _drawn(self, digest: str, purpose: str) -> float:
        return random.Random(f"{self.behaviour.seed} {purpose} {digest} {self._tries[digest]}").random()

    def _is_above_limits(self) -> bool:
        if self.behaviour.concurrency and self.counts.under_way > self.behaviour.concurrency:
            return True
        if not self.behaviour.requests_per_minute:
            return False
        now = time.monotonic()
        while self._recent and self._recent[0] < now - 60:
            self._recent.popleft()
        if len(self._recent) >= self.behaviour.requests_per_minute:
            return True
        self._recent.append(now)
        return False

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": BUILTIN_MODEL, "object": "model", "created": 0, "owned_by": "qzhou"}
        return web.json_response({"object": "list", "data": [model]})

    async def _show_counts(self, _: web.Request) -> web.Response:
        return web.json_response(self.counts.plain())

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        field_ = form["file"]
        assert isinstance(field_, web.FileField)
        name = f"file-{next(self._numbers)}"
        self._files[name] = field_.file.read()
        size = len(self._files[name])
        return web.json_response(
            {"id": name, "object": "file", "bytes": size, "created_at": 0, "filename": "in.jsonl", "purpose": "batch",
             "status": "processed"}
        )  # fmt: skip

    async def _download(self, request: web.Request) -> web.Response:
        return web.Response(body=self._files[request.match_info["name"]])

    async def _open_batch(self, request: web.Request) -> web.Response:
        """Answers every line at once, and says so only after ``latency_s``."""
        asked = await request.json()
        lines = [json.loads(line) for line in self._files[asked["input_file_id"]].splitlines()]
        answered = []
        for line in lines:
            digest = request_hash(line["body"])
            self.counts.received += 1
            self.counts.arrivals.append(time.monotonic())
            fault = self._fault(digest)
            if fault:
                self.counts.faults[fault] += 1
                error = {"error": {"message": fault}}
                answered.append({"custom_id": line["custom_id"], "response": {"status_code": 500, "body": error}})
                continue
            self.counts.completed[digest] += 1
            self.counts.last_completed = time.monotonic()
            body = completion(line["body"], self._answer(line["body"]["messages"]))
            answered.append({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}})
        output, name = f"file-{next(self._numbers)}", f"batch_{next(self._numbers)}"
        self._files[output] = "\n".join(json.dumps(line) for line in answered).encode()
        self._batches[name] = {
            "id": name, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": asked["input_file_id"],
            "completion_window": "24h", "created_at": 0, "output_file_id": output, "status": "in_progress",
            "metadata": asked.get("metadata"), "ready": time.monotonic() + self.behaviour.latency_s,
        }  # fmt: skip
        return self._batch(name)

    async def _show_batch(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return self._batch(name) if name in self._batches else _error(404, f"no such batch: {name}")

    def _batch(self, name: str) -> web.Response:
        found = dict(self._batches[name])
        if time.monotonic() >= found.pop("ready"):
            found["status"] = "completed"
        return web.json_response(found)


def request_hash(body: Mapping[str, Any]) -> str:
    """What makes two requests the same: model, messages, temperature."""
    sent = {name: body[name] for name in ("model", "messages")} | {"temperature": body.get("temperature")}
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()


def completion(request: Mapping[str, Any], content: str) -> dict[str, Any]:
    """The body of a chat completion; tokens are words, near enough for a stand-in."""
    prompt_tokens = sum(len(str(message["content"]).split()) for message in request["messages"])
    completion_tokens = len(content.split())
    return {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": BUILTIN_MODEL,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


@contextmanager
def serving(endpoint: MockEndpoint, port: int = 0) -> Iterator[str]:
    """Serve from a thread for the length of the block, on the loopback address; gives the base URL.

    Raises:
        OSError: The port is taken.
    """
    loop, ready, runner = (
        asyncio.new_event_loop(),
        threading.Event(),
        web.AppRunner(endpoint.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.2),
    )
    bound: list[int | OSError] = []

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
        try:
            await site.start()
            bound.append(runner.addresses[0][1])
        except OSError as error:
            bound.append(error)
        ready.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    if isinstance(bound[0], OSError):
        raise bound[0]
    try:
        yield f"http://127.0.0.1:{bound[0]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def main() -> None:
    """Serve the rules until interrupted, with the faults that the command line asks for."""
    from qzhou.synthesis.builtin import answer_by_rules

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9000)
    for one in dataclasses.fields(Behaviour):
        kind: Any = {"bool": lambda text: text == "true", "int": int}.get(str(one.type), float)
        parser.add_argument(f"--{one.name}", type=kind, default=one.default)
    asked = vars(parser.parse_args())
    port = asked.pop("port")
    endpoint = MockEndpoint(answer_by_rules, Behaviour(**asked))
    try:
        with serving(endpoint, port) as url:
            print(f"{url}: answers by rules; what came: {url.removesuffix('/v1')}/counts; Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except OSError as error:
        raise SystemExit(f"error: port {port} cannot be used ({error.strerror}); name another with --port") from None
    except KeyboardInterrupt:
        print(json.dumps(endpoint.counts.plain()), flush=True)


_STATUS = {"rate_limited": 429, "rate_limited_silently": 429, "server_error": 500, "unavailable": 503}


def _error(status: int, message: str, retry_after_s: int | None = None) -> web.Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    body = {"error": {"message": message, "type": "mock_error", "code": None}}
    return web.json_response(body, status=status, headers=headers)


if __name__ == "__main__":
    main()
