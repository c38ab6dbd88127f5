"""Texts of many requests at the same time through one model.

One thread makes tokens, one has the model, and the event loop stands between them; while a
batch is computed the next texts become tokens. Texts wait for nobody: whatever is there
when the model is free goes together (``queue.py``). The same text asked for twice at the
same time is computed once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qzhou.errors import QzhouError
from qzhou.serving.cache import Text, VectorCache, key_of
from qzhou.serving.errors import RequestError
from qzhou.serving.outputs import Vectors
from qzhou.serving.queue import TextQueue
from qzhou.telemetry.memory import release_freed_memory

TOKENIZED_AT_ONCE = 512  # texts; a large request does not keep small ones waiting
CHARS_AT_ONCE = 2**18  # of them; one text may have more
FAILED_IN_A_ROW = 3  # batches, after which the model counts as broken
CHARS_PER_TOKEN = 4  # a guess, for what is not tokenized yet
MOVING = 0.1  # weight of the last batch in the measured speed


class BatchEncoder(Protocol):
    """What the engine needs of an encoder; :class:`qzhou.encoder.Encoder` is one."""

    batch_tokens: int

    def tokenize(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each text, special tokens included, and whether it was truncated."""
        ...

    def with_special_tokens(self, ids: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[bool]]:
        """The same for texts that come as token ids without special tokens."""
        ...

    def vectors(self, ids: list[list[int]]) -> Vectors:
        """Unit vectors [N, D] of N texts given as token ids."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """Unit vectors [N, D] of N texts, the tokens that each cost, and which were cut to the model's limit."""

    vectors: Vectors
    token_counts: list[int]
    truncated: list[bool]


@dataclass(eq=False, slots=True)
class _Job:
    """One request's texts; ``cost`` is in tokens, ``due`` in those computed by then.

    ``limit`` is the model's, in tokens, where a text above it is refused, and None where it is
    cut. ``tokenized`` counts its texts that are tokens by now, and ``tokens`` theirs; ``began``
    is how many had been computed when the first of them were.
    """

    done: asyncio.Future[None]
    cost: int
    due: int
    vectors: list[Vectors | None]
    token_counts: list[int]
    truncated: list[bool]
    missing: int
    limit: int | None = None
    tokens: int = 0
    tokenized: int = 0
    began: int | None = None
    items: list[_Item] = field(default_factory=list)

    @property
    def tokens_left(self) -> int:
        return self.cost * self.missing // len(self.vectors)

    def refuse_cut(self, row: int) -> None:
        """Refuse the request because of a text that the model would not read to its end, unless that is welcome."""
        if self.limit is not None and not self.done.done():
            problem = f"Text {row} has more than the model's {self.limit} tokens."
            self.done.set_exception(RequestError(problem, code="context_length_exceeded", row=row))

    def take(self, row: int, vector: Vectors, tokens: int, truncated: bool) -> None:
        self.vectors[row], self.token_counts[row], self.truncated[row] = vector, tokens, truncated
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)


@dataclass(eq=False, slots=True)
class _Item:
    """One text that is on its way, and who waits for it; nobody, once all have left."""

    key: bytes
    text: Text
    waiting: list[tuple[_Job, int]]
    ids: list[int] = field(default_factory=list)
    truncated: bool = False


