"""The endpoint on Ray Serve.

The model of the run lives in the replicas that answer HTTP, so that a request for it takes
no step inside the cluster; more models have replicas of their own behind them.
"""
# No `from __future__ import annotations`: Ray Serve reads the annotations below as types.

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from qzhou.cluster.resources import resources_for
from qzhou.config.recipe import Recipe
from qzhou.config.serving import ServingSection
from qzhou.data.storage import Folder
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.encoder.model_files import read_metadata
from qzhou.errors import SetupError
from qzhou.run.files import EXPORT, MANIFEST
from qzhou.run.models import resolve
from qzhou.run.run import Run
from qzhou.serving.cache import Text
from qzhou.serving.engine import Encoded, Engine, EngineOptions
from qzhou.serving.errors import RequestError
from qzhou.serving.indexing import STAGE
from qzhou.serving.keys import ApiKeys
from qzhou.serving.limits import TokenRate
from qzhou.serving.observing import AccessLogMiddleware, EndpointMetrics
from qzhou.serving.service import EmbeddingService, RequestLimits, ServedModel
from qzhou.serving.snapshots import is_snapshot, refuse_changed
from qzhou.serving.web import Endpoint, web_app

# Requests that Ray Serve lets through to a replica. The engine refuses what is too much, with OpenAI's error body.
MAX_REQUESTS = 10_000
READY_TIMEOUT_S = 5.0
COUNT_REPLICAS_S = 10.0
LOADED_AT_MOST = 3  # times that a model is tried to be loaded, before the deployment counts as failed
GRACE_S = 60.0  # a replica that is stopped first answers the requests that it has
# The event loop waits this long for the thread that has the model, instead of Python's 5 ms.
SWITCH_S = 0.001
# oneDNN caches what it compiled for each of the last thousand shapes, and torch's layer above it does so too. A batch
# of mixed texts seldom has the shape of an earlier one: so many keep the memory of a replica small.
SHAPES = "128"
SHAPE_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
ACCESS = "ray.serve"  # Ray Serve's logger writes files that rotate, one for each replica


class ModelReplica:
    """One copy of a model that others ask by handle."""

    async def __init__(self, recipe: Recipe, name: str, place: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self.engine, self._model = await engine_of(recipe, name, place)

    async def describe(self) -> ServedModel:
        """What clients may know of the model."""
        return self._model

    async def encode(self, texts: Sequence[Text], limit: int | None = None) -> Encoded:
        """Unit vectors of texts that carry their prompt (:meth:`Engine.encode`)."""
        return await self.engine.encode(texts, limit)

    def check_health(self) -> None:
        """Ray Serve asks, and replaces a replica whose model does not work any more.

        Raises:
            RuntimeError: Says why.
        """
        if problem := self.engine.broken:
            raise RuntimeError(problem)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The measure by which Ray Serve scales, if the recipe asks for it."""
        return {"waiting_tokens": float(self.engine.waiting_tokens)}

    def __del__(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()


@serve.ingress()
class EmbeddingServer(ModelReplica):
    """A copy of the run's model, and the HTTP side of all."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, recipe: Recipe, name: str, place: str, others: Mapping[str, Any], keys_expected: bool
    ) -> None:
        settings = recipe.serving
        self._keys = ApiKeys.found(settings.api_keys_env, settings.api_keys_file, os.environ)
        if keys_expected and not self._keys.asked:
            raise SetupError(
                f"{settings.api_keys_env} is set where the endpoint was started but not on this node, so it would be "
                "open to everyone. Set the variable on every node of the cluster."
            )
        await super().__init__(recipe, name, place)
        self._settings, self._others = settings, others
        self._rate = TokenRate(settings.tokens_per_minute)
        if settings.tokens_per_minute or settings.api_keys_file:
            self._counting = asyncio.create_task(self._count_replicas())
        limits = RequestLimits(
            settings.max_inputs,
            settings.max_request_chars,
            token_ids=settings.token_ids,
            truncate=settings.truncate,
        )
        self._services = {name: EmbeddingService(self.engine.encode, self._model, limits, index_of(recipe, place))}
        for other, handle in others.items():
            described = await handle.describe.remote()
            self._services[other] = EmbeddingService(RemoteModel(handle), described, limits)

    def __serve_build_asgi_app__(self) -> AccessLogMiddleware:  # Ray Serve's name
        endpoint = Endpoint(self._services, self._settings, self._keys, self._rate, self._ready)
        replica = serve.get_replica_context().replica_tag
        meter = EndpointMetrics({self._model.name: self.engine}, replica)
        return web_app(endpoint, meter, _write_line if self._settings.access_log else None)

    async def _count_replicas(self) -> None:
        """A limit holds for all replicas together, which share the requests evenly."""
        own = serve.get_replica_context()
        while True:
            # Ray Serve's controller may be away, and then says nothing or fails: the count stays as it is
            with contextlib.suppress(RayError, RayServeException, KeyError):
                status = await asyncio.to_thread(serve.status)
                states = status.applications[own.app_name].deployments[own.deployment].replica_states
                self._rate.replicas = max(1, states.get("RUNNING", 1))
            await asyncio.sleep(COUNT_REPLICAS_S)

    async def _ready(self) -> None:
        if self.engine.broken:
            raise RequestError("The model is not available; try again.", status=503, code="unavailable")
        async with _refusals(), asyncio.timeout(READY_TIMEOUT_S):
            await asyncio.gather(*(handle.describe.remote() for handle in self._others.values()))


