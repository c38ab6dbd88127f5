"""The limits of a job, by a clock of the test's own."""

import asyncio
import math

import pytest

from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.errors import EndpointError
from qzhou.synthesis.rate_limiter import (
    FAILURES_TO_OPEN,
    FIRST_OPEN_S,
    Attempt,
    RateLimiter,
    RequestLimits,
    Reservation,
)

A, B = "http://a/v1", "http://b/v1"


def limits_of(spent=0.0, **settings):
    model = LLMSection(model="m", endpoints=(A, B), input_price=1.0)
    section = SynthesisSection(models=(model,), **{"concurrency": 8, **settings})
    return RequestLimits(section, spent=spent)


def start(limits, now, endpoint=A, **estimates):
    return limits.start(now, Reservation(endpoint, **estimates))


def end(limits, now, status="answered", endpoint=A, *, problem="", **estimates):
    return limits.end(now, Reservation(endpoint, **estimates), Attempt(status=status, problem=problem))


def fail(limits, times, *, now=0.0, status="overloaded"):
    for _ in range(times):
        assert start(limits, now) == 0.0
        end(limits, now, status, problem="is broken")


def test_no_more_requests_are_in_flight_than_allowed_all_endpoints_together():
    limits = limits_of(concurrency=3)

    assert [start(limits, 0, endpoint) for endpoint in (A, B, A)] == [0, 0, 0]
    assert start(limits, 0, B) == math.inf
    end(limits, 1)
    assert start(limits, 1, B) == 0


def test_an_overload_halves_the_limit_once_a_second_and_answers_raise_it_by_one_a_round():
    limits = limits_of(concurrency=16)

    fail(limits, 2, now=10.0)
    assert limits.endpoints[A].limit == 8
    fail(limits, 1, now=11.0)
    assert limits.endpoints[A].limit == 4
    for _ in range(5):
        assert start(limits, 12) == 0
        end(limits, 12)
    assert 5 < limits.endpoints[A].limit < 5.2
    assert limits.endpoints[B].limit == 16


def test_requests_a_minute_are_limited_for_all_endpoints_together():
    limits = limits_of(requests_per_minute=60)

    assert start(limits, 0, A) == 0
    assert start(limits, 0, B) == pytest.approx(1.0)


def test_tokens_that_an_answer_took_beyond_the_estimate_are_a_debt():
    limits = limits_of(tokens_per_minute=6000)

    assert start(limits, 0, tokens=50) == 0
    limits.end(0, Reservation(A, tokens=50), Attempt(status="answered", used_tokens=250))

    assert start(limits, 0, tokens=50) == pytest.approx((50 + 150) / 100)


def test_many_failures_in_a_row_open_the_circuit_and_one_probe_decides():
    limits = limits_of()

    fail(limits, FAILURES_TO_OPEN, now=0.0)
    assert start(limits, 0) == FIRST_OPEN_S
    assert limits.choose((A, B)) == B
    assert start(limits, FIRST_OPEN_S) == 0  # the probe
    assert start(limits, FIRST_OPEN_S) == math.inf
    end(limits, FIRST_OPEN_S, "overloaded")
    assert start(limits, FIRST_OPEN_S) == 2 * FIRST_OPEN_S
    assert start(limits, 3 * FIRST_OPEN_S) == 0
    end(limits, 3 * FIRST_OPEN_S)
    assert start(limits, 3 * FIRST_OPEN_S) == 0
    assert limits.choose((A, B)) == A


def test_an_endpoint_whose_circuit_is_open_for_too_long_has_failed():
    limits, now = limits_of(give_up_after_s=30), 0.0

    fail(limits, FAILURES_TO_OPEN)
    while not limits.endpoints[A].failed:
        now += start(limits, now)
        limits.endpoints[A].probing or start(limits, now)
        end(limits, now, "overloaded", problem="is broken")

    assert now <= 30
    assert limits.choose((A,)) is None
    assert limits.choose((A, B)) == B


def test_an_address_where_nothing_ever_answered_has_failed_at_once():
    limits = limits_of()

    fail(limits, 4, status="unreachable")
    assert not limits.endpoints[A].failed
    fail(limits, 1, status="unreachable")
    assert limits.endpoints[A].failed == "is broken"


def test_the_money_of_requests_in_flight_counts():
    limits = limits_of(max_cost=1.0, spent=0.5)

    assert start(limits, 0, cost=0.4) == 0
    assert limits.exceeds_budget(0.2)
    limits.end(0, Reservation(A, cost=0.4), Attempt(status="answered", paid=0.1))
    assert not limits.exceeds_budget(0.2)
    assert limits.spent == pytest.approx(0.6)


def test_coroutines_share_one_limit():
    in_flight, most = 0, 0

    async def send(rate_limiter):
        nonlocal in_flight, most
        reservation = await rate_limiter.acquire((A,), tokens=1.0, cost=0.0)
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.002)
        in_flight -= 1
        rate_limiter.release(reservation, Attempt(status="answered"))

    async def life():
        rate_limiter = RateLimiter(limits_of(concurrency=7))
        await asyncio.gather(*(send(rate_limiter) for _ in range(300)))

    asyncio.run(asyncio.wait_for(life(), 30))

    assert most == 7


def test_requests_that_wait_end_when_all_endpoints_have_failed():
    async def life():
        rate_limiter = RateLimiter(limits_of(concurrency=1))
        reservation = await rate_limiter.acquire((A,), tokens=0, cost=0)
        waiting = [asyncio.create_task(rate_limiter.acquire((A,), tokens=0, cost=0)) for _ in range(3)]
        await asyncio.sleep(0.02)
        attempt = Attempt(status="refused", problem="refuses the key")
        assert rate_limiter.release(reservation, attempt) is True
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(life(), 10))

    assert [type(error) for error in found] == [EndpointError] * 3
    assert "refuses the key" in str(found[0])
