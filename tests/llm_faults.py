"""The faults, limits and latency of the LLM server of the tests, and its counts. No HTTP in here."""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the endpoint behaves; the faults are shares of the requests, together at most 1.

    Attributes:
        latency_s: Median seconds until an answer.
        latency_spread: Standard deviation of the logarithm of the latency; 0: always the median.
        requests_per_minute: More than this in any minute are answered with 429 and ``Retry-After``; 0: no limit.
        concurrency: More than this at the same time are answered with 429; 0: no limit.
        structured: Whether ``response_format`` with a JSON schema is known; if not, it is answered with 400.
        rate_limited: 429 with ``Retry-After``.
        rate_limited_silently: 429 without.
        server_error: 500.
        unavailable: 503.
        reset: The connection is torn before an answer.
        hang: No answer at all.
        truncated: The body ends in the middle.
        malformed: A body that is no JSON.
        wrong_schema: JSON that is no chat completion.
        empty: A completion without content.
        babble: A completion whose content is not what was asked for.
        seed: Which request meets which fault follows from it.
    """

    latency_s: float = 0.0
    latency_spread: float = 0.0
    requests_per_minute: int = 0
    concurrency: int = 0
    structured: bool = True
    rate_limited: float = 0.0
    rate_limited_silently: float = 0.0
    server_error: float = 0.0
    unavailable: float = 0.0
    reset: float = 0.0
    hang: float = 0.0
    truncated: float = 0.0
    malformed: float = 0.0
    wrong_schema: float = 0.0
    empty: float = 0.0
    babble: float = 0.0
    seed: int = 0


FAULTS = (
    "rate_limited", "rate_limited_silently", "server_error", "unavailable", "reset", "hang", "truncated", "malformed",
    "wrong_schema", "empty", "babble",
)  # fmt: skip
FAULTLESS = Behaviour()


@dataclass(slots=True)
class Counts:
    """What the endpoint saw: ``completed`` counts whole completions by the hash of their request, ``arrivals`` and
    ``last_completed`` are seconds of a monotonic clock, ``served_s`` the sum of what completions took."""

    received: int = 0
    under_way: int = 0
    peak: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)
    arrivals: list[float] = field(default_factory=list)
    last_completed: float = 0.0
    served_s: float = 0.0

    def arrive(self) -> None:
        self.received += 1
        self.arrivals.append(time.monotonic())

    def complete(self, digest: str, *, served_s: float) -> None:
        self.completed[digest] += 1
        self.last_completed = time.monotonic()
        self.served_s += served_s

    def plain(self) -> dict[str, Any]:
        return {
            "received": self.received,
            "under_way": self.under_way,
            "peak": self.peak,
            "faults": dict(self.faults),
            "completed": sum(self.completed.values()),
            "distinct": len(self.completed),
            "twice": sum(count > 1 for count in self.completed.values()),
            "latency_s": round(self.served_s / sum(self.completed.values()), 6) if self.completed else 0.0,
            "seconds": round(self.last_completed - self.arrivals[0], 4) if self.completed else 0.0,
        }


class FaultInjector:
    """Decides what happens to each try of a request; the same tries always fare the same, but for the limits."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._tries: Counter[str] = Counter()
        self._recent: deque[float] = deque()

    def next_fault(self, digest: str) -> str:
        """The fault that the next try of a request meets, or an empty string."""
        place = random.Random(f"{self._behaviour.seed} fault {digest} {self._tries[digest]}").random()
        self._tries[digest] += 1
        for name in FAULTS:
            place -= getattr(self._behaviour, name)
            if place < 0:
                return name
        return ""

    def latency_s(self, digest: str) -> float:
        """Seconds that the present try of a request takes."""
        behaviour = self._behaviour
        if not behaviour.latency_spread:
            return behaviour.latency_s
        drawn = random.Random(f"{digest} {self._tries[digest]}").gauss(0, behaviour.latency_spread)
        return behaviour.latency_s * math.exp(drawn)

    def is_above_limits(self, under_way: int) -> bool:
        """Whether a request that has just come is one too many, itself among those under way."""
        if self._behaviour.concurrency and under_way > self._behaviour.concurrency:
            return True
        if not self._behaviour.requests_per_minute:
            return False
        now = time.monotonic()
        while self._recent and self._recent[0] < now - 60:
            self._recent.popleft()
        if len(self._recent) >= self._behaviour.requests_per_minute:
            return True
        self._recent.append(now)
        return False


def request_hash(body: Mapping[str, Any]) -> str:
    """What makes two requests the same: model, messages, temperature."""
    sent = {name: body[name] for name in ("model", "messages")} | {"temperature": body.get("temperature")}
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()
