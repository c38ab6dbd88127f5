"""Checks of what a recipe needs around it: storage, models, data, LLM endpoints, a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from qzhou.cli.doctor.findings import Finding, failed, guarded
from qzhou.cluster.resources import (
    PIPELINE,
    NodeType,
    ResourceRequest,
    refuse_impossible,
    resources_for,
    resources_of_pipeline,
)
from qzhou.cluster.resources import shown as shown_amount
from qzhou.cluster.session import local_cpus, node_kinds, session
from qzhou.config.api_keys import Keys
from qzhou.config.recipe import Recipe
from qzhou.config.synthesis import BUILTIN, LOCAL, LLMSection, SynthesisSection
from qzhou.data.storage import Folder
from qzhou.encoder.model_check import named_models
from qzhou.errors import QzhouError, SetupError
from qzhou.run.models import model_file, resolve
from qzhou.synthesis.chat import ChatRequest, ChatResult
from qzhou.synthesis.client import ChatClient
from qzhou.synthesis.rate_limiter import RateLimiter, RequestLimits
from qzhou.synthesis.response_cache import ResponseCache

SLOW_S = 5.0  # for a small file there and back
SKEW_S = 5.0
MEMORY_OFFERED = 0.7  # by Ray, of a machine's
PATIENCE = {"timeout_s": 60.0, "give_up_after_s": 10.0}  # with an LLM
ASKED = {"role": "user", "content": "Answer with the word yes."}


def surroundings(recipe: Recipe) -> Iterator[Finding]:
    """All that a recipe names, except the cluster."""
    yield from guarded("storage", lambda: storage(recipe.run.storage))
    yield from guarded("data", lambda: data(recipe))
    for setting, spec in named_models(recipe):
        yield from guarded(setting, partial(model, setting, spec))
    for llm in recipe.synthesis.pool:
        for endpoint in llm.endpoints:
            yield from guarded(f"LLM {llm.model}", partial(answers, recipe.synthesis, llm, endpoint))


def storage(address: str) -> Finding:
    """Whether a file can be written, read, listed, renamed and removed, and what time it is there."""
    name, place = "storage", f"doctor-{uuid.uuid4().hex[:12]}"
    folder = Folder.open(address)
    was_there = folder.exists()
    began = time.monotonic()
    try:
        (folder / place).create().write_json("there.json", {"written": True})
        written = folder.filesystem.get_file_info(f"{folder.path}/{place}/there.json").mtime
        (folder / place).move_to(folder / f"{place}-moved")
        is_whole = (folder / f"{place}-moved").files() == ["there.json"]
        is_whole &= (folder / f"{place}-moved").read_json("there.json") == {"written": True}
    finally:
        made = [folder / place, folder / f"{place}-moved", *([] if was_there else [folder])]
        for one in made:
            with contextlib.suppress(QzhouError, OSError):
                one.delete()
    seconds = time.monotonic() - began
    said = f"{folder.uri} takes, gives, lists and renames files in {seconds:.1f} s"
    if not is_whole:
        return Finding(
            name, "fail", f"{folder.uri} lists or gives other files than were written", "See its gateway"
        )
    skew = abs((written - datetime.now(UTC)).total_seconds()) if written else 0.0
    if skew > SKEW_S + seconds:
        return Finding(
            name, "warn", f"{said}; its clock is {skew:.0f} s away from this one", "Set the clocks (NTP)"
        )
    if seconds > SLOW_S:
        return Finding(name, "warn", said, "A run writes some thousand files: use storage that is nearer")
    return Finding(name, "ok", said)


def data(recipe: Recipe) -> Finding:
    """Whether each dataset's files, columns and readers are there."""
    from qzhou.transform.reading.discovery import find_inputs

    try:
        raw = find_inputs(recipe)
    except QzhouError as error:
        return failed("data", error)
    count = sum(len(files) for kinds in raw.files.values() for files in kinds.values())
    return Finding("data", "ok", f"{len(raw.files)} datasets, {count} files")


def model(setting: str, spec: str) -> Finding:
    """Whether a model is on this machine, or can be fetched; its config.json alone is."""
    if "://" in spec:
        return Finding(setting, "ok", f"{spec} is an endpoint or a folder elsewhere, which was not asked")
    try:
        place = resolve(spec)
        if Path(place).exists():
            return Finding(setting, "ok", f"{spec} is on this machine")
        if model_file(place, "config.json") is not None:
            return Finding(setting, "ok", f"{spec} was fetched from the hub before")
        model_file(place, "config.json", download=True)
    except QzhouError as error:
        return failed(setting, error)
    return Finding(setting, "ok", f"{spec} can be fetched from the hub")


