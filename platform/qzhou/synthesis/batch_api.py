"""OpenAI's Batch API: a file of requests is uploaded, a file of answers is downloaded within a day, at a lower price.

Every batch is recorded in the response cache before it is waited for. So a job that was
killed finds its batches again by their ids, and pays for none twice.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import openai

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.data.storage import Folder
from qzhou.errors import EndpointError, first_line
from qzhou.synthesis.chat import ChatRequest, ChatResult
from qzhou.synthesis.client import RETRIED, answer_of, chat_body, longest_answer, measure_attempt, open_client
from qzhou.synthesis.ledger import cost_of, expected_tokens
from qzhou.synthesis.request_form import RequestForm
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
# what an endpoint writes of requests that it did not come to
UNDONE = {"batch_expired", "batch_cancelled", "request_timeout"}
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

    ``sleep`` waits between two polls, and ``connect`` opens an endpoint; a test passes its own.
    """

    def __init__(
        self,
        settings: SynthesisSection,
        keys: Keys,
        folder: Folder,
        sleep: Sleep = asyncio.sleep,
        connect: Callable[..., openai.AsyncOpenAI] = open_client,
    ) -> None:
        self._settings, self._keys, self._folder, self._sleep = settings, keys, folder, sleep
        self._cache = ResponseCache(folder, without=folder.files(".jsonl"))
        self._models = {model.model: model for model in settings.pool}
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._problems: list[str] = []
        self._tries = Counter[str]()
        self._tries_again = False
        self._connect = connect

    def send(self, requests: Mapping[str, SynthesisRequest]) -> dict[str, ChatResult]:
        """The results of requests by their keys, after all batches have ended; none of them is in the cache.

        Raises:
            EndpointError: An endpoint refuses a batch or leaves requests without an answer, or ``max_cost`` would be
                exceeded.
        """
        return asyncio.run(self._send(requests))

    async def _send(self, requests: Mapping[str, SynthesisRequest]) -> dict[str, ChatResult]:
        batches = self._recorded()
        submitted = {key for batch in batches for key in batch.keys}
        new = {key: request for key, request in requests.items() if key not in submitted}
        self._check_cost(requests)  # those handed in by an earlier attempt are still to be paid
        for name, model in self._models.items():
            key = self._keys.value(model.api_key_env)
            self._clients[name] = self._connect(model.endpoints[0], key, self._settings.timeout_s, model.headers)
        results: dict[str, ChatResult] = {}
        with progress("synthesis: batches", total=len(requests), unit="requests") as bar:
            try:
                for model in self._models.values():
                    for lines in self._parts(new, model):
                        batches.append(await self._submit(model, lines))
                while batches:
                    round_results: dict[str, ChatResult] = {}
                    unanswered = []
                    for batch in batches:
                        found = await self._collect(batch)
                        datasets = [requests[key].dataset for key in found if key in requests]
                        bar.advance(len(found), rows=Counter(datasets))
                        round_results |= found
                        unanswered += [key for key in batch.keys if key not in found]
                    results |= round_results
                    goes_on = bool(round_results) or self._tries_again
                    self._tries_again = False
                    batches = await self._again(requests, unanswered, made_progress=goes_on)
            except openai.APIError as error:
                raise EndpointError(
                    f"the Batch API refuses: {self._keys.redacted(first_line(error))}. Submitted batches are on "
                    "record; the same command goes on from there. Set synthesis.mode = 'live' where an endpoint has "
                    "no Batch API."
                ) from None
            finally:
                for client in self._clients.values():
                    await client.close()
        return {key: results[key] for key in requests}

    async def _again(
        self, requests: Mapping[str, SynthesisRequest], unanswered: Sequence[str], *, made_progress: bool
    ) -> list[_Batch]:
        """Hand in what ended without an answer, one batch after the other where an endpoint takes no more at a time."""
        waiting = {key: requests[key] for key in unanswered if key in requests}
        if not waiting:
            return []
        if not made_progress:
            why = "; ".join(self._problems) or "their batches ended without them"
            raise EndpointError(
                f"{len(waiting):,} requests have no answer: {why}. The others' answers are kept, and the same command "
                "hands these in again."
            )
        self._problems.clear()
        self._check_cost(waiting)
        for model in self._models.values():
            for lines in self._parts(waiting, model):
                return [await self._submit(model, lines)]
        return []

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
            form = RequestForm(structured="off" if model.structured == "off" else "json_schema")
            limit = longest_answer(model, request.messages)
            body = chat_body(chat, self._settings.sampling[model.model], form=form, limit=limit)
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
        """The results of a batch when it has ended; its answers go into the cache, and its record is removed.

        What an expired or failed batch leaves without an answer has no result.
        """
        client = self._clients[batch.model]
        ended = await self._patiently(lambda: client.batches.retrieve(batch.id))
        while ended.status not in ENDED:
            await self._sleep(POLL_S)
            ended = await self._patiently(lambda: client.batches.retrieve(batch.id))
        results: dict[str, ChatResult] = {}
        for file in filter(None, (ended.error_file_id, ended.output_file_id)):
            content = (await self._patiently(partial(client.files.content, file))).text
            # not splitlines: JSON may hold U+2028
            lines = [json.loads(line) for line in content.split("\n") if line.strip()]
            for line in lines:
                if not self._is_undone(line):
                    results[line["custom_id"]] = self._result(line, batch.model)
        if ended.status != "completed":
            said = [one.message for one in (ended.errors.data if ended.errors else None) or [] if one.message]
            reason = f": {self._keys.redacted(said[0])}" if said else ""
            self._problems.append(f"batch {batch.id} has {ended.status}{reason}")
        for result in results.values():
            measure_attempt(batch.model, "rejected" if result.answer is None else "answered", result.answer)
        await asyncio.gather(*(self._cache.add(one.answer) for one in results.values() if one.answer is not None))
        (self._folder / BATCHES).remove(f"{batch.id}.json")
        return results

    async def _patiently(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """The outcome of a call that changes nothing, tried for ``give_up_after_s`` while the endpoint is away."""
        waited_s = 0.0
        while True:
            try:
                return await call()
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code != 429:
                    raise
                failure: openai.APIError = error
            except openai.APIConnectionError as error:
                failure = error
            if waited_s >= self._settings.give_up_after_s:
                raise failure
            await self._sleep(POLL_S)
            waited_s += POLL_S

    def _is_undone(self, line: Mapping[str, Any]) -> bool:
        """Whether a request shall be handed in again: it was not come to, or an error of the server may have passed."""
        error = line.get("error") or {}
        status = (line.get("response") or {}).get("status_code", 0)
        if error.get("code") in UNDONE or status in RETRIED:
            told = str(error.get("message") or error.get("code") or f"status {status}")
            self._problems.append(self._keys.redacted(told))
            return True
        if status < 500:
            return False
        self._tries[line["custom_id"]] += 1
        is_again = self._tries[line["custom_id"]] <= self._settings.max_retries
        self._tries_again |= is_again
        return is_again

    def _result(self, line: Mapping[str, Any], model: str) -> ChatResult:
        response = line.get("response") or {}
        body = response.get("body") or {}
        try:
            return ChatResult(answer=answer_of(line["custom_id"], self._models[model], body))
        except ValueError:
            told = body.get("error") or line.get("error") or {}
            error = str(told.get("message", "no answer"))
        failure = f"status {response.get('status_code', 0)}: {self._keys.redacted(error)}"
        return ChatResult(answer=None, failure=failure)
