"""Serves the model of a finished run as OpenAI's /v1/embeddings.

    python serve/app.py recipes/quickstart.toml --serving.port 8001
    serve run serve.app:build recipe=recipes/quickstart.toml

The first starts a cluster on this machine, or joins the one of RAY_ADDRESS, and serves until Ctrl-C.
"""
# No `from __future__ import annotations`: Ray Serve and FastAPI read the annotations below as types.

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from ray import cloudpickle, serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException

from qzhou.cluster import session
from qzhou.errors import SetupError
from qzhou.job import main
from qzhou.recipe import Recipe, load_recipe
from qzhou.runs import Run
from qzhou.sections import ServingSection
from qzhou.serving.batching import FULL, Group, encode_in_groups, fill_percent
from qzhou.serving.errors import RequestError
from qzhou.serving.keys import ApiKeys
from qzhou.serving.port import check_port
from qzhou.serving.schemas import EmbeddingRequest, EmbeddingResponse, parse_request
from qzhou.serving.service import EmbeddingService, Encoded, ServedModel, TextEncoder, Vectors
from qzhou.storage import Folder

Result = TypeVar("Result")

FINGERPRINT_HEADER = "X-Model-Fingerprint"
MAX_BODY_BYTES = 64 * 2**20
REQUEST_TIMEOUT_S = 600.0  # the OpenAI clients' own default
READY_TIMEOUT_S = 5.0
# Ray Serve's router polls a replica that is full, and leaves it idle in between. So a replica lets many in,
# batches them itself, and what is left over is soon told to come back.
MAX_ONGOING_REQUESTS = 512  # per encoder replica
MAX_QUEUED_REQUESTS = 32  # per endpoint replica
QUIET = {"log_level": "WARNING", "enable_access_log": False}  # Serve's metrics count requests and time them

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have the package qzhou, not this folder
web = FastAPI(title="qzhou", description=__doc__)


@serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS, max_queued_requests=MAX_QUEUED_REQUESTS)
class EncoderReplica:
    """One copy of the model. Batches what arrives at the same time, by padded tokens."""

    def __init__(self, recipe: Recipe, model: str) -> None:
        self._recipe = recipe
        self._budget = recipe.serving.max_batch_tokens
        # A fast tokenizer breaks when two threads use it ("Already borrowed"), so one thread owns the encoder;
        # the event loop stays free for health checks.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._encoder, self._model = self._thread.submit(_load, recipe, model).result()
        self._forward.set_batch_wait_timeout_s(recipe.serving.batch_wait_ms / 1000)

    def describe(self) -> ServedModel:
        return self._model

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Unit vectors and token counts of texts that carry their prompt; at least one text."""
        from qzhou.encoder.encoder import batches_by_length

        counts = await self._in_thread(partial(self._encoder.count_tokens, texts))
        groups = batches_by_length(counts, self._budget)
        return await encode_in_groups(texts, counts, self._forward, rows_of_groups=groups, budget=self._budget)

    @serve.batch(max_batch_size=FULL, batch_size_fn=fill_percent)  # type: ignore[untyped-decorator]
    async def _forward(self, groups: list[Group]) -> list[Vectors]:
        texts = [text for group in groups for text in group.texts]
        batch_tokens = self._budget if self._recipe.cluster.gpu else None  # a CPU prefers smaller passes than a GPU
        vectors_ND = await self._in_thread(partial(self._encoder.encode, texts, batch_tokens=batch_tokens))
        ends = np.cumsum([len(group.texts) for group in groups])
        return np.split(vectors_ND, ends[:-1])

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _load(recipe: Recipe, model: str) -> tuple[TextEncoder, ServedModel]:
    """The encoder, warmed up, and what clients may know of it. Runs in the thread that owns the encoder."""
    import torch

    from qzhou.encoder import load_encoder

    gpu = recipe.cluster.gpu
    if not gpu:  # Ray leaves one thread to an actor; a CPU replica takes its share of the cores it may use
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // recipe.serving.replicas))
    with Folder.open(model).local_copy() if "://" in model else contextlib.nullcontext(model) as place:
        encoder = load_encoder(
            str(place),
            max_tokens=max(recipe.model.max_query_tokens, recipe.model.max_document_tokens),
            dtype=recipe.model.encodes_in,
            compiled=recipe.model.compiled,
            device=None if gpu else "cpu",
        )
    # The name vLLM reads the trained widths from; transformers keeps unknown settings of a config.json.
    matryoshka = getattr(encoder.model.backbone.config, "matryoshka_dimensions", None) or ()
    served = ServedModel.of(encoder, recipe.run.name, matryoshka=matryoshka, created=int(time.time()))
    encoder.encode(["warm up"])
    return encoder, served


# Ray Serve pickles the web application where it decorates the class: what routes need stands above it.


async def _body(request: Request) -> bytes:
    """The request's body, refused as soon as it is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(
                f"The body is above {MAX_BODY_BYTES} bytes; send fewer texts.", status=413, code="body_too_large"
            )
    return bytes(body)