class RemoteModel:
    """Encodes with the replicas of another deployment."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def __call__(self, texts: Sequence[Text], limit: int | None = None) -> Encoded:
        """Unit vectors of texts that carry their prompt."""
        async with _refusals():
            encoded: Encoded = await self._handle.encode.remote(texts, limit)
        return encoded


@contextlib.asynccontextmanager
async def _refusals() -> Any:
    """What a busy or absent model of another deployment means to the client."""
    try:
        yield
    except BackPressureError:
        raise RequestError("Too many requests are waiting; try again.", status=429, code="overloaded") from None
    except RayTaskError as error:
        if isinstance(error.cause, RequestError):
            raise error.cause from None
        raise
    except (DeploymentUnavailableError, RayActorError, TimeoutError):
        raise RequestError("The model is not available; try again.", status=503, code="unavailable") from None


async def engine_of(recipe: Recipe, name: str, place: str) -> tuple[Engine, ServedModel]:
    """A warmed-up engine, and what clients, who ask for ``name``, may know of its model.

    ``place`` is a folder, which may be remote, a hub id, or a package.
    """
    encoder, served, passes = await asyncio.get_running_loop().run_in_executor(None, _load, recipe, name, place)
    sys.setswitchinterval(SWITCH_S)
    settings = recipe.serving
    options = EngineOptions(
        batch_tokens=settings.max_batch_tokens,
        passes=passes,
        max_wait_s=settings.max_wait_s,
        max_waiting_tokens=settings.max_waiting_tokens,
        max_request_tokens=settings.max_request_tokens,
        cache_bytes=settings.cache_mib * 2**20,
    )
    engine = Engine(encoder, options)
    await engine.warm_up()
    return engine, served


def _load(recipe: Recipe, name: str, place: str) -> tuple[Any, ServedModel, int]:
    for cache in SHAPE_CACHES:  # before torch computes anything
        os.environ.setdefault(cache, SHAPES)
    # torch and transformers take seconds
    from qzhou.serving.loading import Settings, load, threads_for

    if is_snapshot(place, Run.at(recipe)):
        refuse_changed(place)
    serving, gpu = recipe.serving, recipe.cluster.gpu
    copies = (serving.max_replicas or serving.replicas) * (1 + len(serving.models))
    settings = Settings(
        max_tokens=max(recipe.model.max_query_tokens, recipe.model.max_document_tokens),
        precision=serving.precision or recipe.model.encodes_in,
        library=recipe.model.arithmetic,
        compiled=recipe.model.compiled,
        device=None if gpu else "cpu",
        threads=None if gpu else threads_for(copies),
        measured=serving.measure_precision,
    )
    with Folder.open(place).local_copy() if "://" in place else contextlib.nullcontext(place) as local:
        if name != recipe.run.name:
            attention = recipe.model.attention_of.get(place)
            declared = read_metadata(str(local), attention=attention).max_tokens or settings.max_tokens
            most = min(settings.max_tokens, declared)
            settings = replace(settings, attention=attention, max_tokens=most)
        return *load(str(local), name, settings), settings.passes


def index_of(recipe: Recipe, place: str) -> Any:
    """The run's index of documents, if there is one and the served model made it."""
    run = Run.at(recipe)
    folder = run.folder / STAGE
    if not (is_snapshot(place, run) or place == (run.folder / EXPORT).uri) or not folder.exists(MANIFEST):
        return None
    if run.manifest(STAGE).inputs["model"] != Folder.open(place).read_json(MANIFEST)["fingerprint"]:
        logging.getLogger(ACCESS).warning(f"{folder.uri} is of an earlier model; run `qzhou index` again to search")
        return None
    from qzhou.serving.index import SearchIndex  # FAISS takes a while

    with folder.local_copy() as local:
        return SearchIndex(local)


