"""How much a key may ask for in a minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qzhou.data.token_bucket import TokenBucket
from qzhou.serving.errors import RequestError

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
        tokens_per_minute: Of each key; None asks for nothing.
        clock: Seconds.
    """

    def __init__(self, tokens_per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = tokens_per_minute, clock
        self._buckets: dict[str, TokenBucket] = {}

    def admit(self, key: str) -> None:
        """Let a request in.

        Raises:
            RequestError: 429 with ``Retry-After``; the key has used up its tokens.
        """
        bucket = self._buckets.get(key)
        if bucket is not None and bucket.level_at(self._clock()) <= 0:
            problem = f"Rate limit reached: {self._limit:,} tokens per minute."
            wait_s = bucket.wait_s(self._clock(), 1.0)
            raise RequestError(problem, status=429, code="rate_limit_exceeded", retry_after_s=wait_s)

    @contextmanager
    def reserve_tokens(self, key: str, guess: int) -> Iterator[TokenCharge]:
        """Hold a guess back for the block, then take off what stands in the bill: nothing, unless the block says so.

        Raises:
            RequestError: 429; others have used up the key's tokens since it was let in.
        """
        self.admit(key)
        self.charge(key, guess)
        bill = TokenCharge()
        try:
            yield bill
        finally:
            self.charge(key, bill.tokens - guess)

    def charge(self, key: str, tokens: int) -> None:
        """Take off what a request costs; give back what it did not."""
        if self._limit is None:
            return
        now = self._clock()
        bucket = self._buckets.setdefault(key, TokenBucket(self._limit, capacity=self._limit))
        bucket.level_at(now)
        bucket.take(tokens)
        if len(self._buckets) > REMEMBERED:
            self._buckets = {one: kept for one, kept in self._buckets.items() if kept.level_at(now) < self._limit}
