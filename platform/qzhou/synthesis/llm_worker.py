"""The body of the actor that sends requests to the LLM endpoints. No ray in here."""

import dataclasses
import json
import logging
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import SynthesisSection
from qzhou.data.storage import Folder
from qzhou.errors import EndpointError, StorageError, first_line
from qzhou.synthesis.chat import Answer, ChatRequest, ChatResult
from qzhou.synthesis.client import ChatClient
from qzhou.synthesis.rate_limiter import RateLimiter, RequestLimits
from qzhou.synthesis.response_cache import ResponseCache, totals
from qzhou.synthesis.schemas import response_schema


class LLMWorker:
    """Turns batches of requests into batches of results; one event loop keeps hundreds of requests in flight.

    Args:
        settings: Of the recipe.
        responses: The folder of the response cache.
        keys: Of the endpoints.
        known_files: Those of the cache whose answers the driver has looked up. A worker that takes a dead one's place
            finds in the others what that one was answered.
    """

    def __init__(
        self, settings: SynthesisSection, responses: Folder, keys: Keys, known_files: Collection[str] = ()
    ) -> None:
        # aiohttp reports open connections as errors when Ray ends the process.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        # Read here and not by the driver, so that a restarted worker counts what its predecessor spent.
        spent = 0.0 if settings.max_cost is None else totals(responses)[1]
        self._client = ChatClient(
            settings,
            keys=keys,
            cache=ResponseCache(responses, without=known_files),
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
        except (OSError, StorageError) as error:  # a full disk, say
            results = [ChatResult(answer=None)] * len(requests)
            stopped = f"answers cannot be kept in the response cache: {first_line(error)}."
        written = [json.dumps(dataclasses.asdict(result)) for result in results]
        return pa.table({"index": batch["index"], "result": written, "stopped": [stopped] * len(requests)})


def result_from_json(text: str) -> ChatResult:
    """A result that :class:`LLMWorker` wrote into the column ``result``."""
    fields: dict[str, Any] = json.loads(text)
    if fields["answer"] is not None:
        fields["answer"] = Answer(**fields["answer"])
    return ChatResult(**fields)
