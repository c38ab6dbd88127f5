"""What runs inside the actor that asks the endpoints. No ray in here."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

import pyarrow as pa

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import SynthesisSection
from qzhou.data.storage import Folder
from qzhou.errors import EndpointError
from qzhou.synthesis.builtin import builtin_endpoint
from qzhou.synthesis.client import ChatClient, Outcome, Question
from qzhou.synthesis.gate import Gate, LocalGate, RemoteGate
from qzhou.synthesis.journal import Answer, Journal
from qzhou.synthesis.schemas import schema_of_answer
from qzhou.synthesis.throttle import Throttle

ANSWER = ("key", "model", "content", "prompt_tokens", "completion_tokens", "cost")
OUTCOMES = pa.schema(
    [
        *(
            pa.field(name, pa.string())
            for name in ("key", "model", "content", "failure", "stopped")
        ),
        *(pa.field(name, pa.int64()) for name in ("index", "prompt_tokens", "completion_tokens")),
        pa.field("cost", pa.float64()),
        pa.field("answered", pa.bool_()),
    ]
)


def throttle_of(settings: SynthesisSection, *, spent: float) -> Throttle:
    """The limits of a recipe."""
    return Throttle(
        tuple(endpoint for one in settings.pool for endpoint in one.endpoints),
        concurrency=settings.concurrency,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        max_cost=settings.max_cost,
        spent=spent,
        give_up_after_s=settings.give_up_after_s,
    )


class Asker:
    """Turns requests into outcomes; one event loop keeps hundreds of them under way.

    The builtin endpoint is opened here, because its loopback address is good only on this node.

    Args:
        settings: Of the recipe.
        journal: Where answers are kept.
        keys: Of the endpoints.
        gate: Handle of the job's :class:`~qzhou.synthesis.gate.GateActor`, or the throttle itself where one asker is
            all there is.
    """

    def __init__(self, settings: SynthesisSection, journal: Folder, keys: Keys, gate: Any) -> None:
        # aiohttp laments connections when Ray ends the process
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._endpoint = contextlib.ExitStack()  # held: the server ends with the process
        if settings.is_builtin:
            url = self._endpoint.enter_context(builtin_endpoint())
            (model,) = settings.pool
            settings = settings.model_copy(
                update={"endpoint": "", "models": (model.model_copy(update={"endpoints": (url,)}),)}
            )
            gate = throttle_of(settings, spent=0.0)
        own: Gate = LocalGate(gate) if isinstance(gate, Throttle) else RemoteGate(gate)
        self._client = ChatClient(
            settings, keys=keys, journal=Journal(journal, read=False), gate=own
        )

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Ask one batch. An ``EndpointError`` travels as a column: raised here, it would kill other batches."""
        rows = batch.to_pylist()
        questions = [
            Question(
                model=row["model"],
                messages=json.loads(row["messages"]),
                schema=schema_of_answer(row["form"]),
            )
            for row in rows
        ]
        try:
            outcomes, stopped = await self._client.ask(questions), ""
        except EndpointError as error:
            outcomes, stopped = [Outcome(answer=None)] * len(rows), str(error)
        outputs = [
            _row(row["index"], outcome, stopped)
            for row, outcome in zip(rows, outcomes, strict=True)
        ]
        return pa.Table.from_pylist(outputs, schema=OUTCOMES)


def outcome_of(row: dict[str, Any]) -> Outcome:
    """What :class:`Asker` wrote into a row."""
    if not row["answered"]:
        return Outcome(answer=None, failure=str(row["failure"]))
    return Outcome(answer=Answer(**{name: row[name] for name in ANSWER}))


def _row(index: int, outcome: Outcome, stopped: str) -> dict[str, object]:
    answer = outcome.answer or Answer(
        key="", model="", content="", prompt_tokens=0, completion_tokens=0
    )
    return {
        "index": index,
        "answered": outcome.answer is not None,
        "failure": outcome.failure,
        "stopped": stopped,
        **{name: getattr(answer, name) for name in ANSWER},
    }