def application(recipe: Recipe, model: str) -> serve.Application:
    """The Serve application: the HTTP deployment, bound to one for each further model.

    ``model`` is what the first model is loaded from; it has the run's name.

    Raises:
        ModelError: A name in ``serving.models`` leads nowhere.
        SetupError: Keys are expected and there are none.
    """
    recipe = with_arithmetic(Run.at(recipe), record=False).recipe  # the same in every replica
    settings = recipe.serving
    keys = ApiKeys.found(settings.api_keys_env, settings.api_keys_file, os.environ)
    others = {}
    for name, place in settings.models.items():
        if name == recipe.run.name:
            raise SetupError(f"serving.models: '{name}' is the name of the run's own model; take another")
        if "://" not in place:
            resolve(place)
        replica = serve.deployment(ModelReplica).options(name=name, **options(recipe))
        others[name] = replica.bind(recipe, name, place)
    server = serve.deployment(EmbeddingServer).options(name="EmbeddingServer", **options(recipe))
    return server.bind(recipe, recipe.run.name, model, others, keys.asked)


def options(recipe: Recipe) -> dict[str, Any]:
    """What Ray Serve is told of a deployment."""
    settings = recipe.serving
    scaled: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None:
        scaled = {"autoscaling_config": autoscaling(settings)}
    return {
        **scaled,
        "max_ongoing_requests": MAX_REQUESTS,
        "max_queued_requests": MAX_REQUESTS,
        "ray_actor_options": resources_for(recipe, "serving").options,
        "graceful_shutdown_timeout_s": GRACE_S,
        "max_constructor_retry_count": LOADED_AT_MOST,
        "max_surge_percent": 100,  # a new version answers before the old one leaves
    }


def autoscaling(settings: ServingSection) -> AutoscalingConfig:
    """By requests at the same time, or by tokens that wait."""
    bounds: dict[str, Any] = {
        "min_replicas": settings.replicas if settings.min_replicas is None else settings.min_replicas,
        "initial_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.target_requests,
    }
    if settings.target_waiting_tokens is not None:
        target = {"target": settings.target_waiting_tokens}
        bounds["policy"] = {"policy_function": "qzhou.serving.scaling:ByWaitingTokens", "policy_kwargs": target}
    return AutoscalingConfig(**bounds)


def _write_line(fields: Mapping[str, Any]) -> None:
    logging.getLogger(ACCESS).info("request", extra=dict(fields))
