"""OpenAI's Batch API: a file of requests goes up, a file of answers comes down within a day, at a lower price.

What was handed in is on record before it is waited for, so that a killed job finds its batches again by their ids and
pays for none twice.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import openai

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.data.storage import Folder
from qzhou.errors import EndpointError, first_line
from qzhou.synthesis.client import Outcome, answer_of, measure_try, opened
from qzhou.synthesis.journal import Journal, totals
from qzhou.synthesis.ledger import cost_of, expected_tokens
from qzhou.synthesis.schemas import form_of, schema_of_answer
from qzhou.synthesis.techniques import ChatRequest
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress

REQUESTS_PER_BATCH = 50_000  # OpenAI's limits
BYTES_PER_BATCH = 150 * 2**20
POLLED_EVERY_S = 15.0
ENDED = {"completed", "failed", "expired", "cancelled"}
OPEN = "batches"  # folder of the journal: one file for each batch that is under way

Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Requests that were handed in together."""

    id: str
    model: str
    keys: tuple[str, ...]


def answered_in_batches(
    requests: Mapping[str, ChatRequest],
    settings: SynthesisSection,
    keys: Keys,
    folder: Folder,
    sleep: Sleep = asyncio.sleep,
) -> dict[str, Outcome]:
    """Hand requests in, wait, and keep the answers in the journal.

    Args:
        requests: By their keys; none of them is in the journal.
        settings: Of the recipe.
        keys: Of the endpoints.
        folder: Of the journal.
        sleep: Waits between two looks; a test passes its own.

    Raises:
        EndpointError: An endpoint refuses a batch, or ``max_cost`` would be exceeded.
    """
    return asyncio.run(_answered(requests, settings, keys, folder, sleep))


async def _answered(
    requests: Mapping[str, ChatRequest],
    settings: SynthesisSection,
    keys: Keys,
    folder: Folder,
    sleep: Sleep,
) -> dict[str, Outcome]:
    models = {one.model: one for one in settings.pool}
    clients = {
        name: opened(one.endpoints[0], keys.value(one.api_key_env), settings.timeout_s)
        for name, one in models.items()
    }
    journal = Journal(folder, read=False)
    under_way = _found(folder, models)
    handed_in = {key for batch in under_way for key in batch.keys}
    waiting = {key: request for key, request in requests.items() if key not in handed_in}
    _check_cost(waiting, models, settings, folder)
    outcomes: dict[str, Outcome] = {}
    with progress("synthesis: batches", total=len(requests), unit="requests") as bar:
        try:
            for model in models.values():
                own = {
                    key: request for key, request in waiting.items() if request.model == model.model
                }
                for lines in _parts(own, model, settings):
                    under_way.append(await _handed_in(clients[model.model], model, lines, folder))
            for batch in under_way:
                client, model = clients[batch.model], models[batch.model]
                found = await _waited_for(client, batch, sleep)
                for key, outcome in (await _outcomes(client, model, batch, found, keys)).items():
                    measure_try(
                        model.model,
                        "rejected" if outcome.answer is None else "answered",
                        outcome.answer,
                    )
                    if outcome.answer is not None:
                        await journal.add(outcome.answer)
                    outcomes[key] = outcome
                journal.flush()
                (folder / OPEN).remove(f"{batch.id}.json")
                rows = Counter(requests[key].dataset for key in batch.keys if key in requests)
                bar.advance(len(batch.keys), rows=rows)
        except openai.APIError as error:
            raise EndpointError(
                f"the Batch API refuses: {keys.redacted(first_line(error))}. What was handed in is on record; the same "
                "command goes on from there. Set synthesis.mode = 'live' where an endpoint has no Batch API."
            ) from None
        finally:
            for client in clients.values():
                await client.close()
    lost = Outcome(answer=None, failure="no answer in its batch")
    return {key: outcomes.get(key, lost) for key in requests}


