"""What is seen of requests from outside: a line in the log, numbers for Prometheus, an id to find them by."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qzhou.serving.engine import Engine

NOTE = "qzhou.note"  # in an ASGI scope
REQUEST_ID = b"x-request-id"
TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
SAFE_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROUTES = (
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/similarity",
    "/v1/search",
    "/v1/models",
    "/health",
    "/ready",
    "/metrics",
    "/",
)
ENGINE_NUMBERS = {  # attributes of an engine
    "waiting_tokens": "Tokens that wait for the model, about.",
    "tokens_per_s": "What the model computes while it computes.",
    "batches": "Forward passes so far.",
    "computed": "Tokens computed so far.",
    "padded": "Tokens of padding so far, computed for nothing.",
    "reused": "Texts so far that were known or on their way already.",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Write = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class Note:
    """What the routes tell of a request; nothing of its texts."""

    key: str = "-"
    model: str = ""
    tokens: int = 0


class Meter:
    """The endpoint's numbers in Prometheus' format."""

    CONTENT_TYPE = CONTENT_TYPE_LATEST

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self._requests = Counter("qzhou_requests", "Requests answered.", ["route", "status"], registry=here)
        self._seconds = Histogram(
            "qzhou_request_seconds", "From request to answer.", ["route"], buckets=SECONDS, registry=here
        )
        self._tokens = Counter("qzhou_tokens", "Tokens of answered requests.", ["model"], registry=here)
        self._watch(engines)

    def count(self, route: str, status: int, seconds: float, note: Note) -> None:
        """One answered request."""
        shown = route if route in ROUTES else "other"
        self._requests.labels(shown, str(status)).inc()
        self._seconds.labels(shown).observe(seconds)
        if note.tokens:
            self._tokens.labels(note.model).inc(note.tokens)

    def exposition(self) -> bytes:
        """All numbers as text."""
        return generate_latest(self.registry)

    def _watch(self, engines: Mapping[str, Engine]) -> None:
        for number, what in ENGINE_NUMBERS.items():
            gauge = Gauge(f"qzhou_{number}", what, ["model"], registry=self.registry)
            for name, engine in engines.items():
                gauge.labels(name).set_function(partial(getattr, engine, number))


class Observed:
    """An ASGI application whose requests are counted and logged, under the id that Ray Serve gives and answers with."""

    def __init__(self, app: Any, meter: Meter, write: Write | None) -> None:
        self.app, self._meter, self._write = app, meter, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        note = scope[NOTE] = Note()
        headers = dict(scope["headers"])
        status = 499  # the client left

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - started
            self._meter.count(scope["path"], status, seconds, note)
            if self._write is not None:
                self._write(_line(scope, headers, status, seconds, note))


def _line(scope: Scope, headers: Mapping[bytes, bytes], status: int, seconds: float, note: Note) -> dict[str, Any]:
    request_id = headers.get(REQUEST_ID, b"").decode("latin-1")
    trace = TRACE.fullmatch(headers.get(b"traceparent", b"").decode("latin-1"))
    return {
        "request_id": request_id if SAFE_ID.fullmatch(request_id) else None,
        "trace_id": trace.group(1) if trace else None,
        "method": scope["method"],
        "path": scope["path"][:100],
        "status": status,
        "ms": round(1000 * seconds, 1),
        "key": note.key,
        "model": note.model,
        "tokens": note.tokens,
    }
