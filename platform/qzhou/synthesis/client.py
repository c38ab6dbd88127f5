"""The one client that speaks to LLM endpoints: bounded, patient, and it never pays twice.

A problem of one request becomes a failed :class:`Outcome`; a problem of the endpoint becomes an ``EndpointError`` that
ends the work. The SDK's own retries are off: they would sleep inside the slot, where another request could be under
way.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from qzhou.config.api_keys import Keys, is_loopback
from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.errors import EndpointError
from qzhou.synthesis.gate import Gate
from qzhou.synthesis.journal import Answer, Journal, request_key
from qzhou.synthesis.ledger import cost_of, expected_tokens
from qzhou.synthesis.techniques import Message
from qzhou.synthesis.throttle import Result
from qzhou.telemetry.metrics import (
    LLM_COST,
    LLM_REQUESTS,
    LLM_RETRIES,
    LLM_SECONDS_METRIC,
    LLM_TOKENS,
    measure,
)

# key, credit, permission, address or model: the next request would fare the same
REFUSALS = {401, 402, 403, 404}
RETRIED = {408, 409, 425, 429}  # and every 5xx
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
SHOWN_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is sent: to which model, and in which form the answer is wanted (a JSON schema, by its name)."""

    model: str
    messages: Sequence[Message]
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended: with an answer, or with the reason why there is none.

    ``reused`` answers come from the journal or from an identical request, and cost nothing.
    """

    answer: Answer | None
    reused: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """One try that gave no answer; ``status`` is 0 where the endpoint could not be reached."""

    text: str
    status: int
    result: Result
    retryable: bool = False
    retry_after_s: float = 0.0


class ChatClient:
    """Asks the models of a recipe, each at the first of its endpoints that is well.

    Args:
        settings: What is asked, and how patiently.
        keys: Sent to the endpoints; never shown, written or logged.
        journal: What is answered already; new answers go there before they count.
        gate: Where every request waits for its slot.
        sleep: Waits between tries; a test passes its own.
        jitter: A number in [0, 1) that spreads the tries of many requests.
    """

    def __init__(
        self,
        settings: SynthesisSection,
        *,
        keys: Keys,
        journal: Journal,
        gate: Gate,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings, self._keys, self._journal, self._gate = settings, keys, journal, gate
        self._sleep, self._jitter = sleep, jitter
        self._models = {one.model: one for one in settings.pool}
        self._clients = {
            (endpoint, one.api_key_env): opened(
                endpoint, keys.value(one.api_key_env), settings.timeout_s
            )
            for one in settings.pool
            for endpoint in one.endpoints
        }
        self._plain: set[str] = set()  # endpoints that know no structured output
        self._asked: dict[str, asyncio.Task[Outcome]] = {}
        self._stop_message = ""
        self._stopped = asyncio.Event()

    async def ask(self, questions: Sequence[Question]) -> list[Outcome]:
        """Ask all of ``questions`` and give their outcomes in the same order; identical ones are sent once.

        Raises:
            EndpointError: No endpoint is left, or the money is spent. Requests under way are waited for, because
                their answers are paid for; all answers are in the journal.
        """
        shared = []
        for one in questions:
            key = request_key(one.model, one.messages, self._settings.temperature)
            reused = key in self._asked
            if not reused:
                self._asked[key] = asyncio.create_task(self._outcome(key, one))
            shared.append((self._asked[key], reused))
        ended = await asyncio.gather(*(task for task, _ in shared), return_exceptions=True)
        self._journal.flush()
        outcomes = []
        for outcome, (_, reused) in zip(ended, shared, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes.append(dataclasses.replace(outcome, reused=outcome.reused or reused))
        return outcomes

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def _outcome(self, key: str, question: Question) -> Outcome:
        try:
            known = self._journal.get(key)
            if known is not None:
                return Outcome(answer=known, reused=True)
            result = await self._persist(key, question)
            if isinstance(result, Answer):
                return Outcome(answer=result)
            return Outcome(answer=None, failure=f"status {result.status}: {result.text}")
        finally:
            del self._asked[key]

    async def _persist(self, key: str, question: Question) -> Answer | _Failure:
        """Try until there is an answer or the tries are used up; a failure that is the endpoint's uses up none."""
        model = self._models[question.model]
        tokens = expected_tokens(question.messages)
        cost = cost_of(model, *tokens)
        tried = 0
        while True:
            lane = await self._enter(model, sum(tokens), cost)
            is_last = tried == self._settings.max_retries
            result, rests = await self._sent(lane, key, model, question, sum(tokens), cost, is_last)
            if isinstance(result, Answer):
                await asyncio.sleep(0)  # who waits for the slot sends first
                await self._journal.add(result)  # durable before it counts
                return result
            # the endpoint is to blame: the gate names another one, waits for it, or says that none
            # is left
            if rests:
                continue
            if not result.retryable or is_last:
                return result
            await self._wait(tried, result)
            tried += 1
            measure(LLM_RETRIES, 1, model=model.model)

    async def _enter(self, model: LLMSection, tokens: float, cost: float) -> str:
        try:
            self._check_not_stopped()
            lane = await self._gate.enter(model.endpoints, tokens=tokens, cost=cost)
        except EndpointError as error:
            self._stop_message = self._stop_message or str(error)
            self._stopped.set()
            raise EndpointError(self._stop_message) from None
        return lane

    async def _sent(
        self,
        lane: str,
        key: str,
        model: LLMSection,
        question: Question,
        tokens: float,
        cost: float,
        is_last: bool,
    ) -> tuple[Answer | _Failure, bool]:
        """Send once, in a slot that was taken and is given back; also tells whether the endpoint is left alone now."""
        started = time.monotonic()
        tried = await self._try(lane, key, model, question)
        if isinstance(tried, Answer):
            measure(LLM_SECONDS_METRIC, time.monotonic() - started, model=model.model)
            measure_try(model.model, "answered", tried)
            used = tried.prompt_tokens + tried.completion_tokens
            await self._gate.leave(
                lane, "answered", tokens=tokens, cost=cost, used_tokens=used, paid=tried.cost
            )
            return tried, False
        measure_try(model.model, tried.result, None)
        problem = self._problem(model, tried)
        rests = await self._gate.leave(
            lane, tried.result, tokens=tokens, cost=cost, problem=problem, is_last_try=is_last
        )
        return tried, rests

    async def _try(
        self, lane: str, key: str, model: LLMSection, question: Question
    ) -> Answer | _Failure:
        """One HTTP request, or two where the endpoint knows no structured output."""
        structured = (
            question.schema is not None and model.structured != "off" and lane not in self._plain
        )
        body = {
            "model": model.model,
            "messages": question.messages,
            "temperature": self._settings.temperature,
        }
        if structured:
            body["response_format"] = {"type": "json_schema", "json_schema": question.schema}
        try:
            # not chat.completions.create: it takes 2 ms to check types that are known to fit, half of the time
            completion = await self._clients[lane, model.api_key_env].post(
                "/chat/completions", cast_to=object, body=body
            )
        except openai.APIConnectionError as error:
            # aiohttp's broken connections come out as this kind of timeout
            if (
                isinstance(error, openai.APITimeoutError)
                and type(error.__cause__).__name__ != "ConnectTimeout"
            ):
                text = f"no answer within {self._settings.timeout_s:g} s"
                return _Failure(text=text, status=408, result="overloaded", retryable=True)
            text = self._shown(error.__cause__ or error)
            return _Failure(text=text, status=0, result="unreachable", retryable=True)
        except openai.APIStatusError as error:
            if structured and model.structured == "auto" and error.status_code in {400, 422}:
                plain = await self._try(
                    lane, key, model, dataclasses.replace(question, schema=None)
                )
                if isinstance(plain, Answer):
                    self._plain.add(lane)
                return plain
            return self._status_failure(error)
        except (openai.APIError, ValueError) as error:
            return _Failure(
                text=self._shown(error), status=200, result="overloaded", retryable=True
            )
        try:
            return answer_of(key, model, completion)
        except (TypeError, LookupError, ValueError, AttributeError):
            return _Failure(
                text="the body is no chat completion",
                status=200,
                result="overloaded",
                retryable=True,
            )

    def _status_failure(self, error: openai.APIStatusError) -> _Failure:
        status = error.status_code
        retryable = status in RETRIED or status >= 500
        result: Result = (
            "overloaded" if retryable else "refused" if status in REFUSALS else "rejected"
        )
        wait_s = _retry_after_s(error.response.headers.get("retry-after", ""))
        text = self._shown(error)
        return _Failure(
            text=text, status=status, result=result, retryable=retryable, retry_after_s=wait_s
        )

    def _problem(self, model: LLMSection, failure: _Failure) -> str:
        """What to say of an endpoint that is given up for a failure."""
        if failure.result == "unreachable":
            return f"cannot be reached: {failure.text}. Check synthesis.endpoint and that a server listens there."
        if failure.result == "refused":
            return (
                f"refuses with status {failure.status}: {failure.text}. Check synthesis.endpoint, the model "
                f"'{model.model}' and the key in {model.api_key_env}."
            )
        return f"keeps failing, the last time with status {failure.status}: {failure.text}."

    def _check_not_stopped(self) -> None:
        if self._stopped.is_set():
            raise EndpointError(self._stop_message)

    async def _wait(self, tried: int, failure: _Failure) -> None:
        """Back off without holding a slot; wake at once when the work is stopped."""
        backoff_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tried)
        wait_s = failure.retry_after_s + backoff_s * (0.5 + self._jitter() / 2)
        waits = [
            asyncio.ensure_future(self._sleep(wait_s)),
            asyncio.ensure_future(self._stopped.wait()),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _shown(self, error: BaseException) -> str:
        """The endpoint's words for a message: short, and without a key if it quotes one."""
        return self._keys.redacted(" ".join((str(error) or type(error).__name__).split()))[
            :SHOWN_CHARS
        ]


def answer_of(key: str, model: LLMSection, completion: Any) -> Answer:
    """What a chat completion holds.

    Raises:
        TypeError, LookupError, ValueError, AttributeError: It is none.
    """
    usage = completion.get("usage") or {}
    tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    content = str(completion["choices"][0]["message"].get("content") or "")
    return Answer(
        key=key,
        model=str(completion.get("model") or model.model),
        # a lone surrogate could not be written anywhere
        content=content.encode("utf-8", "replace").decode(),
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        cost=cost_of(model, *tokens),
    )


def measure_try(model: str, result: Result, answer: Answer | None) -> None:
    """Let the meters know how a try ended, and what it cost."""
    measure(LLM_REQUESTS, 1, model=model, result=result)
    if answer is not None:
        measure(LLM_TOKENS, answer.prompt_tokens, model=model, kind="prompt")
        measure(LLM_TOKENS, answer.completion_tokens, model=model, kind="completion")
        measure(LLM_COST, answer.cost, model=model)


def opened(endpoint: str, key: str, timeout_s: float) -> openai.AsyncOpenAI:
    """The SDK's client of one endpoint, without its retries."""
    return openai.AsyncOpenAI(
        base_url=endpoint,
        api_key=key,
        max_retries=0,
        timeout=timeout_s,
        http_client=openai.DefaultAioHttpClient(trust_env=not is_loopback(endpoint)),
    )


def _retry_after_s(header: str) -> float:
    """Seconds of a ``Retry-After`` header, which holds a number or a date; 0 for none or nonsense."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
