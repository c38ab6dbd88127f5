"""The limits of a synthesis job: concurrency, requests and tokens a minute, money, and endpoints that fail.

An answer's ``Retry-After`` header delays that request alone: :mod:`qzhou.synthesis.client`
waits for it.

:class:`RequestLimits` is pure state and arithmetic: the caller passes the time.
:class:`RateLimiter` makes coroutines wait for it. Three rules from the literature:

- Concurrency adapts to the endpoint by additive increase and multiplicative decrease (D. Chiu and R. Jain, Analysis of
  the increase and decrease algorithms for congestion avoidance, 1989).
- Requests and tokens a minute are token buckets.
- An endpoint that keeps failing gets no requests until one probe succeeds (circuit breaker; M. Nygard, Release It!).
"""

import asyncio
import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qzhou.config.synthesis import SynthesisSection
from qzhou.data.token_bucket import TokenBucket
from qzhou.errors import EndpointError

AttemptStatus = Literal["answered", "overloaded", "unreachable", "rejected", "refused"]

FAILURES_TO_OPEN = 20  # overloads in a row that open the circuit breaker
FAILED_CONNECTIONS = 5  # in a row, to an endpoint that never answered: a wrong address
FIRST_OPEN_S, LONGEST_OPEN_S = 5.0, 120.0  # how long the circuit stays open
# Requests that were in flight when the limit was halved fail too; they must not halve it again.
BETWEEN_CUTS_S = 1.0
BURST_S = 1.0  # seconds' worth of requests that may start at once


@dataclass(frozen=True, slots=True)
class Reservation:
    """A slot at one endpoint, with the estimated tokens and money of the request."""

    endpoint: str
    tokens: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one HTTP request ended.

    Attributes:
        status: ``answered``; ``overloaded`` (429, 5xx, no answer in time); ``unreachable``; ``rejected`` (this request
            is at fault); ``refused`` (key, credit, address or model: every request would
            fail).
        used_tokens: As the endpoint counted them.
        paid: Money for the answer.
        problem: What is wrong with the endpoint, for the message when it has failed for
            good.
        is_last_try: The request will not be sent again.
    """

    status: AttemptStatus
    used_tokens: float = 0.0
    paid: float = 0.0
    problem: str = ""
    is_last_try: bool = False


@dataclass(slots=True)
class EndpointState:
    """How much one endpoint can take, and whether it is healthy.

    Attributes:
        limit: Requests that may be in flight; the whole part counts.
        open_until: The circuit is open until then; afterwards one probe is sent.
        open_s: Seconds that the circuit was opened for the last time; 0 while it is closed.
        total_open_s: Seconds of all openings since the last answer.
        failed: Why the endpoint gets no requests any more; empty while it may get some.
    """

    limit: float
    in_flight: int = 0
    failures_in_a_row: int = 0
    answered: int = 0
    last_cut: float = -math.inf
    open_until: float = -math.inf
    open_s: float = 0.0
    total_open_s: float = 0.0
    probing: bool = False
    failed: str = ""

    @property
    def circuit_open(self) -> bool:
        """Whether the endpoint has to prove with a probe that it is healthy again."""
        return self.open_s > 0


class RequestLimits:
    """A job's limits over all its endpoints; ``spent`` is the money of earlier attempts."""

    def __init__(self, settings: SynthesisSection, *, spent: float = 0.0) -> None:
        self.settings, self.spent = settings, spent
        self.endpoints = {
            endpoint: EndpointState(limit=float(settings.concurrency))
            for model in settings.pool
            for endpoint in model.endpoints
        }
        self.expected_cost = 0.0  # of requests in flight
        self._requests = _bucket(settings.requests_per_minute)
        self._tokens = _bucket(settings.tokens_per_minute)

    @property
    def in_flight(self) -> int:
        """Requests in flight, of all endpoints."""
        return sum(state.in_flight for state in self.endpoints.values())

    def choose(self, endpoints: tuple[str, ...]) -> str | None:
        """The first healthy endpoint, or whose circuit closes first; None if all failed."""
        usable = [name for name in endpoints if not self.endpoints[name].failed]
        for name in usable:
            if not self.endpoints[name].circuit_open:
                return name
        return min(usable, key=lambda name: self.endpoints[name].open_until, default=None)

    def exceeds_budget(self, cost: float) -> bool:
        """Whether a request that may cost so much would exceed ``max_cost``."""
        max_cost = self.settings.max_cost
        return max_cost is not None and self.spent + self.expected_cost + cost > max_cost

    def start(self, now: float, reservation: Reservation) -> float:
        """0.0, and the slot is taken; or seconds to wait, infinite until a request ends."""
        state = self.endpoints[reservation.endpoint]
        if now < state.open_until:
            return state.open_until - now
        if state.circuit_open and state.probing:
            return math.inf
        has_answers = any(one.answered for one in self.endpoints.values())
        if self.settings.max_cost is not None and not has_answers and self.in_flight:
            return math.inf  # the first answer tells what the next ones may cost
        if state.in_flight >= max(1, int(state.limit)) or self.in_flight >= self.settings.concurrency:
            return math.inf
        wanted = [(self._requests, 1.0), (self._tokens, reservation.tokens)]
        limited = [(bucket, units) for bucket, units in wanted if bucket]
        wait_s = max((bucket.wait_s(now, units) for bucket, units in limited), default=0.0)
        if wait_s > 0:
            return wait_s
        for bucket, units in limited:
            bucket.take(units)
        state.in_flight += 1
        state.probing = state.circuit_open
        self.expected_cost += reservation.cost
        return 0.0

    def end(self, now: float, reservation: Reservation, attempt: Attempt) -> bool:
        """Give a slot back; True if the endpoint is to blame for the failure and gets no requests for now."""
        state = self.endpoints[reservation.endpoint]
        state.in_flight -= 1
        state.probing = False
        self.expected_cost = max(0.0, self.expected_cost - reservation.cost)
        self.spent += attempt.paid
        if self._tokens and attempt.status == "answered":
            # The estimate was taken before; an answer that used more leaves a debt.
            self._tokens.take(attempt.used_tokens - reservation.tokens)
        if attempt.status in {"answered", "rejected"}:
            state.answered += 1
            state.failures_in_a_row = 0
            state.open_s = state.total_open_s = 0.0
            state.open_until = -math.inf
            # One more after each full round of answers.
            state.limit = min(self.settings.concurrency, state.limit + 1 / state.limit)
        elif attempt.status == "refused":
            state.failed = state.failed or attempt.problem
        else:
            self._count_failure(now, state, attempt)
        return state.circuit_open or bool(state.failed)

    def _count_failure(self, now: float, state: EndpointState, attempt: Attempt) -> None:
        state.failures_in_a_row += 1
        if now - state.last_cut >= BETWEEN_CUTS_S:
            state.limit = max(1.0, state.limit / 2)
            state.last_cut = now
        never_reached = attempt.status == "unreachable" and not state.answered
        if never_reached and (attempt.is_last_try or state.failures_in_a_row >= FAILED_CONNECTIONS):
            # It is a wrong address, and waiting would not help.
            state.failed = state.failed or attempt.problem
            return
        must_open = state.circuit_open or state.failures_in_a_row >= FAILURES_TO_OPEN
        if must_open and now >= state.open_until:
            state.open_s = min(LONGEST_OPEN_S, state.open_s * 2 or FIRST_OPEN_S)
            state.open_until = now + state.open_s
            state.total_open_s += state.open_s
            if state.total_open_s > self.settings.give_up_after_s:
                state.failed = state.failed or attempt.problem