def answers(settings: SynthesisSection, llm: LLMSection, endpoint: str) -> Finding:
    """Whether an endpoint answers one request of its model, as the synthesis asks; it costs a few tokens."""
    name = f"LLM {llm.model} at {endpoint}"
    if endpoint == BUILTIN:
        return Finding(name, "ok", "rules answer; nothing is asked")
    if endpoint == LOCAL:
        return Finding(name, "ok", "is served when the stage begins")
    alone = {"endpoint": "", "models": (llm.model_copy(update={"endpoints": (endpoint,)}),), "max_retries": 0}
    began = time.monotonic()
    try:
        found = asyncio.run(_one_answer(settings.model_copy(update=alone | PATIENCE)))
    except QzhouError as error:
        return failed(name, error)
    if found.answer is None:
        return Finding(name, "fail", " ".join(found.failure.split()), "Check the model and its extra_body")
    one = found.answer
    said = f"answers in {time.monotonic() - began:.1f} s, {one.prompt_tokens} + {one.completion_tokens} tokens"
    if not llm.input_price + llm.output_price:
        return Finding(
            name, "warn", said, "It has no price, so no money is counted: set input_price and output_price"
        )
    return Finding(name, "ok", f"{said} for {one.cost:.6f}")


async def _one_answer(settings: SynthesisSection) -> ChatResult:
    (model,) = settings.pool
    with tempfile.TemporaryDirectory() as place:
        client = ChatClient(
            settings,
            keys=Keys.of([model.api_key_env]),
            cache=ResponseCache(Folder.open(place)),
            rate_limiter=RateLimiter(RequestLimits(settings)),
        )
        try:
            (found,) = await client.send([ChatRequest(model=model.model, messages=[ASKED])])
        finally:
            await client.close()
    return found


def cluster_findings(recipe: Recipe | None, address: str) -> Iterator[Finding]:
    """The nodes of a cluster, and whether the stages of a recipe can get what they ask for.

    Args:
        recipe: Says what is asked for.
        address: Of a cluster, as RAY_ADDRESS names it; empty: what one on this machine would offer.
    """
    yield token(os.environ.get("RAY_AUTH_MODE", ""))
    where = address or "this machine"
    yield from guarded("cluster", lambda: cluster(_nodes(address), _requests(recipe) if recipe else (), where))


def _requests(recipe: Recipe) -> list[ResourceRequest]:
    """Those of the stages that are not finished; of all where the run cannot be read."""
    try:
        return resources_of_pipeline(recipe)
    except QzhouError:
        return [resources_for(recipe, stage) for stage in PIPELINE]


def cluster(nodes: Sequence[NodeType] | None, requests: Sequence[ResourceRequest], where: str) -> Iterator[Finding]:
    """Whether a cluster can grant requests; ``nodes`` is None where only its autoscaler knows."""
    if nodes is None:
        yield Finding("cluster", "ok", f"{where} grows by itself; what it can start is not known here")
        return
    kinds = ("CPU", "GPU", "memory")
    shown = []
    for one in nodes:
        amounts = ", ".join(shown_amount(kind, one.resources.get(kind, 0)) for kind in kinds)
        shown.append(f"{one.max_count} x {one.name} with {amounts}")
    yield Finding("cluster", "ok" if nodes else "fail", "; ".join(shown) or f"{where} has no node")
    for request in requests:
        name = f"cluster.{request.stage}"
        try:
            refuse_impossible([request], nodes, where)
        except SetupError as error:
            found = failed(name, error)
            yield replace(found, said=found.said.removeprefix(f"{name}: "))
        else:
            each = ", ".join(shown_amount(kind, amount) for kind, amount in request.bundle.items())
            yield Finding(name, "ok", f"{request.workers} x {each}")


def token(mode: str) -> Finding:
    """Whether a cluster that is started here asks for a token; ``mode`` is RAY_AUTH_MODE."""
    if mode == "disabled":
        return Finding("RAY_AUTH_MODE", "warn", "disabled: whoever reaches the ports runs code", "Set it to token")
    return Finding("RAY_AUTH_MODE", "ok", mode or "not set; `qzhou submit` asks for a token on this machine")


def _nodes(address: str) -> list[NodeType] | None:
    """Those of a cluster, which is joined; or this machine as a cluster that is started here would offer it."""
    if address:
        with session():
            return node_kinds()
    memory = MEMORY_OFFERED * psutil.virtual_memory().total
    resources = {"CPU": float(local_cpus()), "GPU": float(_gpu_count()), "memory": memory}
    return [NodeType("node", resources, {})]


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()