@contextlib.asynccontextmanager
async def _refusals(timeout_s: float) -> AsyncIterator[None]:
    """What a busy, absent or slow encoder means to the client."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except BackPressureError:
        raise RequestError(
            "Too many requests are waiting; try again.", status=429, type="rate_limit_error", code="overloaded"
        ) from None
    except (DeploymentUnavailableError, RayActorError):
        raise RequestError(
            "The encoder is not available; try again.", status=503, type="server_error", code="unavailable"
        ) from None
    except TimeoutError:
        raise RequestError(
            f"The encoder did not answer in {timeout_s:g} s.", status=503, type="server_error", code="timeout"
        ) from None


@web.exception_handler(RequestError)
async def _refused(_: Request, error: RequestError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status in {429, 503} else {}
    return JSONResponse(error.body(), error.status, headers)


@web.exception_handler(HTTPException)
async def _no_such_route(request: Request, error: HTTPException) -> JSONResponse:
    known = "POST /v1/embeddings, GET /v1/models, GET /health, GET /ready"
    refused = RequestError(
        f"{error.detail}: {request.method} {request.url.path}. Known: {known}.",
        status=error.status_code,
        code="unknown_url",
    )
    return JSONResponse(refused.body(), error.status_code, error.headers)


@web.exception_handler(Exception)
async def _failed(_: Request, __: Exception) -> JSONResponse:
    """What went wrong stands in the log of the replica; clients are not shown the inside."""
    refused = RequestError("The server failed to answer this request.", status=500, type="server_error")
    return JSONResponse(refused.body(), 500)


@serve.deployment(
    max_ongoing_requests=2048,  # above what the encoders let in, so that their refusal comes in OpenAI's shape
    max_queued_requests=2048,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
    ray_actor_options={"num_cpus": 0},  # forwards and formats; the cores are the encoder's
)
@serve.ingress(web)
class Endpoint:
    """The HTTP side: keys, limits and OpenAI's shapes."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, encoder: Any, settings: ServingSection, keys_expected: bool
    ) -> None:
        self._keys = ApiKeys.from_environment(settings.api_keys_env, os.environ)
        if keys_expected and not self._keys.asked:
            raise SetupError(
                f"{settings.api_keys_env} is set where the endpoint was started but not on this node, so it would be "
                "open to everyone. Set the variable on every node of the cluster."
            )
        self._encoder = encoder
        self._service = EmbeddingService(self._encode, await encoder.describe.remote(), max_inputs=settings.max_inputs)

    @web.post(
        "/v1/embeddings",
        response_model=EmbeddingResponse,
        openapi_extra={
            "requestBody": {"content": {"application/json": {"schema": EmbeddingRequest.model_json_schema()}}}
        },
    )
    async def embeddings(self, request: Request) -> Response:
        self._keys.admit(request.headers.get("authorization"))
        return self._answer(await self._service.embed(parse_request(await _body(request))))

    @web.get("/v1/models")
    async def models(self, request: Request) -> Response:
        self._keys.admit(request.headers.get("authorization"))
        return self._answer(self._service.model.listing())

    @web.get("/health")
    async def health(self) -> dict[str, str]:
        """The endpoint lives."""
        return {"status": "ok"}

    @web.get("/ready")
    async def ready(self) -> dict[str, str]:
        """The encoder answers, too."""
        async with _refusals(READY_TIMEOUT_S):
            await self._encoder.describe.remote()
        return {"status": "ready"}

    async def _encode(self, texts: Sequence[str]) -> Encoded:
        async with _refusals(REQUEST_TIMEOUT_S):
            encoded: Encoded = await self._encoder.encode.remote(texts)
        return encoded

    def _answer(self, content: BaseModel) -> Response:
        headers = {FINGERPRINT_HEADER: self._service.model.fingerprint}
        return Response(content.model_dump_json(), media_type="application/json", headers=headers)