@dataclass(eq=False, slots=True)
class _Untokenized:
    """The texts of a request that are no tokens yet, and their characters."""

    job: _Job
    items: list[_Item]
    chars: int

    def forget(self) -> None:
        """Leave out what nobody waits for any more."""
        self.items = [item for item in self.items if item.waiting]

    def take(self, texts: int, chars: int) -> list[_Item]:
        """The first of them, up to so many texts and characters; at least one."""
        ends = itertools.accumulate(len(item.text) for item in self.items[:texts])
        count = max(1, sum(end <= chars for end in ends))
        taken, self.items = self.items[:count], self.items[count:]
        self.chars -= sum(len(item.text) for item in taken)
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Limits of an engine.

    Attributes:
        batch_tokens: Padded tokens of a batch; default: what suits the encoder's device.
        passes: Batches that go through the model at once, each in a thread of its own.
        max_wait_s: A request that would be answered later than this is refused at once.
        max_waiting_tokens: Tokens of all waiting requests together; bounds memory.
        max_request_tokens: Tokens of one request.
        cache_bytes: Memory for the vectors of earlier texts.
        trim_every_s: Seconds between two calls that return free memory to the system; each takes milliseconds.
    """

    batch_tokens: int | None = None
    passes: int = 1
    max_wait_s: float = 10.0
    max_waiting_tokens: int = 2**22
    max_request_tokens: int = 2**20
    cache_bytes: int = 0
    trim_every_s: float = 5.0


DEFAULTS = EngineOptions()


class Engine:
    """Batches the texts of requests that arrive at the same time. Lives in one event loop.

    ``trim`` returns free memory to the system.
    """

    def __init__(
        self,
        encoder: BatchEncoder,
        options: EngineOptions = DEFAULTS,
        trim: Callable[[], None] = release_freed_memory,
    ) -> None:
        self.encoder = encoder
        self._options = options
        self._trim = trim
        self._queue: TextQueue[_Item] = TextQueue(options.batch_tokens or encoder.batch_tokens)
        self._cache = VectorCache(options.cache_bytes)
        self._in_flight: dict[bytes, _Item] = {}
        self._jobs: set[_Job] = set()
        self._untokenized: list[_Untokenized] = []
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._model = ThreadPoolExecutor(options.passes, thread_name_prefix="model")
        self._passes = self._idle_passes = options.passes
        self._to_tokenize, self._to_encode = asyncio.Event(), asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._trimmed_at = time.monotonic()
        self._failed_in_a_row = 0
        self.tokens_per_s = 0.0
        self.batches = self.computed = self.padded = self.reused = 0

    @property
    def waiting_tokens(self) -> int:
        """About so many are asked for and not computed yet."""
        return sum(job.tokens_left for job in self._jobs)

    def expected_wait_s(self, tokens: int) -> float:
        """How long a request of so many tokens would wait for those due before it."""
        if not self.tokens_per_s:
            return 0.0
        due = self._queue.computed + tokens
        return sum(job.tokens_left for job in self._jobs if job.due <= due) / self.tokens_per_s

    @property
    def broken(self) -> str:
        """Why no further request can be answered; empty while the model works."""
        if any(loop.done() for loop in self._loops):
            return "a loop of the engine has ended"
        if self._failed_in_a_row >= FAILED_IN_A_ROW * self._passes:  # which one incident may fail together
            return f"the model failed in the last {self._failed_in_a_row} batches"
        return ""

    async def encode(self, texts: Sequence[Text], limit: int | None = None) -> Encoded:
        """Vectors in the order of the texts, which are at least one and carry their prompt.

        Args:
            texts: At least one.
            limit: The model's, in tokens: a text above it is refused as soon as it is tokens. None: it is cut.

        Raises:
            RequestError: 429; it would take too long. The error says when to come back. 400; a text is too long.
        """
        cost = sum(len(text) // CHARS_PER_TOKEN + 2 if isinstance(text, str) else len(text) for text in texts)
        self._admit(cost)
        count = len(texts)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due = self._queue.computed + cost
        job = _Job(done, cost, due, [None] * count, [0] * count, [False] * count, count, limit)
        self._distribute(job, texts)
        self._jobs.add(job)
        try:
            if job.missing or done.done():
                await done
        finally:
            self._jobs.discard(job)
            if job.missing:
                self._forget(job)
        vectors = np.stack([one for one in job.vectors if one is not None])
        return Encoded(vectors, job.token_counts, job.truncated)

    async def warm_up(self) -> None:
        """Compute a full batch twice, so that the first client does not wait for what is set up once."""
        words = ["warm up the model with words " * 4] * max(1, self._queue.budget // 32)
        ids, _ = self.encoder.tokenize(words)
        for _ in range(2):
            await asyncio.gather(*(self._compute(ids) for _ in range(self._passes)))

    def close(self) -> None:
        """End the threads; nothing can be encoded afterwards."""
        for loop in self._loops:
            loop.cancel()
        for thread in (self._tokenizer, self._model):
            thread.shutdown(wait=False, cancel_futures=True)

    def _admit(self, cost: int) -> None:
        wait_s = self.expected_wait_s(cost)
        options = self._options
        too_much = self.waiting_tokens + cost > options.max_waiting_tokens
        if wait_s > options.max_wait_s or (self._jobs and too_much):
            problem = f"The model is busy: this would take about {wait_s:.0f} s. Try again later."
            retry_after_s = max(1.0, min(wait_s - options.max_wait_s / 2, 60.0))
            raise RequestError(problem, status=429, code="overloaded", retry_after_s=retry_after_s)

    def _distribute(self, job: _Job, texts: Sequence[Text]) -> None:
        """Give each text its cached vector, join it to one on its way, or send it."""
        fresh = []
        for row, text in enumerate(texts):
            key = key_of(text)
            if kept := self._cache.get(key):
                self.reused += 1
                if kept[2]:
                    job.refuse_cut(row)
                job.take(row, *kept)
                continue
            item = self._in_flight.get(key)
            if item is None:
                item = self._in_flight[key] = _Item(key, text, [])
                fresh.append(item)
            else:
                self.reused += 1
                if item.truncated:
                    job.refuse_cut(row)
            item.waiting.append((job, row))
            job.items.append(item)
        if fresh:
            self._untokenized.append(_Untokenized(job, fresh, sum(len(item.text) for item in fresh)))
            self._to_tokenize.set()
            self._start()

    def _forget(self, job: _Job) -> None:
        """A client has left: what nobody else waits for is not computed."""
        for item in job.items:
            item.waiting = [one for one in item.waiting if one[0] is not job]
            if not item.waiting and self._in_flight.get(item.key) is item:
                del self._in_flight[item.key]

    def _start(self) -> None:
        if not self._loops:
            work = [self._tokenize_all(), *(self._encode_all() for _ in range(self._passes))]
            self._loops = [*map(asyncio.create_task, work)]

    async def _tokenize_all(self) -> None:
        while True:
            await self._to_tokenize.wait()
            self._to_tokenize.clear()
            while self._untokenized:
                groups = self._next_groups()
                items = [item for _, group in groups for item in group]
                try:
                    await self._tokenize(items)
                except Exception as error:  # noqa: BLE001 - a text that a tokenizer refuses must not stop the others
                    self._fail(items, error)
                    continue
                for job, group in groups:
                    self._enqueue(job, group)
                self._to_encode.set()

    def _enqueue(self, job: _Job, group: Sequence[_Item]) -> None:
        """Let texts of a request wait for the model, now that their tokens are known."""
        tokens = sum(len(item.ids) for item in group)
        job.tokens, job.tokenized = job.tokens + tokens, job.tokenized + len(group)
        limit = self._options.max_request_tokens
        if job.tokens > limit and not job.done.done():
            job.done.set_exception(_too_many(job.tokens, limit))
        for item in group:
            if item.truncated:
                for other, row in item.waiting:
                    other.refuse_cut(row)
        job.cost = job.tokens * len(job.vectors) // job.tokenized  # no longer a guess
        waiting = [(item, len(item.ids)) for item in group if item.waiting]
        # a part of a large request is due with the whole of it
        left = sum(len(one.items) for one in self._untokenized if one.job is job)
        whole = job.tokens * (job.tokenized + left) // job.tokenized
        job.began = self._queue.computed if job.began is None else job.began
        job.due = self._queue.add(waiting, size=max(0, job.began + whole - self._queue.computed))

    def _next_groups(self) -> list[tuple[_Job, list[_Item]]]:
        """Some texts that have no tokens yet, of small requests first; a part of a large one."""
        self._untokenized.sort(key=lambda one: one.chars)
        taken: list[tuple[_Job, list[_Item]]] = []
        texts = chars = 0
        while self._untokenized and texts < TOKENIZED_AT_ONCE and chars < CHARS_AT_ONCE:
            first = self._untokenized[0]
            first.forget()
            if not first.items:
                self._untokenized.pop(0)
                continue
            group = first.take(TOKENIZED_AT_ONCE - texts, CHARS_AT_ONCE - chars)
            taken.append((first.job, group))
            texts, chars = texts + len(group), chars + sum(len(item.text) for item in group)
            if not first.items:
                self._untokenized.pop(0)
        return taken

    async def _tokenize(self, items: Sequence[_Item]) -> None:
        loop = asyncio.get_running_loop()
        words = [item for item in items if isinstance(item.text, str)]
        numbers = [item for item in items if not isinstance(item.text, str)]
        for some, work in ((words, self.encoder.tokenize), (numbers, self.encoder.with_special_tokens)):
            if some:
                texts: list[Any] = [item.text for item in some]
                ids, truncated = await loop.run_in_executor(self._tokenizer, work, texts)
                for item, tokens, cut in zip(some, ids, truncated, strict=True):
                    item.ids, item.truncated = tokens, cut

    async def _encode_all(self) -> None:
        while True:
            await self._to_encode.wait()
            self._to_encode.clear()
            while batch := self._queue.take(self._idle_passes):
                batch = [item for item in batch if item.waiting]
                if not batch:
                    continue
                try:
                    vectors_ND = await self._compute([item.ids for item in batch])
                except Exception as error:  # noqa: BLE001 - out of memory, say; the next batch may be smaller
                    # an error of ours is of these texts: one that does not fit into memory, say
                    self._failed_in_a_row += not isinstance(error, QzhouError)
                    self._fail(batch, error)
                    continue
                finite = [bool(np.isfinite(vector).all()) for vector in vectors_ND]
                self._failed_in_a_row = 0 if any(finite) else self._failed_in_a_row + 1
                bad = [item for item, good in zip(batch, finite, strict=True) if not good]
                problem = "The model gave no numbers for this text."
                self._fail(bad, RequestError(problem, status=500, code="not_finite"))
                for item, vector, good in zip(batch, vectors_ND, finite, strict=True):
                    if good:
                        self._deliver(item, vector)

    async def _compute(self, ids: list[list[int]]) -> Vectors:
        started = time.perf_counter()
        self._idle_passes -= 1
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._model, self._pass, ids)
        finally:
            self._idle_passes += 1
        tokens, seconds = sum(map(len, ids)), time.perf_counter() - started
        speed = self._passes * tokens / seconds
        self.tokens_per_s += MOVING * (speed - self.tokens_per_s) if self.tokens_per_s else speed
        self.batches += 1
        self.computed += tokens
        self.padded += len(ids) * max(map(len, ids)) - tokens
        return found

    def _pass(self, ids: list[list[int]]) -> Vectors:
        """One forward pass, in a thread of the model's."""
        found = self.encoder.vectors(ids)
        if time.monotonic() - self._trimmed_at > self._options.trim_every_s:
            self._trimmed_at = time.monotonic()
            self._trim()
        return found

    def _deliver(self, item: _Item, vector: Vectors) -> None:
        if self._in_flight.get(item.key) is item:
            del self._in_flight[item.key]
        self._cache.put(item.key, vector.copy(), len(item.ids), item.truncated)
        for job, row in item.waiting:
            job.take(row, vector, len(item.ids), item.truncated)

    def _fail(self, items: Sequence[_Item], error: Exception) -> None:
        for item in items:
            self._in_flight.pop(item.key, None)
            for job, _ in item.waiting:
                if not job.done.done():
                    job.done.set_exception(error)


def _too_many(tokens: int, limit: int) -> RequestError:
    problem = f"The request holds {tokens:,} tokens, and a request may hold {limit:,}; send several."
    return RequestError(problem, code="too_many_tokens")
