"""The limits of a job, by a clock of the test's own."""

import asyncio
import itertools
import math

import pytest

from qzhou.errors import EndpointError
from qzhou.synthesis.gate import GateActor, LocalGate, RemoteGate
from qzhou.synthesis.throttle import FAILURES, FIRST_REST_S, Bucket, Throttle

A, B = "http://a/v1", "http://b/v1"


def throttle(**settings):
    return Throttle((A, B), **{"concurrency": 8, **settings})


def fail(one, times, *, now=0.0, result="overloaded", lane=A):
    for _ in range(times):
        assert one.start(now, lane) == 0.0
        one.end(now, lane, result, problem="is broken")


def test_no_more_requests_are_under_way_than_allowed_all_endpoints_together():
    one = throttle(concurrency=3)

    assert [one.start(0, lane) for lane in (A, B, A)] == [0, 0, 0]
    assert one.start(0, B) == math.inf
    one.end(1, A, "answered")
    assert one.start(1, B) == 0


def test_an_overload_halves_the_limit_once_a_second_and_answers_raise_it_by_one_a_round():
    one = throttle(concurrency=16)

    fail(one, 2, now=10.0)
    assert one.lanes[A].limit == 8
    fail(one, 1, now=11.0)
    assert one.lanes[A].limit == 4
    for _ in range(5):
        assert one.start(12, A) == 0
        one.end(12, A, "answered")
    assert 5 < one.lanes[A].limit < 5.2
    assert one.lanes[B].limit == 16


def test_requests_and_tokens_a_minute_are_spread_evenly():
    bucket = Bucket(120.0)
    now, started = 0.0, []
    while now < 10:
        wait = bucket.wait_s(now, 1)
        if wait == 0:
            bucket.take(1)
            started.append(now)
        now += wait or 0.0
    assert len([time for time in started if time < 10]) in {20, 21, 22}
    assert max(b - a for a, b in itertools.pairwise(started)) == pytest.approx(0.5)


def test_tokens_that_an_answer_took_beyond_the_estimate_are_a_debt():
    one = throttle(tokens_per_minute=6000)

    assert one.start(0, A, tokens=50) == 0
    one.end(0, A, "answered", tokens=50, used_tokens=250)

    assert one.start(0, A, tokens=50) == pytest.approx((50 + 150) / 100)


def test_after_many_failures_in_a_row_an_endpoint_rests_and_one_probe_decides():
    one = throttle()

    fail(one, FAILURES, now=0.0)
    assert one.start(0, A) == FIRST_REST_S
    assert one.choose((A, B)) == B
    assert one.start(FIRST_REST_S, A) == 0  # the probe
    assert one.start(FIRST_REST_S, A) == math.inf
    one.end(FIRST_REST_S, A, "overloaded")
    assert one.start(FIRST_REST_S, A) == 2 * FIRST_REST_S
    assert one.start(3 * FIRST_REST_S, A) == 0
    one.end(3 * FIRST_REST_S, A, "answered")
    assert one.start(3 * FIRST_REST_S, A) == 0
    assert one.choose((A, B)) == A


def test_an_endpoint_that_rests_for_too_long_is_given_up():
    one, now = throttle(give_up_after_s=30), 0.0

    fail(one, FAILURES)
    while not one.lanes[A].gave_up:
        now += one.start(now, A) or 0.0
        one.lanes[A].probing or one.start(now, A)
        one.end(now, A, "overloaded", problem="is broken")

    assert now <= 30
    assert one.choose((A,)) is None
    assert one.choose((A, B)) == B


def test_an_address_where_nothing_ever_answered_is_given_up_at_once():
    one = throttle()

    fail(one, 4, result="unreachable")
    assert not one.lanes[A].gave_up
    fail(one, 1, result="unreachable")
    assert one.lanes[A].gave_up == "is broken"


def test_money_that_is_under_way_counts():
    one = throttle(max_cost=1.0, spent=0.5)

    assert one.start(0, A, cost=0.4) == 0
    assert one.is_spent(0.2)
    one.end(0, A, "answered", cost=0.4, paid=0.1)
    assert not one.is_spent(0.2)
    assert one.spent == pytest.approx(0.6)


class Handle:
    """Stands in for Ray's handle of an actor: ``handle.method.remote(...)`` gives something to await."""

    def __init__(self, actor):
        self._actor = actor

    def __getattr__(self, name):
        method = getattr(self._actor, name)

        class Call:
            @staticmethod
            def remote(*arguments):
                return asyncio.ensure_future(method(*arguments))

        return Call


@pytest.mark.parametrize("gates", [1, 3])
def test_several_processes_share_one_limit(gates):
    under_way, most = 0, 0

    async def send(gate):
        nonlocal under_way, most
        lane = await gate.enter((A,), tokens=1.0, cost=0.0)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.002)
        under_way -= 1
        await gate.leave(lane, "answered", tokens=1.0, cost=0.0)

    async def life():
        shared = GateActor(throttle(concurrency=7))
        made = [RemoteGate(Handle(shared)) for _ in range(gates)]
        await asyncio.gather(*(send(made[number % gates]) for number in range(300)))

    asyncio.run(asyncio.wait_for(life(), 30))

    assert most == 7


def test_those_who_wait_are_told_when_no_endpoint_is_left():
    async def life(gate):
        lane = await gate.enter((A,), tokens=0, cost=0)
        waiting = [asyncio.create_task(gate.enter((A,), tokens=0, cost=0)) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert await gate.leave(lane, "refused", problem="refuses the key") is True
        return await asyncio.gather(*waiting, return_exceptions=True)

    for gate in (
        LocalGate(throttle(concurrency=1)),
        RemoteGate(Handle(GateActor(throttle(concurrency=1)))),
    ):
        found = asyncio.run(asyncio.wait_for(life(gate), 10))
        assert [type(error) for error in found] == [EndpointError] * 3
        assert "refuses the key" in str(found[0])