def _check_cost(
    waiting: Mapping[str, ChatRequest],
    models: Mapping[str, LLMSection],
    settings: SynthesisSection,
    folder: Folder,
) -> None:
    if settings.max_cost is None:
        return
    spent = totals(folder)[1]
    expected = sum(
        cost_of(models[one.model], *expected_tokens(one.messages)) for one in waiting.values()
    )
    if spent + expected > settings.max_cost:
        raise EndpointError(
            f"synthesis.max_cost ({settings.max_cost:g}) would be exceeded: {spent:.4f} is spent, and the "
            f"{len(waiting):,} requests of this round take about {expected:.4f}. Raise it, or ask for fewer rows."
        )


def _parts(
    requests: Mapping[str, ChatRequest], model: LLMSection, settings: SynthesisSection
) -> list[list[tuple[str, str]]]:
    """(key, line) of the requests of one model, cut where a batch would grow too large."""
    parts: list[list[tuple[str, str]]] = []
    size = BYTES_PER_BATCH
    for key, request in requests.items():
        body: dict[str, Any] = {
            "model": request.model,
            "messages": request.messages,
            "temperature": settings.temperature,
        }
        if model.structured != "off":
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": schema_of_answer(form_of(request)),
            }
        line = json.dumps(
            {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        )
        if size + len(line) > BYTES_PER_BATCH or len(parts[-1]) == REQUESTS_PER_BATCH:
            parts.append([])
            size = 0
        parts[-1].append((key, line))
        size += len(line)
    return parts


async def _handed_in(
    client: openai.AsyncOpenAI, model: LLMSection, lines: list[tuple[str, str]], folder: Folder
) -> _Batch:
    content = "\n".join(line for _, line in lines).encode()
    uploaded = await client.files.create(file=("requests.jsonl", content), purpose="batch")
    made = await client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = _Batch(id=made.id, model=model.model, keys=tuple(key for key, _ in lines))
    (folder / OPEN).write_json(f"{batch.id}.json", {"model": batch.model, "keys": batch.keys})
    return batch


def _found(folder: Folder, models: Collection[str]) -> list[_Batch]:
    """Batches that an earlier attempt handed in, as far as the recipe still names their models."""
    names = (folder / OPEN).files(".json")
    contents = [(name.removesuffix(".json"), (folder / OPEN).read_json(name)) for name in names]
    batches = [
        _Batch(id=name, model=found["model"], keys=tuple(found["keys"])) for name, found in contents
    ]
    for batch in batches:
        if batch.model not in models:
            log_event(
                f"synthesis: batch {batch.id} is skipped: the recipe no longer names its model '{batch.model}'; name "
                f"it again to fetch its {len(batch.keys):,} answers",
                "batch_skipped",
                level="warning",
            )
    return [batch for batch in batches if batch.model in models]


async def _waited_for(client: openai.AsyncOpenAI, batch: _Batch, sleep: Sleep) -> Any:
    while True:
        found = await client.batches.retrieve(batch.id)
        if found.status in ENDED:
            return found
        await sleep(POLLED_EVERY_S)


async def _outcomes(
    client: openai.AsyncOpenAI, model: LLMSection, batch: _Batch, found: Any, keys: Keys
) -> dict[str, Outcome]:
    if not found.output_file_id:
        failure = f"batch {batch.id} has {found.status}"
        return {key: Outcome(answer=None, failure=failure) for key in batch.keys}
    content = (await client.files.content(found.output_file_id)).text
    outcomes = {}
    for line in content.splitlines():
        answered = json.loads(line)
        response = answered.get("response") or {}
        outcomes[answered["custom_id"]] = _outcome(answered["custom_id"], model, response, keys)
    return outcomes


def _outcome(key: str, model: LLMSection, response: Mapping[str, Any], keys: Keys) -> Outcome:
    body = response.get("body") or {}
    try:
        return Outcome(answer=answer_of(key, model, body))
    except (TypeError, LookupError, ValueError, AttributeError):
        said = keys.redacted(str((body.get("error") or {}).get("message", "no answer")))
        return Outcome(answer=None, failure=f"status {response.get('status_code', 0)}: {said}")
