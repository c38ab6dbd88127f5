"""The one client that speaks to LLM endpoints: bounded, patient, and it never pays twice.

A problem of one request becomes a failed :class:`Outcome`; a problem of the endpoint becomes an
``EndpointError`` that ends the work. The SDK's own retries are off: they would sleep inside the
slot, where another request could be under way.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion
from pydantic import SecretStr

from qzhou.errors import EndpointError
from qzhou.recipe import SynthesisSection
from qzhou.synthesis.journal import Answer, Journal, request_key
from qzhou.synthesis.techniques import Message

REFUSALS = {401, 402, 403, 404}  # key, credit, permission, address or model: the next request would fare the same
RETRIED = {408, 409, 425, 429}  # and every 5xx
CIRCUIT = 20  # so many failed requests in a row are the endpoint's failure, not theirs
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
SHOWN_CHARS = 300
SHORTEST_SECRET = 8  # a stand-in such as "none" is a word that a message may hold


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
    retryable: bool = False
    retry_after_s: float = 0.0


class ChatClient:
    """Asks an OpenAI-compatible endpoint, at most ``settings.concurrency`` requests at a time.

    Args:
        base_url: Where ``/chat/completions`` is found.
        api_key: Sent to the endpoint; never shown, written or logged.
        journal: What is answered already; new answers go there before they count.
        sleep: Waits between tries; a test passes its own.
        jitter: A number in [0, 1) that spreads the tries of many requests.
    """

    def __init__(
        self,
        settings: SynthesisSection,
        *,
        base_url: str,
        api_key: SecretStr,
        journal: Journal,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings, self._base_url, self._key, self._journal = settings, base_url, api_key, journal
        self._sleep, self._jitter = sleep, jitter
        loopback = urlsplit(base_url).hostname in {"127.0.0.1", "localhost", "::1"}  # no proxy leads there
        self._openai = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key.get_secret_value(),
            max_retries=0,
            timeout=settings.timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not loopback),
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._under_way: dict[str, asyncio.Task[Outcome]] = {}
        self._failed_in_a_row = 0
        self._stop_message = ""
        self._stopped = asyncio.Event()

    async def ask(self, requests: Sequence[Sequence[Message]]) -> list[Outcome]:
        """Ask all of ``requests`` and give their outcomes in the same order; identical ones are sent once.

        Raises:
            EndpointError: The endpoint is down or refuses. Requests under way are waited for, because
                their answers are paid for; all answers are in the journal.
        """
        shared = []
        for messages in requests:
            key = request_key(self._settings.model, messages, self._settings.temperature)
            reused = key in self._under_way
            if not reused:
                self._under_way[key] = asyncio.create_task(self._outcome(key, messages))
            shared.append((self._under_way[key], reused))
        ended = await asyncio.gather(*(task for task, _ in shared), return_exceptions=True)
        self._journal.flush()
        outcomes = []
        for outcome, (_, reused) in zip(ended, shared, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes.append(dataclasses.replace(outcome, reused=outcome.reused or reused))
        return outcomes

    async def close(self) -> None:
        await self._openai.close()

    async def _outcome(self, key: str, messages: Sequence[Message]) -> Outcome:
        try:
            known = self._journal.get(key)
            if known is not None:
                return Outcome(answer=known, reused=True)
            result = await self._persist(key, messages)
            return Outcome(answer=result) if isinstance(result, Answer) else self._given_up(result)
        finally:
            del self._under_way[key]

    async def _persist(self, key: str, messages: Sequence[Message]) -> Answer | _Failure:
        """Try until there is an answer, the tries are used up, or the endpoint is given up."""
        tried = 0
        while True:
            async with self._slots:
                self._check_not_stopped()
                result = await self._try(key, messages)
            if isinstance(result, Answer):
                self._failed_in_a_row = 0
                return result
            if not result.retryable or tried == self._settings.max_retries:
                return result
            await self._wait(tried, result)
            tried += 1

    async def _try(self, key: str, messages: Sequence[Message]) -> Answer | _Failure:
        """Send once. A new answer is in the journal before it is returned."""
        try:
            completion = await self._openai.chat.completions.create(
                model=self._settings.model,
                messages=list(messages),  # type: ignore[arg-type]
                temperature=self._settings.temperature,
            )
        except openai.APITimeoutError:
            return _Failure(text=f"no answer within {self._settings.timeout_s:g} s", status=408, retryable=True)
        except openai.APIConnectionError as error:
            return _Failure(text=self._shown(error.__cause__ or error), status=0, retryable=True)
        except openai.APIStatusError as error:
            retryable = error.status_code in RETRIED or error.status_code >= 500
            retry_after_s = _retry_after_s(error.response.headers.get("retry-after", ""))
            text = self._shown(error)
            return _Failure(text=text, status=error.status_code, retryable=retryable, retry_after_s=retry_after_s)
        except openai.APIError as error:
            return _Failure(text=self._shown(error), status=200)
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            return _Failure(text="the body is no chat completion", status=200)
        answer = self._answer(key, completion)
        self._journal.add(answer)
        return answer

    def _answer(self, key: str, completion: ChatCompletion) -> Answer:
        content, usage = completion.choices[0].message.content or "", completion.usage
        return Answer(
            key=key,
            model=completion.model or self._settings.model,
            content=content.encode("utf-8", "replace").decode(),  # a lone surrogate could not be written anywhere
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )

    def _given_up(self, failure: _Failure) -> Outcome:
        """A failed outcome, unless the failure is the endpoint's."""
        self._failed_in_a_row += 1
        if failure.status == 0:
            self._stop(f"cannot be reached: {failure.text}. Check synthesis.endpoint and that a server listens there.")
        elif failure.status in REFUSALS:
            self._stop(
                f"refuses with status {failure.status}: {failure.text}. Check synthesis.endpoint, synthesis.model "
                f"'{self._settings.model}' and the key in {self._settings.api_key_env}."
            )
        elif self._failed_in_a_row >= CIRCUIT:
            self._stop(f"failed {CIRCUIT} requests in a row, the last with status {failure.status}: {failure.text}.")
        return Outcome(answer=None, failure=f"status {failure.status}: {failure.text}")

    def _stop(self, problem: str) -> None:
        kept = f"{len(self._journal)} answers are kept in {self._journal.folder.uri}"
        self._stop_message = f"{self._base_url} {problem} {kept}; the same command goes on from there."
        self._stopped.set()
        self._check_not_stopped()

    def _check_not_stopped(self) -> None:
        if self._stopped.is_set():
            raise EndpointError(self._stop_message)

    async def _wait(self, tried: int, failure: _Failure) -> None:
        """Back off without holding a slot; wake at once when the endpoint is given up."""
        backoff_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tried)
        wait_s = failure.retry_after_s + backoff_s * (0.5 + self._jitter() / 2)
        waits = [asyncio.ensure_future(self._sleep(wait_s)), asyncio.ensure_future(self._stopped.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _shown(self, error: BaseException) -> str:
        """The endpoint's words for a message: short, and without the key if it quotes it."""
        text = " ".join((str(error) or type(error).__name__).split())
        key = self._key.get_secret_value()
        return (text.replace(key, "***") if len(key) >= SHORTEST_SECRET else text)[:SHOWN_CHARS]


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
