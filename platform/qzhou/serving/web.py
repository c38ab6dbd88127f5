"""The endpoint as HTTP: routes, keys, limits, OpenAI's shapes. Knows nothing of Ray.

A request is refused with 429 in three places: :class:`qzhou.serving.limits.TokenRate`
(tokens a minute of a key), :meth:`qzhou.serving.engine.Engine.encode` (the model is too
busy) and ``_refusals`` in :mod:`qzhou.serving.pipeline` (the replicas of a further model
are too busy).
"""
# No `from __future__ import annotations`: FastAPI reads the annotations below as types.

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from qzhou.config.serving import ServingSection
from qzhou.serving.errors import RequestError
from qzhou.serving.keys import ApiKey, ApiKeys
from qzhou.serving.limits import TokenRate
from qzhou.serving.observing import NOTE, AccessLogMiddleware, EndpointMetrics, RequestLog, Write
from qzhou.serving.schemas import (
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorResponse,
    Model,
    ModelList,
    RerankRequest,
    RerankResponse,
    SearchRequest,
    SearchResponse,
    Side,
    SimilarityRequest,
    SimilarityResponse,
    parse_request,
    with_side,
)
from qzhou.serving.service import Answer, EmbeddingService

FINGERPRINT_HEADER, TRUNCATED_HEADER = "X-Model-Fingerprint", "X-Truncated-Texts"
PLAYGROUND = Path(__file__).with_name("playground.html")
JSON = "application/json"
BODY_TIMEOUT_S = 60.0
BYTES_A_TOKEN = 4  # of a request's body, about
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": why}
    for status, why in {
        400: "The request asks for something that is not offered.",
        401: "A key is asked for, and this is none.",
        403: "There are no keys, and the host's name is not known.",
        404: "No such model.",
        408: "The body did not arrive in time.",
        413: "The body is too long.",
        429: "Too much at once; Retry-After says when to try again.",
        503: "The model is not there at the moment.",
    }.items()
}
HARDENED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src data:",
}  # of the playground; it loads nothing from elsewhere

Asked = TypeVar("Asked", EmbeddingRequest, RerankRequest, SimilarityRequest, SearchRequest)