class RateLimiter:
    """Lets requests start in the order in which they came, as soon as the limits allow.

    ``clock`` gives seconds, monotonic.
    """

    def __init__(self, limits: RequestLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._queues: dict[tuple[str, ...], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changed = asyncio.Event()

    async def acquire(self, endpoints: tuple[str, ...], *, tokens: float, cost: float) -> Reservation:
        """Wait for a slot at one of some endpoints that offer the same model.

        Raises:
            EndpointError: All of them have failed, or ``max_cost`` is spent.
        """
        # asyncio.Lock is fair, so whoever waits for the same endpoints comes first.
        async with self._queues[endpoints]:
            while True:
                attempt = self._try_acquire(endpoints, tokens, cost)
                if isinstance(attempt, Reservation):
                    return attempt
                await self._wait_for_change(attempt)

    def release(self, reservation: Reservation, attempt: Attempt) -> bool:
        """Give a slot back; see :meth:`RequestLimits.end`."""
        endpoint_to_blame = self._limits.end(self._clock(), reservation, attempt)
        self._changed.set()
        self._changed = asyncio.Event()
        return endpoint_to_blame

    def _try_acquire(self, endpoints: tuple[str, ...], tokens: float, cost: float) -> Reservation | float:
        """The slot, or seconds to wait for one."""
        limits = self._limits
        endpoint = limits.choose(endpoints)
        if endpoint is None:
            problems = (f"{name} {limits.endpoints[name].failed}" for name in endpoints)
            raise EndpointError("; ".join(problems))
        if limits.exceeds_budget(cost):
            if limits.in_flight:
                return math.inf  # requests in flight may cost less than expected
            raise EndpointError(
                f"synthesis.max_cost ({limits.settings.max_cost:g}) is spent: {limits.spent:.4f} for what was "
                "answered. Raise it to go on, or ask for fewer rows."
            )
        reservation = Reservation(endpoint, tokens, cost)
        return limits.start(self._clock(), reservation) or reservation

    async def _wait_for_change(self, wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            timeout_s = None if wait_s == math.inf else wait_s
            await asyncio.wait_for(self._changed.wait(), timeout_s)


def _bucket(per_minute: float | None) -> TokenBucket | None:
    if per_minute is None:
        return None
    return TokenBucket(per_minute, capacity=max(1.0, per_minute * BURST_S / 60))
