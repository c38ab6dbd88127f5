import asyncio
import ctypes
import threading
import time
from typing import ClassVar

import numpy as np
import psutil
import pytest

from qzhou.serving.cache import VectorCache, key_of
from qzhou.serving.engine import CHARS_AT_ONCE, TOKENIZED_AT_ONCE, Engine, EngineOptions
from qzhou.serving.errors import RequestError
from qzhou.telemetry.memory import release_freed_memory


class WordEncoder:
    """A token is a word; a vector says how many, and a text with 'nan' has none."""

    batch_tokens, dimensions = 64, 4

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[list[int]]] = []
        self.free = threading.Event()
        self.free.set()

    def tokenize(self, texts):
        if any("unspeakable" in text for text in texts):
            raise ValueError("no such word")
        return [[hash(word) for word in text.split()] for text in texts], ["cut" in text for text in texts]

    def with_special_tokens(self, ids):
        return [[0, *one] for one in ids], [False] * len(ids)

    def vectors(self, ids):
        self.entered = True
        self.free.wait()
        time.sleep(self.seconds)
        self.batches.append(ids)
        found = np.array([[len(one), one[0] % 97, 1, 0] for one in ids], dtype=np.float32)
        found[[hash("nan") in one for one in ids]] = np.nan
        return found

    @property
    def computed(self) -> int:
        return sum(map(len, self.batches))


async def until(condition) -> None:
    async with asyncio.timeout(300):  # reached only in failure
        while not condition():
            await asyncio.sleep(0.002)


def test_vectors_come_in_the_order_of_the_texts_with_their_tokens():
    async def ask():
        engine = Engine(WordEncoder())
        return await engine.encode(["three words here", "one", "two words cut"])

    found = asyncio.run(ask())

    assert found.token_counts == [3, 1, 3]
    assert found.vectors[:, 0].tolist() == [3, 1, 3]
    assert found.truncated == [False, False, True]


def test_token_ids_and_texts_go_through_the_same_model():
    async def ask():
        return await Engine(WordEncoder()).encode([(5, 6), (7,)])

    assert asyncio.run(ask()).token_counts == [3, 2]


def test_many_requests_at_the_same_time_share_batches():
    async def ask():
        encoder = WordEncoder()
        engine = Engine(encoder)
        found = await asyncio.gather(*(engine.encode([f"text {n}"]) for n in range(100)))
        return encoder, found

    encoder, found = asyncio.run(ask())

    assert [one.vectors[0, 0] for one in found] == [2] * 100
    assert len(encoder.batches) < 20
    assert all(len(batch) * max(map(len, batch)) <= 64 for batch in encoder.batches)


def test_two_passes_share_a_request_and_run_at_the_same_time():
    class Together(WordEncoder):
        both = threading.Barrier(2)

        def vectors(self, ids):
            self.both.wait(60)  # one pass alone would end here with an error
            return super().vectors(ids)

    async def ask():
        encoder = Together()
        found = await Engine(encoder, EngineOptions(passes=2)).encode([f"text {n}" for n in range(20)])
        return encoder.batches, found

    batches, found = asyncio.run(ask())

    assert [len(batch) for batch in batches] == [10, 10]
    assert found.vectors[:, 0].tolist() == [2] * 20


def test_memory_is_given_back_now_and_then():
    given = []

    async def ask(**options):
        engine = Engine(WordEncoder(), EngineOptions(**options), lambda: given.append(1))
        for n in range(20):
            await engine.encode([f"text {n}"])

    asyncio.run(ask(trim_every_s=3600))
    assert not given, "not after every batch"
    asyncio.run(ask(trim_every_s=-1))
    assert given


