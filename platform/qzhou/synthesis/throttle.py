"""When the next request may start: one limit for the whole job, whatever number of actors send.

Pure state and arithmetic; the clock is an argument. Concurrency adapts to what an endpoint can take (additive increase,
multiplicative decrease: D. Chiu and R. Jain, Analysis of the increase and decrease algorithms for congestion
avoidance, 1989), requests and tokens a minute are token buckets, and an endpoint that keeps failing is left alone until
a single probe comes through (the circuit breaker of M. Nygard, Release It!).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Result = Literal["answered", "overloaded", "unreachable", "rejected", "refused"]

FAILURES = 20  # so many overloads in a row open the breaker
UNREACHED = 5  # so many failed connections to an endpoint that never answered are a wrong address
FIRST_REST_S, LONGEST_REST_S = 5.0, 120.0  # how long an endpoint is left alone
CUT_PAUSE_S = 1.0  # requests under way at a cut will fail too; they are no reason for another one
BURST_S = 1.0  # what a bucket saves up


@dataclass(slots=True)
class Bucket:
    """At most so many units a minute, spread evenly."""

    per_minute: float
    level: float = field(init=False)
    seen: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        self.level = self._capacity

    @property
    def _capacity(self) -> float:
        return max(1.0, self.per_minute * BURST_S / 60)

    def wait_s(self, now: float, units: float) -> float:
        """Seconds until ``units`` may be taken; more than the bucket holds may be taken when it is full."""
        if self.seen > -math.inf:
            self.level = min(self._capacity, self.level + (now - self.seen) * self.per_minute / 60)
        self.seen = now
        missing = min(units, self._capacity) - self.level
        return max(0.0, missing * 60 / self.per_minute) if missing > 1e-9 else 0.0

    def take(self, units: float) -> None:
        """Taking more than estimated leaves a debt."""
        self.level -= units


@dataclass(slots=True)
class Lane:
    """One endpoint: how much it takes, and whether it is well.

    Attributes:
        limit: Requests that may be under way; a fraction of one counts when it is whole.
        open_until: The breaker: nothing is sent before this time, then a single probe.
        gave_up: Why nothing is sent to it any more.
    """

    limit: float
    under_way: int = 0
    failed_in_a_row: int = 0
    answered: int = 0
    last_cut: float = -math.inf
    open_until: float = -math.inf
    rest_s: float = 0.0
    rested_s: float = 0.0
    probing: bool = False
    gave_up: str = ""

    @property
    def is_open(self) -> bool:
        return self.rest_s > 0


class Throttle:
    """Limits of a job.

    Args:
        lanes: Endpoints, by their URLs.
        concurrency: Requests under way, all endpoints together.
        requests_per_minute: Of all endpoints together; None: as many as go.
        tokens_per_minute: Prompt and answer; estimated when a request starts, corrected when it ends.
        max_cost: Nothing is sent once so much is spent; what is under way is waited for.
        spent: What earlier attempts had spent.
        give_up_after_s: An endpoint that rests for so long, all together and without an answer, is given up.
    """

    def __init__(
        self,
        lanes: tuple[str, ...],
        *,
        concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_cost: float | None = None,
        spent: float = 0.0,
        give_up_after_s: float = 300.0,
    ) -> None:
        self.concurrency, self.max_cost, self.spent, self.give_up_after_s = (
            concurrency,
            max_cost,
            spent,
            give_up_after_s,
        )
        self.lanes = {name: Lane(limit=float(concurrency)) for name in dict.fromkeys(lanes)}
        self.expected_cost = 0.0  # of what is under way
        self._buckets = [
            None if per_minute is None else Bucket(per_minute)
            for per_minute in (requests_per_minute, tokens_per_minute)
        ]

    @property
    def under_way(self) -> int:
        return sum(lane.under_way for lane in self.lanes.values())

    def choose(self, lanes: tuple[str, ...]) -> str | None:
        """The first of some endpoints that is well, else the one that rests shortest; None: none is left."""
        usable = [name for name in lanes if not self.lanes[name].gave_up]
        well = [name for name in usable if not self.lanes[name].is_open]
        resting = min(usable, key=lambda name: self.lanes[name].open_until, default=None)
        return well[0] if well else resting

    def is_spent(self, cost: float) -> bool:
        """Whether a request that may cost so much would exceed ``max_cost``."""
        return self.max_cost is not None and self.spent + self.expected_cost + cost > self.max_cost

    def start(self, now: float, lane: str, *, tokens: float = 0.0, cost: float = 0.0) -> float:
        """0.0, and the slot is taken; or seconds to wait, infinite until a request ends."""
        one = self.lanes[lane]
        if now < one.open_until:
            return one.open_until - now
        if one.is_open and one.probing:
            return math.inf
        if one.under_way >= max(1, int(one.limit)) or self.under_way >= self.concurrency:
            return math.inf
        wait_s = 0.0
        units = (1.0, tokens)
        for bucket, amount in zip(self._buckets, units, strict=True):
            wait_s = max(wait_s, bucket.wait_s(now, amount) if bucket else 0.0)
        if wait_s > 0:
            return wait_s
        for bucket, amount in zip(self._buckets, units, strict=True):
            if bucket:
                bucket.take(amount)
        one.under_way += 1
        one.probing = one.is_open
        self.expected_cost += cost
        return 0.0

    def end(
        self,
        now: float,
        lane: str,
        result: Result,
        *,
        tokens: float = 0.0,
        used_tokens: float = 0.0,
        cost: float = 0.0,
        paid: float = 0.0,
        problem: str = "",
        is_last_try: bool = False,
    ) -> bool:
        """Give a slot back.

        Args:
            now: Seconds.
            lane: Where the request went.
            result: ``answered``; ``overloaded`` (429, 5xx, no answer in time); ``unreachable``; ``rejected`` (this
                request is at fault); ``refused`` (key, credit, address or model: all requests would fare the same).
            tokens: As they were estimated for :meth:`start`.
            used_tokens: As the endpoint counted them.
            cost: As it was estimated for :meth:`start`.
            paid: What the answer cost.
            problem: What the endpoint said, for the message when it is given up.
            is_last_try: The request will not be sent again; an endpoint that never answered is given up then.

        Returns: Whether the failure is the endpoint's, which is left alone now; the request is not to blame.
        """
        one = self.lanes[lane]
        one.under_way -= 1
        one.probing = False
        self.expected_cost = max(0.0, self.expected_cost - cost)
        self.spent += paid
        if self._buckets[1] and result == "answered":
            self._buckets[1].take(used_tokens - tokens)
        if result in {"answered", "rejected"}:
            one.answered += 1
            one.failed_in_a_row, one.rest_s, one.rested_s, one.open_until = 0, 0.0, 0.0, -math.inf
            one.limit = min(self.concurrency, one.limit + 1 / one.limit)
        elif result == "refused":
            one.gave_up = one.gave_up or problem
        else:
            self._failed(now, one, result, problem, is_last_try)
        return one.is_open or bool(one.gave_up)

    def _failed(
        self, now: float, one: Lane, result: Result, problem: str, is_last_try: bool
    ) -> None:
        one.failed_in_a_row += 1
        if now - one.last_cut >= CUT_PAUSE_S:
            one.limit, one.last_cut = max(1.0, one.limit / 2), now
        if (
            result == "unreachable"
            and not one.answered
            and (is_last_try or one.failed_in_a_row >= UNREACHED)
        ):
            one.gave_up = one.gave_up or problem
        elif (one.is_open or one.failed_in_a_row >= FAILURES) and now >= one.open_until:
            one.rest_s = min(LONGEST_REST_S, one.rest_s * 2 or FIRST_REST_S)
            one.open_until = now + one.rest_s
            one.rested_s += one.rest_s
            if one.rested_s > self.give_up_after_s:
                one.gave_up = one.gave_up or problem
