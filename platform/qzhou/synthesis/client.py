"""The client of the LLM endpoints: keeps to limits, retries, never pays a request twice.

A problem of one request becomes a :class:`ChatResult` without an answer. A problem of all
endpoints becomes an ``EndpointError``, which ends the work. The SDK's own retries are off:
they would wait while they hold a slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import openai

from qzhou.config.api_keys import Keys, is_loopback
from qzhou.config.synthesis import BUILTIN, LLMSection, SynthesisSection
from qzhou.errors import EndpointError, with_body
from qzhou.synthesis.builtin import BuiltinEndpoint
from qzhou.synthesis.chat import Answer, ChatRequest, ChatResult, Message, request_key
from qzhou.synthesis.ledger import cost_of, expected_tokens
from qzhou.synthesis.rate_limiter import Attempt, AttemptStatus, RateLimiter, Reservation
from qzhou.synthesis.request_form import LearnedForm, RequestForm
from qzhou.synthesis.response_cache import ResponseCache
from qzhou.telemetry import metrics
from qzhou.telemetry.events import log_event

# key, credit, permission, address or model: the next request would fail too
REFUSED = {401, 402, 403, 404}
TOO_MANY = 429
RETRIED = {408, 409, 425, 429}  # and every 5xx
OF_ONE_REQUEST = {403}  # a moderated input; of an endpoint that answers others, or until so many came in a row
FORBIDDEN_IN_A_ROW = 5
THOUGHT_TOKENS, ANSWER_FACTOR = 2048, 4  # the limit of an answer: so much more than what is asked for
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
SHOWN_CHARS = 300


class ChatEndpoint(Protocol):
    """What the client needs of endpoints; ``AsyncOpenAI`` and the builtin rules have it."""

    async def post(self, path: str, *, cast_to: type[object], body: Any) -> object:
        """The JSON that answers one request."""

    async def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """One try without an answer; ``http_status`` is 0 if the endpoint was unreachable."""

    text: str
    http_status: int
    status: AttemptStatus = "overloaded"
    retry_after_s: float = 0.0

    @property
    def retryable(self) -> bool:
        return self.status in {"overloaded", "unreachable"}


class ChatClient:
    """Sends requests to a recipe's models, each to its model's first healthy endpoint.

    Args:
        settings: Models, timeout, retries, temperature.
        keys: Of the endpoints; never shown, written or logged.
        cache: Of answers; a new answer is stored there before it counts.
        rate_limiter: Every request waits there for its slot.
        sleep: Waits between two tries; a test passes its own.
        jitter: A number in [0, 1) that spreads the retries of many requests.
    """

    def __init__(
        self,
        settings: SynthesisSection,
        *,
        keys: Keys,
        cache: ResponseCache,
        rate_limiter: RateLimiter,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings, self._keys = settings, keys
        self._cache, self._rate_limiter = cache, rate_limiter
        self._sleep, self._jitter = sleep, jitter
        self._models = {model.model: model for model in settings.pool}
        self._endpoints: dict[tuple[str, str], ChatEndpoint] = {
            (url, model.api_key_env): _endpoint(url, keys.value(model.api_key_env), model, settings)
            for model in settings.pool
            for url in model.endpoints
        }
        self._sampling = settings.sampling
        self._forms: dict[tuple[str, str], LearnedForm] = defaultdict(LearnedForm)  # of (endpoint, model)
        self._has_answered: set[tuple[str, str]] = set()
        self._forbidden = Counter[tuple[str, str]]()
        self._most_tokens: Counter[str] = Counter()  # of one answer of a model
        self._in_progress: dict[str, asyncio.Task[ChatResult]] = {}
        self._stop_message = ""
        self._stopped = asyncio.Event()

    async def send(self, requests: Sequence[ChatRequest]) -> list[ChatResult]:
        """The results of ``requests`` in their order; identical requests are sent once.

        Raises:
            EndpointError: All endpoints have failed, or the money is spent. Requests in flight are waited for, because
                their answers are paid for; all answers are in the cache.
        """
        tasks = []
        for request in requests:
            key = request_key(request.model, request.messages, self._sampling[request.model])
            reused = key in self._in_progress
            if not reused:
                self._in_progress[key] = asyncio.create_task(self._result(key, request))
            tasks.append((self._in_progress[key], reused))
        ended = await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        results = []
        for result, (_, reused) in zip(ended, tasks, strict=True):
            if isinstance(result, BaseException):
                raise result
            results.append(dataclasses.replace(result, reused=result.reused or reused))
        return results

    async def close(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints.values():
            await endpoint.close()

    async def _result(self, key: str, request: ChatRequest) -> ChatResult:
        try:
            cached = self._cache.get(key)
            if cached is not None:
                return ChatResult(answer=cached, reused=True)
            result = await self._send_until_answered(key, request)
            if isinstance(result, Answer):
                return ChatResult(answer=result)
            return ChatResult(answer=None, failure=f"status {result.http_status}: {result.text}")
        finally:
            del self._in_progress[key]

    async def _send_until_answered(self, key: str, request: ChatRequest) -> Answer | _Failure:
        """Send until there is an answer or no try is left; a failure that is the endpoint's uses up no try.

        Where a rate limit is all that stands in the way, tries go on for ``give_up_after_s`` of waiting.
        """
        model = self._models[request.model]
        prompt, answer = expected_tokens(request.messages)
        tried, waited_s, is_limited = 0, 0.0, False
        while True:
            # of money, what the dearest answer so far would cost: they differ, and thoughts are many
            cost = cost_of(model, prompt, max(answer, self._most_tokens[model.model]))
            reservation = await self._acquire(model, prompt + answer, cost)
            may_wait = is_limited and waited_s < self._settings.give_up_after_s
            is_last = tried >= self._settings.max_retries and not may_wait
            result, endpoint_to_blame = await self._send_once(reservation, key, request, is_last)
            if isinstance(result, Answer):
                # The next request takes the free slot before this answer is written to disk.
                await asyncio.sleep(0)
                await self._cache.add(result)
                return result
            if endpoint_to_blame:
                # The limiter names another endpoint, waits for this one, or says that all have failed.
                continue
            if not result.retryable or is_last:
                return result
            is_limited = result.http_status == TOO_MANY
            waited_s += await self._back_off(tried, result)
            tried += 1
            metrics.measure(metrics.LLM_RETRIES, 1, model=model.model)

    async def _acquire(self, model: LLMSection, tokens: float, cost: float) -> Reservation:
        try:
            if self._stopped.is_set():
                raise EndpointError(self._stop_message)
            return await self._rate_limiter.acquire(model.endpoints, tokens=tokens, cost=cost)
        except EndpointError as error:
            # All requests of this client end with the first message.
            self._stop_message = self._stop_message or str(error)
            self._stopped.set()
            raise EndpointError(self._stop_message) from None

    async def _send_once(
        self, reservation: Reservation, key: str, request: ChatRequest, is_last: bool
    ) -> tuple[Answer | _Failure, bool]:
        """The answer or failure, and whether the endpoint is to blame; frees the slot."""
        model = self._models[request.model]
        started = time.monotonic()
        result = await self._post(reservation.endpoint, key, request)
        if isinstance(result, Answer):
            metrics.measure(metrics.LLM_SECONDS_METRIC, time.monotonic() - started, model=model.model)
            measure_attempt(model.model, "answered", result)
            self._has_answered.add((reservation.endpoint, model.model))
            most = max(self._most_tokens[model.model], result.completion_tokens)
            self._most_tokens[model.model] = most
            used = result.prompt_tokens + result.completion_tokens
            attempt = Attempt(status="answered", used_tokens=used, paid=result.cost)
        else:
            measure_attempt(model.model, result.status, None)
            # a provider bills what it was too slow to hand over
            paid = cost_of(model, expected_tokens(request.messages)[0], 0) if result.http_status == 408 else 0.0
            problem = _problem(model, result)
            attempt = Attempt(status=result.status, problem=problem, is_last_try=is_last, paid=paid)
        return result, self._rate_limiter.release(reservation, attempt)

    async def _post(self, url: str, key: str, request: ChatRequest) -> Answer | _Failure:
        """One HTTP request, or some more where the endpoint does not know all of what is asked for."""
        model, learned = self._models[request.model], self._forms[url, request.model]
        form = asked = learned.form_for(model, has_schema=request.schema is not None)
        while True:
            limit = self._longest_answer(model, request)
            body = chat_body(request, self._sampling[request.model], form=form, limit=limit)
            try:
                # Not chat.completions.create, which checks types for 2 ms a request, half of the time.
                endpoint = self._endpoints[url, model.api_key_env]
                completion = await endpoint.post("/chat/completions", cast_to=object, body=body)
                answer = answer_of(key, model, completion)
            except openai.APIConnectionError as error:
                return self._connection_failure(error)
            except openai.APIStatusError as error:
                said = with_body(str(error), error)
                simpler = form.simpler(error.status_code, said, may_be_plain=model.structured == "auto")
                if simpler is None:
                    return self._status_failure(error, (url, model.model))
                form = simpler
            except (openai.APIError, ValueError) as error:
                return _Failure(text=self._shown(error), http_status=200)
            else:
                learned.learn(form, asked=asked, was_cut_at=limit if answer.finish_reason == "length" else 0)
                return answer

    def _longest_answer(self, model: LLMSection, request: ChatRequest) -> int:
        known = max(self._forms[url, model.model].longest for url in model.endpoints)
        return longest_answer(model, request.messages, known)

    def _connection_failure(self, error: openai.APIConnectionError) -> _Failure:
        is_timeout = isinstance(error, openai.APITimeoutError)
        # A connection that aiohttp lost comes as a timeout too; only a failed connect never reached the endpoint.
        if is_timeout and type(error.__cause__).__name__ != "ConnectTimeout":
            return _Failure(text=f"no answer within {self._settings.timeout_s:g} s", http_status=408)
        return _Failure(text=self._shown(error.__cause__ or error), http_status=0, status="unreachable")

    def _status_failure(self, error: openai.APIStatusError, place: tuple[str, str]) -> _Failure:
        code = error.status_code
        status: AttemptStatus = "refused" if code in REFUSED else "rejected"
        if code in RETRIED or code >= 500:
            status = "overloaded"
        if code in OF_ONE_REQUEST:
            self._forbidden[place] += 1
            if place in self._has_answered or self._forbidden[place] < FORBIDDEN_IN_A_ROW:
                status = "rejected"
        retry_after_s = _retry_after_s(error.response.headers.get("retry-after", ""))
        if retry_after_s > self._settings.give_up_after_s:
            line = f"synthesis: {place[0]} asks to wait {retry_after_s:,.0f} s; it is asked again after "
            line += f"{self._settings.give_up_after_s:,.0f} s (give_up_after_s)"
            log_event(line, "retry_after_capped", level="warning", seconds=retry_after_s)
            retry_after_s = self._settings.give_up_after_s
        return _Failure(text=self._shown(error), http_status=code, status=status, retry_after_s=retry_after_s)

    async def _back_off(self, tried: int, failure: _Failure) -> float:
        """Wait without a slot before the next try, for so many seconds; wake at once when work stops."""
        backoff_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tried)
        wait_s: float = failure.retry_after_s + backoff_s * (0.5 + self._jitter() / 2)
        waits = [asyncio.ensure_future(wait) for wait in (self._sleep(wait_s), self._stopped.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return wait_s

    def _shown(self, error: BaseException) -> str:
        """An error's text for a message: short, without a key that the endpoint quotes."""
        text = with_body(str(error) or type(error).__name__, error)
        return self._keys.redacted(" ".join(text.split()))[:SHOWN_CHARS]