def test_freed_memory_leaves_the_process():
    """Blocks of the C library's heap, small enough that it keeps them, with one in use at their end."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("the C library is not glibc")
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(64_000) for _ in range(3000)]
    for block in blocks:
        ctypes.memset(block, 1, 64_000)
    for block in blocks[:-1]:
        libc.free(block)
    before = psutil.Process().memory_info().rss

    release_freed_memory()

    assert before - psutil.Process().memory_info().rss > 100_000_000
    libc.free(blocks[-1])


def test_the_same_text_at_the_same_time_is_computed_once():
    async def ask():
        encoder = WordEncoder()
        engine = Engine(encoder)
        await asyncio.gather(*(engine.encode(["same", "same", f"other {n}"]) for n in range(5)))
        return encoder.computed

    assert asyncio.run(ask()) == 6


def test_a_text_that_is_asked_for_again_comes_from_the_cache():
    async def ask():
        encoder = WordEncoder()
        engine = Engine(encoder, EngineOptions(cache_bytes=10_000))
        first = await engine.encode(["a text", "cut"])
        second = await engine.encode(["cut", "a text"])
        return encoder.computed, first, second

    computed, first, second = asyncio.run(ask())

    assert computed == 2
    np.testing.assert_array_equal(first.vectors[::-1], second.vectors)
    assert second.token_counts == [1, 2]
    assert second.truncated == [True, False]


def test_the_cache_stays_within_its_bytes_and_forgets_the_longest_unused():
    cache = VectorCache(3 * (16 + 300))
    vector = np.zeros(4, dtype=np.float32)
    for name in "abc":
        cache.put(key_of(name), vector, 1, False)
    cache.get(key_of("a"))
    cache.put(key_of("d"), vector, 1, False)

    assert [cache.get(key_of(name)) is not None for name in "abcd"] == [True, False, True, True]
    assert key_of("1") != key_of((1,))


def test_a_small_request_does_not_wait_for_a_large_one():
    async def ask():
        encoder = WordEncoder(seconds=0.002)
        engine = Engine(encoder)
        large = asyncio.create_task(engine.encode([f"text number {n}" for n in range(2000)]))
        await until(lambda: len(encoder.batches) > 3)
        await engine.encode(["small"])
        behind = not large.done()
        large.cancel()
        return behind

    assert asyncio.run(ask())


def test_what_would_take_too_long_is_refused_at_once_with_a_time_to_come_back():
    async def ask():
        encoder = WordEncoder(seconds=0.02)
        engine = Engine(encoder, EngineOptions(max_wait_s=0.2))
        await engine.encode(["warm up"])
        work = [asyncio.create_task(engine.encode([f"{n} {m} " * 8 for m in range(16)])) for n in range(40)]
        results = await asyncio.gather(*work, return_exceptions=True)
        after = await engine.encode(["again"])
        return results, after

    results, after = asyncio.run(ask())

    refused = [one for one in results if isinstance(one, RequestError)]
    assert 0 < len(refused) < 40
    assert {(one.status, one.code) for one in refused} == {(429, "overloaded")}
    assert all(int(one.headers()["Retry-After"]) >= 1 for one in refused)
    assert after.token_counts == [1]


def test_what_a_client_that_left_had_asked_for_is_not_computed():
    async def ask():
        encoder = WordEncoder()
        engine = Engine(encoder)
        await engine.encode(["first"])
        encoder.free.clear()
        encoder.entered = False
        stays = asyncio.create_task(engine.encode(["blocks the model"]))
        await until(lambda: encoder.entered)
        leaves = asyncio.create_task(engine.encode([f"unwanted {n}" for n in range(50)]))
        shared = asyncio.create_task(engine.encode(["unwanted 7"]))
        await until(lambda: len(engine._queue) > 0)
        leaves.cancel()
        await asyncio.sleep(0.02)
        encoder.free.set()
        await asyncio.gather(stays, shared)
        return encoder.computed, engine.waiting_tokens, len(engine._in_flight)

    assert asyncio.run(ask()) == (3, 0, 0)


def test_a_request_above_its_tokens_is_refused_and_others_go_on():
    async def ask():
        engine = Engine(WordEncoder(), EngineOptions(max_request_tokens=10))
        return await asyncio.gather(
            engine.encode(["w " * 6, "v " * 6]), engine.encode(["w " * 6]), return_exceptions=True
        )

    refused, answered = asyncio.run(ask())

    assert (refused.status, refused.code) == (400, "too_many_tokens")
    assert answered.token_counts == [6]


def test_no_nan_leaves_and_others_of_its_batch_are_answered():
    async def ask():
        engine = Engine(WordEncoder(), EngineOptions(cache_bytes=1000))
        return await asyncio.gather(engine.encode(["nan"]), engine.encode(["good"]), return_exceptions=True)

    bad, good = asyncio.run(ask())

    assert (bad.status, bad.code) == (500, "not_finite")
    assert np.isfinite(good.vectors).all()


def test_a_text_that_the_tokenizer_refuses_fails_alone_in_time():
    async def ask():
        engine = Engine(WordEncoder())
        with pytest.raises(ValueError, match="no such word"):
            await engine.encode(["unspeakable"])
        return await engine.encode(["fine"])

    assert asyncio.run(ask()).token_counts == [1]


def test_waiting_tokens_return_to_zero():
    async def ask():
        engine = Engine(WordEncoder())
        await asyncio.gather(*(engine.encode([f"a {n}", "b"]) for n in range(20)))
        return engine.waiting_tokens, engine._jobs, engine._in_flight

    assert asyncio.run(ask()) == (0, set(), {})


def test_a_text_that_would_be_cut_is_refused_before_anything_is_computed():
    async def refused(engine, text):
        with pytest.raises(RequestError, match="Text 1 has more than the model's 16 tokens") as caught:
            await engine.encode(["fine", text], 16)
        assert caught.value.code == "context_length_exceeded"

    async def ask():
        encoder = WordEncoder()
        engine = Engine(encoder, EngineOptions(cache_bytes=10_000))
        await refused(engine, "a cut")
        assert encoder.computed == 0
        assert (await engine.encode(["a cut"])).truncated == [True]
        await refused(engine, "a cut")  # which is in the cache now
        await engine.encode(["fine"])
        await refused(engine, "a cut")  # and so is everything that is asked for
        encoder.free.clear()
        welcome = asyncio.create_task(engine.encode(["another cut"]))
        await until(lambda: getattr(encoder, "entered", False))
        await refused(engine, "another cut")  # which somebody else has asked for
        encoder.free.set()
        assert (await welcome).truncated == [True]
        return engine.waiting_tokens

    assert asyncio.run(ask()) == 0


def test_a_model_that_fails_batch_after_batch_is_broken_until_one_succeeds():
    class Failing(WordEncoder):
        fails = True

        def vectors(self, ids):
            if self.fails:
                raise RuntimeError("device-side assert")
            return super().vectors(ids)

    async def ask():
        encoder = Failing()
        engine = Engine(encoder)
        said = []
        for n in range(3):
            said.append(engine.broken)
            with pytest.raises(RuntimeError):
                await engine.encode([f"text {n}"])
        said.append(engine.broken)
        encoder.fails = False
        await engine.encode(["a text"])
        return [*said, engine.broken]

    assert asyncio.run(ask()) == ["", "", "", "the model failed in the last 3 batches", ""]


def test_a_small_request_becomes_tokens_between_the_parts_of_a_large_one():
    class Noting(WordEncoder):
        calls: ClassVar[list[list[str]]] = []
        first = threading.Event()

        def tokenize(self, texts):
            self.calls.append(texts)
            if len(self.calls) == 1:
                self.first.wait(60)
            return super().tokenize(texts)

    async def ask():
        encoder = Noting()
        engine = Engine(encoder, EngineOptions(max_wait_s=1e9))
        large = asyncio.create_task(engine.encode([f"{n} " + "word " * (CHARS_AT_ONCE // 20) for n in range(20)]))
        await until(lambda: encoder.calls)
        small = asyncio.create_task(engine.encode(["small"]))
        await asyncio.sleep(0)
        encoder.first.set()
        return await small, await large, encoder.calls

    small, large, calls = asyncio.run(ask())

    assert calls[1][0] == "small"
    assert sum(map(len, calls)) == 21
    assert max(sum(map(len, texts)) for texts in calls) <= CHARS_AT_ONCE * 1.1
    assert small.token_counts == [1]
    assert large.token_counts == [1 + CHARS_AT_ONCE // 20] * 20


def test_one_long_text_among_many_short_ones_makes_a_request_no_larger_than_it_is():
    """And its last part is not due before its first."""

    async def ask():
        encoder = WordEncoder()
        engine = Engine(encoder, EngineOptions(max_wait_s=1e9))
        await engine.encode(["whose speed is known"])
        encoder.entered = False
        encoder.free.clear()
        texts = [f"{n} " + "word " * 9 for n in range(600)] + ["long " * (CHARS_AT_ONCE // 5)]
        large = asyncio.create_task(engine.encode(texts))
        await until(lambda: getattr(encoder, "entered", False) and engine.waiting_tokens > CHARS_AT_ONCE // 6)
        tokens, wait_s = engine.waiting_tokens, engine.expected_wait_s(3000)
        encoder.free.set()
        await large
        return tokens, wait_s, engine.tokens_per_s

    tokens, wait_s, speed = asyncio.run(ask())

    assert tokens <= 1.1 * (600 * 10 + CHARS_AT_ONCE // 5)
    assert speed > 0
    assert wait_s == 0, "half as large a request would pass it"


def test_texts_that_nobody_waits_for_are_not_made_tokens():
    class Slow(WordEncoder):
        tokenized = 0
        go_on = threading.Event()

        def tokenize(self, texts):
            self.go_on.wait(60)
            self.tokenized += len(texts)
            return super().tokenize(texts)

    async def ask():
        encoder = Slow()
        engine = Engine(encoder)
        gone = asyncio.create_task(engine.encode([f"text {n}" for n in range(5 * TOKENIZED_AT_ONCE)]))
        await until(lambda: engine.waiting_tokens)
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        encoder.go_on.set()
        await engine.encode(["another"])
        return encoder.tokenized

    assert asyncio.run(ask()) <= TOKENIZED_AT_ONCE + 1
