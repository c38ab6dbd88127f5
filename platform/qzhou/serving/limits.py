"""How much a key may ask for in a minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qzhou.data.token_bucket import TokenBucket
from qzhou.serving.errors import RequestError
from qzhou.serving.keys import ApiKey

REMEMBERED = 10_000  # keys; those that rest are as good as new


@dataclass(slots=True)
class TokenCharge:
    """What a request has cost in the end."""

    tokens: int = 0


class TokenRate:
    """A token bucket for each key: full at first, filled evenly, at most a minute's worth.

    What a request costs is known when its texts have become tokens. So a request is let in
    while anything is left; a guess of its cost is held back while it is worked on, so that
    many at the same time do not all pass; and in the end the cost itself is taken off,
    below zero if need be: a large request is paid for by waiting longer.

    Args:
        tokens_per_minute: Of each key that has no limit of its own; None asks for nothing.
        clock: Seconds.

    Attributes:
        replicas: That share the requests. What one of them answers stands for as much at each other one.
    """

    def __init__(self, tokens_per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._default, self._clock = tokens_per_minute, clock
        self._buckets: dict[tuple[str, int], TokenBucket] = {}
        self.replicas = 1

    def admit(self, key: ApiKey) -> None:
        """Let a request in.

        Raises:
            RequestError: 429 with ``Retry-After``; the key has used up its tokens.
        """
        limit = self._limit(key)
        bucket = None if limit is None else self._buckets.get((key.name, limit))
        if bucket is not None and bucket.level_at(self._clock()) <= 0:
            shared = f", shared by {self.replicas} replicas" if self.replicas > 1 else ""
            problem = f"Rate limit reached: {limit:,} tokens per minute{shared}."
            wait_s = bucket.wait_s(self._clock(), 1.0)
            raise RequestError(problem, status=429, code="rate_limit_exceeded", retry_after_s=wait_s)

    @contextmanager
    def reserve_tokens(self, key: ApiKey, guess: int) -> Iterator[TokenCharge]:
        """Hold a guess back for the block, then take off what stands in the bill: nothing, unless the block says so.

        Raises:
            RequestError: 429; others have used up the key's tokens since it was let in.
        """
        self.admit(key)
        self._take(key, guess)
        bill = TokenCharge()
        try:
            yield bill
        finally:
            self._take(key, bill.tokens * self.replicas - guess)

    def charge(self, key: ApiKey, tokens: int) -> None:
        """Take off what a request costs."""
        self._take(key, tokens * self.replicas)

    def _take(self, key: ApiKey, tokens: int) -> None:
        limit = self._limit(key)
        if limit is None:
            return
        now = self._clock()
        bucket = self._buckets.setdefault((key.name, limit), TokenBucket(limit, capacity=limit))
        bucket.level_at(now)
        bucket.take(tokens)
        if len(self._buckets) > REMEMBERED:
            self._buckets = {one: kept for one, kept in self._buckets.items() if kept.level_at(now) < kept.capacity}

    def _limit(self, key: ApiKey) -> int | None:
        return self._default if key.tokens_per_minute is None else key.tokens_per_minute