def chat_body(
    request: ChatRequest, sampling: Mapping[str, Any], *, form: RequestForm, limit: int
) -> dict[str, Any]:
    """The body of ``/chat/completions`` in a form that the endpoint knows; ``limit`` in tokens."""
    body: dict[str, Any] = {"model": request.model, "messages": request.messages, **sampling}
    if not form.model:
        del body["model"]
    if not form.temperature:
        body.pop("temperature", None)
    if form.limit:
        body.setdefault(form.limit, limit)
    if form.structured == "json_schema":
        body["response_format"] = {"type": "json_schema", "json_schema": request.schema}
    elif form.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


def longest_answer(model: LLMSection, messages: Sequence[Message], known: int = 0) -> int:
    """The limit of an answer in tokens: the recipe's, or by what is asked for and what is ``known`` to be needed."""
    expected = THOUGHT_TOKENS + ANSWER_FACTOR * expected_tokens(messages)[1]
    return model.max_tokens or max(expected, known)


def answer_of(key: str, model: LLMSection, completion: Any) -> Answer:
    """The answer that a chat completion holds.

    Raises:
        ValueError: It is no chat completion.
    """
    try:
        usage = completion.get("usage") or {}
        prompt_tokens = int(usage.get("prompt_tokens") or 0)
        completion_tokens = int(usage.get("completion_tokens") or 0)
        choice = completion["choices"][0]
        content = _text_of(choice["message"].get("content"))
        reason = str(choice.get("finish_reason") or "")
        name = str(completion.get("model") or model.model)
    except (TypeError, LookupError, ValueError, AttributeError):
        raise ValueError("the body is no chat completion") from None
    return Answer(
        key=key,
        model=name,
        # A lone surrogate could not be written to any file.
        content=content.encode("utf-8", "replace").decode(),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=cost_of(model, prompt_tokens, completion_tokens),
        finish_reason=reason,
    )