class Arguments(BaseModel):
    """What ``serve run`` and ``serve deploy`` pass to :func:`build`."""

    model_config = ConfigDict(extra="forbid")

    recipe: str
    model: str = ""


def build(arguments: Arguments) -> serve.Application:
    """The application for a recipe file.

    Args:
        arguments: ``recipe`` is the file; ``model`` a folder, hub id or package instead of the run's own model.

    Raises:
        DataError: The run has no finished model.
    """
    recipe = load_recipe(arguments.recipe)
    return application(recipe, arguments.model or trained_model(recipe))


def application(recipe: Recipe, model: str) -> serve.Application:
    """The deployments, wired: HTTP in front, the recipe's number of encoders behind."""
    encoder = EncoderReplica.options(  # type: ignore[attr-defined]
        num_replicas=recipe.serving.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(recipe.cluster.gpu)},
    ).bind(recipe, model)
    keys = ApiKeys.from_environment(recipe.serving.api_keys_env, os.environ)
    return Endpoint.bind(encoder, recipe.serving, keys.asked)  # type: ignore[attr-defined]


def trained_model(recipe: Recipe) -> str:
    """Where the run's model is.

    Raises:
        DataError: The run has not got that far; says what to run.
    """
    run = Run(recipe, Folder.open(recipe.run.storage) / recipe.run.name)  # Run.open would write to it
    run.manifest("model")
    return (run.folder / "model").uri


def serve_until_stopped(recipe: Recipe) -> None:
    """Serve the run's model until SIGINT or SIGTERM, then end what was started here."""
    model, settings = trained_model(recipe), recipe.serving
    joining = bool(os.environ.get("RAY_ADDRESS"))
    if not joining:
        check_port(settings.host, settings.port)
    with session(), _serving(recipe, model, joining=joining), _stop_signals() as stop:
        address = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{settings.port}"
        if not joining:
            _wait_until_ready(address)
        print(_welcome(address, recipe), flush=True)
        stop.wait()
        print("stopping", flush=True)


@contextlib.contextmanager
def _serving(recipe: Recipe, model: str, *, joining: bool) -> Iterator[None]:
    """Run the application for the block; a Serve that was already running on a joined cluster goes on."""
    settings, found = recipe.serving, _serve_is_running()
    try:
        if not found:
            serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=QUIET)
        serve.run(application(recipe, model), name=recipe.run.name, logging_config=QUIET)
        yield
    finally:
        serve.delete(recipe.run.name)
        if joining and not found:
            serve.shutdown()


def _serve_is_running() -> bool:
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    before = {one: signal.signal(one, lambda *_: stop.set()) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _wait_until_ready(address: str, timeout_s: float = 60.0) -> None:
    """Wait for the proxy to have learnt the route: an application runs a little before it can be reached."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ready", timeout=READY_TIMEOUT_S):
            return
        time.sleep(0.1)
    raise SetupError(f"{address}/ready did not answer in {timeout_s:g} s; see the logs of Ray Serve.")


def _welcome(address: str, recipe: Recipe) -> str:
    variable = recipe.serving.api_keys_env
    key = f"-H 'Authorization: Bearer <one of {variable}>' " if os.environ.get(variable) else ""
    return (
        f"ready: {address}/v1/embeddings serves '{recipe.run.name}'; Ctrl-C stops it\n"
        f"curl {address}/v1/embeddings -H 'Content-Type: application/json' {key}"
        f"""-d '{{"model": "{recipe.run.name}", "input": "how to sort a list"}}'"""
    )


if __name__ == "__main__":
    main(serve_until_stopped, __doc__)
