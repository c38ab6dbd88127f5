"""OpenAI's Batch API: a file of requests is uploaded, a file of answers is downloaded within a day, at a lower price.

Every batch is recorded in the response cache before it is waited for. So a job that was
killed finds its batches again by their ids, and pays for none twice.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import openai

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.data.storage import Folder
from qzhou.errors import EndpointError, first_line
from qzhou.synthesis.chat import ChatRequest, ChatResult
from qzhou.synthesis.client import answer_of, chat_body, measure_attempt, open_client
from qzhou.synthesis.ledger import cost_of, expected_tokens
from qzhou.synthesis.response_cache import ResponseCache, totals
from qzhou.synthesis.schemas import response_schema, schema_name
from qzhou.synthesis.techniques import SynthesisRequest
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress

PATH: Literal["/v1/chat/completions"] = "/v1/chat/completions"
REQUESTS_PER_BATCH = 50_000  # OpenAI's limits
BYTES_PER_BATCH = 150 * 2**20
POLL_S = 15.0
ENDED = {"completed", "failed", "expired", "cancelled"}
BATCHES = "batches"  # folder of the response cache: one file for each batch in progress

Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Requests that were submitted together."""

    id: str
    model: str
    keys: tuple[str, ...]


class BatchSender:
    """Sends requests in batches, waits for them, and keeps the answers in the response cache in ``folder``.

    ``sleep`` waits between two polls; a test passes its own.
    """

    def __init__(
        self, settings: SynthesisSection, keys: Keys, folder: Folder, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._settings, self._keys, self._folder, self._sleep = settings, keys, folder, sleep
        self._cache = ResponseCache(folder, read=False)
        self._models = {model.model: model for model in settings.pool}
        self._clients: dict[str, openai.AsyncOpenAI] = {}

    def send(self, requests: Mapping[str, SynthesisRequest]) -> dict[str, ChatResult]:
        """The results of requests by their keys, after all batches have ended; none of them is in the cache.

        Raises:
            EndpointError: An endpoint refuses a batch, or ``max_cost`` would be exceeded.
        """
        return asyncio.run(self._send(requests))

    async def _send(self, requests: Mapping[str, SynthesisRequest]) -> dict[str, ChatResult]:
        batches = self._recorded()
        submitted = {key for batch in batches for key in batch.keys}
        new = {key: request for key, request in requests.items() if key not in submitted}
        self._check_cost(new)
        for name, model in self._models.items():
            key = self._keys.value(model.api_key_env)
            self._clients[name] = open_client(model.endpoints[0], key, self._settings.timeout_s)
        results: dict[str, ChatResult] = {}
        with progress("synthesis: batches", total=len(requests), unit="requests") as bar:
            try:
                for model in self._models.values():
                    for lines in self._parts(new, model):
                        batches.append(await self._submit(model, lines))
                for batch in batches:
                    results |= await self._collect(batch)
                    datasets = [requests[key].dataset for key in batch.keys if key in requests]
                    bar.advance(len(batch.keys), rows=Counter(datasets))
            except openai.APIError as error:
                raise EndpointError(
                    f"the Batch API refuses: {self._keys.redacted(first_line(error))}. Submitted batches are on "
                    "record; the same command goes on from there. Set synthesis.mode = 'live' where an endpoint has "
                    "no Batch API."
                ) from None
            finally:
                for client in self._clients.values():
                    await client.close()
        lost = ChatResult(answer=None, failure="no answer in its batch")
        return {key: results.get(key, lost) for key in requests}

    def _recorded(self) -> list[_Batch]:
        """Batches that an earlier attempt submitted, except those of models that the recipe no longer names."""
        records = self._folder / BATCHES
        batches = []
        for name in records.files(".json"):
            content = records.read_json(name)
            batch = _Batch(id=name.removesuffix(".json"), model=content["model"], keys=tuple(content["keys"]))
            if batch.model in self._models:
                batches.append(batch)
                continue
            log_event(
                f"synthesis: batch {batch.id} is skipped: the recipe no longer names its model '{batch.model}'; name "
                f"it again to fetch its {len(batch.keys):,} answers",
                "batch_skipped",
                level="warning",
            )
        return batches

    def _check_cost(self, requests: Mapping[str, SynthesisRequest]) -> None:
        max_cost = self._settings.max_cost
        if max_cost is None:
            return
        spent = totals(self._folder)[1]
        costs = (cost_of(self._models[one.model], *expected_tokens(one.messages)) for one in requests.values())
        expected = sum(costs)
        if spent + expected > max_cost:
            raise EndpointError(
                f"synthesis.max_cost ({max_cost:g}) would be exceeded: {spent:.4f} is spent, and the "
                f"{len(requests):,} requests of this round take about {expected:.4f}. Raise it, or ask for fewer rows."
            )

    def _parts(self, requests: Mapping[str, SynthesisRequest], model: LLMSection) -> list[dict[str, str]]:
        """Key -> line of the upload for one model's requests, split where a batch would be too large."""
        parts: list[dict[str, str]] = []
        size = BYTES_PER_BATCH
        for key, request in requests.items():
            if request.model != model.model:
                continue
            schema = response_schema(schema_name(request))
            chat = ChatRequest(model=request.model, messages=request.messages, schema=schema)
            body = chat_body(chat, self._settings.temperature, structured=model.structured != "off")
            line = json.dumps({"custom_id": key, "method": "POST", "url": PATH, "body": body})
            if size + len(line) > BYTES_PER_BATCH or len(parts[-1]) == REQUESTS_PER_BATCH:
                parts.append({})
                size = 0
            parts[-1][key] = line
            size += len(line)
        return parts

    async def _submit(self, model: LLMSection, lines: Mapping[str, str]) -> _Batch:
        client = self._clients[model.model]
        content = "\n".join(lines.values()).encode()
        uploaded = await client.files.create(file=("requests.jsonl", content), purpose="batch")
        created = await client.batches.create(input_file_id=uploaded.id, endpoint=PATH, completion_window="24h")
        batch = _Batch(id=created.id, model=model.model, keys=tuple(lines))
        (self._folder / BATCHES).write_json(f"{batch.id}.json", {"model": batch.model, "keys": batch.keys})
        return batch

    async def _collect(self, batch: _Batch) -> dict[str, ChatResult]:
        """The results of a batch when it has ended; its answers go into the cache, and its record is removed."""
        client = self._clients[batch.model]
        ended = await client.batches.retrieve(batch.id)
        while ended.status not in ENDED:
            await self._sleep(POLL_S)
            ended = await client.batches.retrieve(batch.id)
        results = dict.fromkeys(batch.keys, ChatResult(answer=None, failure=f"batch {batch.id} has {ended.status}"))
        if ended.output_file_id:
            content = (await client.files.content(ended.output_file_id)).text
            lines = [json.loads(line) for line in content.splitlines()]
            results = {line["custom_id"]: self._result(line, batch.model) for line in lines}
        for result in results.values():
            measure_attempt(batch.model, "rejected" if result.answer is None else "answered", result.answer)
            if result.answer is not None:
                await self._cache.add(result.answer)
        self._cache.flush()
        (self._folder / BATCHES).remove(f"{batch.id}.json")
        return results

    def _result(self, line: Mapping[str, Any], model: str) -> ChatResult:
        response = line.get("response") or {}
        body = response.get("body") or {}
        try:
            return ChatResult(answer=answer_of(line["custom_id"], self._models[model], body))
        except ValueError:
            error = str((body.get("error") or {}).get("message", "no answer"))
        failure = f"status {response.get('status_code', 0)}: {self._keys.redacted(error)}"
        return ChatResult(answer=None, failure=failure)