def _text_of(content: Any) -> str:
    """An answer's text; some endpoints give it in parts, of which thoughts are no text."""
    if not isinstance(content, list):
        return str(content or "")
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return "".join(str(part.get("text") or "") for part in parts if part.get("type") in ("text", "output_text"))


def measure_attempt(model: str, status: AttemptStatus, answer: Answer | None) -> None:
    """Count a request in the metrics, with the tokens and the money of its answer."""
    metrics.measure(metrics.LLM_REQUESTS, 1, model=model, result=status)
    if answer is not None:
        metrics.measure(metrics.LLM_TOKENS, answer.prompt_tokens, model=model, kind="prompt")
        metrics.measure(metrics.LLM_TOKENS, answer.completion_tokens, model=model, kind="completion")
        metrics.measure(metrics.LLM_COST, answer.cost, model=model)


def open_client(url: str, key: str, timeout_s: float, headers: Mapping[str, str]) -> openai.AsyncOpenAI:
    """The SDK's client of one endpoint, without its retries; a query in its address stays one (``?api-version=``)."""
    address = urlsplit(url)
    return openai.AsyncOpenAI(
        base_url=urlunsplit(address._replace(query="")),
        api_key=key,
        max_retries=0,
        timeout=timeout_s,
        default_headers=dict(headers),
        default_query=dict(parse_qsl(address.query)),
        http_client=openai.DefaultAioHttpClient(trust_env=not is_loopback(url)),
    )


def _endpoint(url: str, key: str, model: LLMSection, settings: SynthesisSection) -> ChatEndpoint:
    return BuiltinEndpoint() if url == BUILTIN else open_client(url, key, settings.timeout_s, model.headers)


def _problem(model: LLMSection, failure: _Failure) -> str:
    """What is wrong with an endpoint, for the message when it has failed for good."""
    if failure.status == "unreachable":
        return f"cannot be reached: {failure.text}. Check synthesis.endpoint and that a server listens there."
    if failure.status == "refused":
        return (
            f"refuses with status {failure.http_status}: {failure.text}. Check synthesis.endpoint, the model "
            f"'{model.model}' and the key in {model.api_key_env}."
        )
    return f"keeps failing, the last time with status {failure.http_status}: {failure.text}."


def _retry_after_s(header: str) -> float:
    """Seconds of a ``Retry-After`` header, from a number or a date; 0 if it is neither."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0
