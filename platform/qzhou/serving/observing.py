"""What is seen of requests from outside: a line in the log, numbers for Prometheus, an id to find them by."""

import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from qzhou.serving.engine import Engine
from qzhou.telemetry import metrics

NOTE = "qzhou.note"  # in an ASGI scope
REQUEST_ID = b"x-request-id"
TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
SAFE_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
ROUTES = (
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v2/rerank",
    "/v1/similarity",
    "/v1/search",
    "/v1/models",
    "/health",
    "/ready",
    "/metrics",
    "/",
)
ENGINE_NUMBERS = {  # attributes of an engine
    "waiting_tokens": metrics.ENDPOINT_WAITING,
    "tokens_per_s": metrics.ENDPOINT_SPEED,
    "batches": metrics.ENDPOINT_BATCHES,
    "computed": metrics.ENDPOINT_COMPUTED,
    "padded": metrics.ENDPOINT_PADDED,
    "reused": metrics.ENDPOINT_REUSED,
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Write = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class RequestLog:
    """What the routes tell of a request; nothing of its texts."""

    key: str = "-"
    model: str = ""
    tokens: int = 0
    truncated: int = 0


class EndpointMetrics:
    """The endpoint's numbers in Prometheus' format.

    Args:
        engines: By the names of their models.
        replica: Which one this is. Prometheus asks the endpoint and gets any one replica's numbers; the label keeps the
            series of several apart, so that rates are right.
    """

    CONTENT_TYPE = CONTENT_TYPE_LATEST

    def __init__(self, engines: Mapping[str, Engine], replica: str) -> None:
        self.registry = CollectorRegistry()
        self._engines, self._replica = engines, replica
        self._requests, self._tokens, self._truncated = (
            Counter(one.name, one.meaning, one.labels, registry=self.registry)
            for one in (metrics.ENDPOINT_REQUESTS, metrics.ENDPOINT_TOKENS, metrics.ENDPOINT_TRUNCATED)
        )
        one = metrics.ENDPOINT_SECONDS
        self._seconds = Histogram(one.name, one.meaning, one.labels, buckets=one.buckets, registry=self.registry)
        self.registry.register(self)  # for collect()

    def count(self, route: str, status: int, seconds: float, note: RequestLog) -> None:
        """One answered request."""
        shown = route if route in ROUTES else "other"
        self._requests.labels(shown, str(status), self._replica).inc()
        self._seconds.labels(shown, self._replica).observe(seconds)
        if note.tokens:
            self._tokens.labels(note.model, note.key, self._replica).inc(note.tokens)
            self._truncated.labels(note.model, self._replica).inc(note.truncated)

    def exposition(self) -> bytes:
        """All numbers as text."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """What the engines count, read when it is asked for; prometheus_client's name."""
        for number, metric in ENGINE_NUMBERS.items():
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            found = family(metric.name, metric.meaning, labels=metric.labels)
            for name, engine in self._engines.items():
                found.add_metric([name, self._replica], float(getattr(engine, number)))
            yield found


class AccessLogMiddleware:
    """An ASGI application whose requests are counted and logged, under the id that Ray Serve gives and answers with."""

    def __init__(self, app: Any, meter: EndpointMetrics, write: Write | None) -> None:
        self.app, self._meter, self._write = app, meter, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, count it and write its line of the access log."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        note = scope[NOTE] = RequestLog()
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


def _line(
    scope: Scope, headers: Mapping[bytes, bytes], status: int, seconds: float, note: RequestLog
) -> dict[str, Any]:
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
        "truncated": note.truncated,
    }
