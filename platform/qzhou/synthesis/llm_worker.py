"""The body of the actor that sends requests to the LLM endpoints. No ray in here."""

import dataclasses
import json
import logging
from typing import Any

import pyarrow as pa

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import SynthesisSection
from qzhou.data.storage import Folder
from qzhou.errors import EndpointError
from qzhou.synthesis.chat import Answer, ChatRequest, ChatResult
from qzhou.synthesis.client import ChatClient
from qzhou.synthesis.rate_limiter import RateLimiter, RequestLimits
from qzhou.synthesis.response_cache import ResponseCache, totals
from qzhou.synthesis.schemas import response_schema


class LLMWorker:
    """Turns batches of requests into batches of results; one event loop keeps hundreds of requests in flight.

    ``responses`` is the folder of the response cache.
    """

    def __init__(self, settings: SynthesisSection, responses: Folder, keys: Keys) -> None:
        # aiohttp reports open connections as errors when Ray ends the process.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        # Read here and not by the driver, so that a restarted worker counts what its predecessor spent.
        spent = 0.0 if settings.max_cost is None else totals(responses)[1]
        self._client = ChatClient(
            settings,
            keys=keys,
            cache=ResponseCache(responses, read=False),
            rate_limiter=RateLimiter(RequestLimits(settings, spent=spent)),
        )

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Columns ``index``, ``result`` (JSON) and ``stopped`` for a batch of requests.

        ``stopped`` holds the message of an ``EndpointError``: raised here, it would end
        other batches whose answers are paid for.
        """
        requests = [
            ChatRequest(
                model=row["model"], messages=json.loads(row["messages"]), schema=response_schema(row["schema"])
            )
            for row in batch.to_pylist()
        ]
        stopped = ""
        try:
            results = await self._client.send(requests)
        except EndpointError as error:
            results = [ChatResult(answer=None)] * len(requests)
            stopped = str(error)
        written = [json.dumps(dataclasses.asdict(result)) for result in results]
        return pa.table({"index": batch["index"], "result": written, "stopped": [stopped] * len(requests)})


def result_from_json(text: str) -> ChatResult:
    """A result that :class:`LLMWorker` wrote into the column ``result``."""
    fields: dict[str, Any] = json.loads(text)
    if fields["answer"] is not None:
        fields["answer"] = Answer(**fields["answer"])
    return ChatResult(**fields)