class Endpoint:
    """What the routes have in common.

    Args:
        services: By the name of their model; the first is the one of the run.
        ready: Raises RequestError while a model cannot answer.
    """

    def __init__(
        self,
        services: Mapping[str, EmbeddingService],
        settings: ServingSection,
        keys: ApiKeys,
        rate: TokenRate,
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        self.services, self.settings, self.ready = services, settings, ready
        self._keys = keys
        self._rate = rate

    def admit(self, request: Request) -> ApiKey:
        """Who asks.

        Raises:
            RequestError: 401 without a key where one is asked for; 403 where none is, and the endpoint was called by a
                name that it does not answer to.
        """
        if not self._keys.asked:
            self._admit_host(request.headers.get("host", ""))
        key = self._keys.admit(request.headers.get("authorization"))
        note_of(request).key = key.name
        return key

    def _admit_host(self, host: str) -> None:
        known = self.settings.known_hosts
        if known and urlsplit(f"//{host}").hostname not in known:
            problem = (
                f"This endpoint asks for no key, and so it only answers to {', '.join(sorted(known))}; it was called "
                f"as '{host:.60}'. Let it ask for a key, or name the host in serving.allowed_hosts."
            )
            raise RequestError(problem, status=403, code="unknown_host")

    async def answer(
        self, request: Request, kind: type[Asked], work: Callable[[EmbeddingService, Asked], Awaitable[Answer]]
    ) -> Response:
        """Admit, read, compute, charge, write."""
        key = self.admit(request)
        self._rate.admit(key)
        note = note_of(request)
        body = await self._body(request)
        asked = parse_request(kind, body)
        name, side = self._side_of(asked.model)
        service = self.service(name)
        if side:
            asked = with_side(asked, side)
        note.model = service.model.name
        with self._rate.reserve_tokens(key, len(body) // BYTES_A_TOKEN) as bill:
            try:
                async with asyncio.timeout(self.settings.request_timeout_s):
                    answer = await work(service, asked)
            except TimeoutError:
                problem = f"This was not done in {self.settings.request_timeout_s:g} s; send less at once."
                raise RequestError(problem, status=503, code="timeout") from None
            bill.tokens = note.tokens = answer["usage"]["total_tokens"]
            note.truncated = answer["usage"]["truncated_texts"]
        headers = {FINGERPRINT_HEADER: service.model.fingerprint}
        if note.truncated:
            headers[TRUNCATED_HEADER] = str(note.truncated)
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON, headers=headers)

    def _side_of(self, name: str) -> tuple[str, str]:
        """A model's name, and the side that ``NAME:query`` and ``NAME:document`` say behind it; else empty."""
        whole, _, side = name.rpartition(":")
        return (whole, side) if whole in self.services and side in get_args(Side) else (name, "")

    def service(self, name: str) -> EmbeddingService:
        """What answers for a model.

        Raises:
            RequestError: 404; there is none of that name.
        """
        if name not in self.services:
            served = ", ".join(f"'{one}'" for one in self.services)
            problem = f"The model '{name:.60}' does not exist here; this endpoint serves {served}."
            raise RequestError(problem, status=404, param="model", code="model_not_found")
        return self.services[name]

    async def _body(self, request: Request) -> bytes:
        """The request's body, refused as soon as it is too long."""
        limit = self.settings.max_body_mib * 2**20
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        problem = f"The body is above {limit} bytes; send fewer texts."
                        raise RequestError(problem, status=413, code="body_too_large")
        except TimeoutError:
            problem = f"The body did not arrive in {BODY_TIMEOUT_S:g} s."
            raise RequestError(problem, status=408, code="body_timeout") from None
        return bytes(body)


def web_app(endpoint: Endpoint, meter: EndpointMetrics, write: Write | None) -> AccessLogMiddleware:
    """The ASGI application; ``write`` takes access log lines, and None keeps none."""
    web = FastAPI(title="qzhou", description="Text embeddings in OpenAI's format.", responses=REFUSALS)
    _add_routes(web, endpoint, meter)
    web.exception_handler(RequestError)(_refused)
    web.exception_handler(HTTPException)(_no_such_route)
    web.exception_handler(Exception)(_failed)
    if endpoint.settings.cors_origins:
        web.add_middleware(
            CORSMiddleware,
            allow_origins=list(endpoint.settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for JavaScript sends many of its own
            expose_headers=["Retry-After", "X-Request-Id", FINGERPRINT_HEADER, TRUNCATED_HEADER],
        )
    return AccessLogMiddleware(web, meter, write)


def note_of(request: Request) -> RequestLog:
    """What is noted of a request for the log."""
    note: RequestLog = request.scope[NOTE]
    return note


def _takes(kind: type[BaseModel]) -> dict[str, Any]:
    """The request's shape in OpenAPI, although the route reads the body itself."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": kind.model_json_schema()}}}}


RERANK = ("/v1/rerank", "/rerank", "/v2/rerank")  # where Jina's, vLLM's and Cohere's clients ask
# path, request, response, and what answers
POSTS: tuple[tuple[str, Any, type[BaseModel], Any], ...] = (
    ("/v1/embeddings", EmbeddingRequest, EmbeddingResponse, EmbeddingService.embed),
    *((path, RerankRequest, RerankResponse, EmbeddingService.rerank) for path in RERANK),
    ("/v1/similarity", SimilarityRequest, SimilarityResponse, EmbeddingService.similarity),
    ("/v1/search", SearchRequest, SearchResponse, EmbeddingService.search),
)


def _answering(endpoint: Endpoint, kind: Any, work: Any) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await endpoint.answer(request, kind, work)

    return answer


def _add_routes(web: FastAPI, endpoint: Endpoint, meter: EndpointMetrics) -> None:
    for path, kind, answered, work in POSTS:
        web.add_api_route(
            path,
            _answering(endpoint, kind, work),
            methods=["POST"],
            name=work.__name__,
            description=work.__doc__,
            response_model=answered,
            openapi_extra=_takes(kind),
        )
    _add_model_routes(web, endpoint)
    _add_operator_routes(web, endpoint, meter)
    page = PLAYGROUND.read_bytes()

    @web.get("/", response_class=Response)
    async def playground() -> Response:
        """A page to try the models on."""
        return Response(page, media_type="text/html; charset=utf-8", headers=HARDENED)


def _add_model_routes(web: FastAPI, endpoint: Endpoint) -> None:
    @web.get("/v1/models", response_model=ModelList)
    async def models(request: Request) -> Response:
        """What is served."""
        endpoint.admit(request)
        data = [one.listing() for one in endpoint.services.values()]
        return Response(ModelList(data=data).model_dump_json(), media_type=JSON)

    @web.get("/v1/models/{name:path}", response_model=Model)
    async def model(request: Request, name: str) -> Response:
        """One of the models that are served."""
        endpoint.admit(request)
        return Response(endpoint.service(name).listing().model_dump_json(), media_type=JSON)


def _add_operator_routes(web: FastAPI, endpoint: Endpoint, meter: EndpointMetrics) -> None:
    @web.get("/health")
    async def health() -> dict[str, str]:
        """The endpoint lives."""
        return {"status": "ok"}

    @web.get("/ready")
    async def ready() -> dict[str, str]:
        """Every model answers, too."""
        await endpoint.ready()
        return {"status": "ready"}

    @web.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Of this replica, for Prometheus."""
        return Response(meter.exposition(), media_type=meter.CONTENT_TYPE)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _json(error)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "POST /v1/embeddings, /v1/rerank (also /rerank, /v2/rerank), /v1/similarity, /v1/search, "
    known += "GET /v1/models, /health, /ready, /metrics"
    problem = f"{error.detail}: {request.method} {request.url.path:.100}. Known: {known}."
    code = "method_not_allowed" if error.status_code == 405 else "unknown_url"
    return _json(RequestError(problem, status=error.status_code, code=code), error.headers)


async def _failed(_: Request, __: Exception) -> Response:
    """What went wrong is in the replica's log; clients are not shown the inside."""
    return _json(RequestError("The server failed to answer this request.", status=500))


def _json(error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    body = orjson.dumps(error.body())
    return Response(body, error.status, {**error.headers(), **(headers or {})}, media_type=JSON)
