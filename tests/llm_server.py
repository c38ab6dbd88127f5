"""An OpenAI-compatible LLM server without a model, which fails on purpose and counts the requests.

Tests and benchmarks start it, and so can anyone who wants to try a recipe before paying for an LLM. From the checkout:

    python -m tests.llm_server --port 9000 --latency_s 0.2 --server_error 0.05

answers ``/v1/chat/completions`` and the Batch API (``/v1/files``, ``/v1/batches``); ``GET /counts`` tells what came.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from qzhou.config.synthesis import BUILTIN_MODEL
from qzhou.synthesis.builtin import answer_by_rules, completion
from tests.llm_faults import FAULTLESS, Behaviour, Counts, FaultInjector, request_hash

HANG_S = 3600.0
RETRY_AFTER_S = 1
LARGEST_BODY = 256 * 2**20

Answer = Callable[[Sequence[Mapping[str, str]]], str | tuple[str, str]]  # content, and why it ended


class LLMServer:
    """The web application; one event loop serves it."""

    def __init__(self, answer: Answer, behaviour: Behaviour = FAULTLESS) -> None:
        self.behaviour, self.counts, self._answer = behaviour, Counts(), answer
        self._injector = FaultInjector(behaviour)
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
        counts.arrive()
        counts.under_way += 1
        counts.peak = max(counts.peak, counts.under_way)
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
        if self._injector.is_above_limits(self.counts.under_way):
            self.counts.faults["above_limit"] += 1
            return _error(429, "too many requests", retry_after_s=RETRY_AFTER_S)
        if "response_format" in body and not self.behaviour.structured:
            return _error(400, "response_format is not supported")
        fault = self._injector.next_fault(digest)
        if fault:
            self.counts.faults[fault] += 1
        try:
            said = _USELESS[fault] if fault in _USELESS else self._answer(body["messages"])
            content, reason = said if isinstance(said, tuple) else (said, "stop")
            completed = completion(body, content)
            completed["choices"][0]["finish_reason"] = reason
        except ValueError as error:
            return _error(400, str(error))
        latency_s = HANG_S if fault == "hang" else self._injector.latency_s(digest)
        # its own work is part of the latency
        await asyncio.sleep(max(0.0, arrived + latency_s - time.monotonic()))
        if fault not in {"", "hang", *_USELESS}:
            return await self._broken(request, fault, completed)
        self.counts.complete(digest, served_s=time.monotonic() - arrived)
        return web.json_response(completed)

    async def _broken(self, request: web.Request, fault: str, completed: Mapping[str, Any]) -> web.StreamResponse:
        """What comes instead of a completion."""
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
        assert fault == "truncated"
        return await self._torn(request, json.dumps(completed).encode())

    async def _torn(self, request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Content-Length": str(len(body))}
        )
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

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
        answered = [self._line_answered(line) for line in lines]
        output, name = f"file-{next(self._numbers)}", f"batch_{next(self._numbers)}"
        self._files[output] = "\n".join(json.dumps(line) for line in answered).encode()
        self._batches[name] = {
            "id": name, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": asked["input_file_id"],
            "completion_window": "24h", "created_at": 0, "output_file_id": output, "status": "in_progress",
            "metadata": asked.get("metadata"), "ready": time.monotonic() + self.behaviour.latency_s,
        }  # fmt: skip
        return self._batch(name)

    def _line_answered(self, line: Mapping[str, Any]) -> dict[str, Any]:
        digest = request_hash(line["body"])
        self.counts.arrive()
        fault = self._injector.next_fault(digest)
        if fault:
            self.counts.faults[fault] += 1
            response = {"status_code": 500, "body": {"error": {"message": fault}}}
        else:
            self.counts.complete(digest, served_s=0.0)
            said = self._answer(line["body"]["messages"])
            body = completion(line["body"], said if isinstance(said, str) else said[0])
            response = {"status_code": 200, "body": body}
        return {"custom_id": line["custom_id"], "response": response}

    async def _show_batch(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return self._batch(name) if name in self._batches else _error(404, f"no such batch: {name}")

    def _batch(self, name: str) -> web.Response:
        found = dict(self._batches[name])
        if time.monotonic() >= found.pop("ready"):
            found["status"] = "completed"
        return web.json_response(found)


@contextmanager
def serving(endpoint: LLMServer, port: int = 0) -> Iterator[str]:
    """Serve from a thread for the length of the block, on the loopback address; gives the base URL.

    Raises:
        OSError: The port is taken.
    """
    loop, ready = asyncio.new_event_loop(), threading.Event()
    runner = web.AppRunner(endpoint.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9000)
    for one in dataclasses.fields(Behaviour):
        kind: Any = {"bool": lambda text: text == "true", "int": int}.get(str(one.type), float)
        parser.add_argument(f"--{one.name}", type=kind, default=one.default)
    asked = vars(parser.parse_args())
    port = asked.pop("port")
    endpoint = LLMServer(answer_by_rules, Behaviour(**asked))
    try:
        with serving(endpoint, port) as url:
            print(
                f"{url}: answers by rules; what came: {url.removesuffix('/v1')}/counts; Ctrl-C ends it", flush=True
            )
            threading.Event().wait()
    except OSError as error:
        raise SystemExit(
            f"error: port {port} cannot be used ({error.strerror}); name another with --port"
        ) from None
    except KeyboardInterrupt:
        print(json.dumps(endpoint.counts.plain()), flush=True)


_USELESS = {"empty": "", "babble": "Certainly! Here you are."}
_STATUS = {"rate_limited": 429, "rate_limited_silently": 429, "server_error": 500, "unavailable": 503}


def _error(status: int, message: str, retry_after_s: int | None = None) -> web.Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    body = {"error": {"message": message, "type": "server_error", "code": None}}
    return web.json_response(body, status=status, headers=headers)


if __name__ == "__main__":
    main()
