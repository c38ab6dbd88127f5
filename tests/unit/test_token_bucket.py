"""The token bucket, by a clock of the test's own."""

import itertools

import pytest

from qzhou.data.token_bucket import TokenBucket


def test_units_are_spread_evenly_over_the_minute():
    bucket = TokenBucket(120.0, capacity=2.0)
    now, started = 0.0, []
    while now < 10:
        wait = bucket.wait_s(now, 1)
        if wait == 0:
            bucket.take(1)
            started.append(now)
        now += wait or 0.0
    assert len([time for time in started if time < 10]) in {20, 21, 22}
    assert max(b - a for a, b in itertools.pairwise(started)) == pytest.approx(0.5)


def test_an_overdraft_is_paid_by_waiting():
    bucket = TokenBucket(600.0, capacity=600.0)

    bucket.take(700)

    assert bucket.level_at(0.0) == -100
    assert bucket.wait_s(0.0, 1) == pytest.approx(101 / 10)
    assert bucket.wait_s(10.1, 1) == 0.0


def test_an_unused_bucket_holds_no_more_than_its_capacity():
    bucket = TokenBucket(60.0, capacity=60.0)
    bucket.wait_s(0.0, 1)

    assert bucket.level_at(10_000.0) == 60


def test_a_full_bucket_allows_more_than_it_holds():
    bucket = TokenBucket(60.0, capacity=1.0)

    assert bucket.wait_s(0.0, 50) == 0.0
    bucket.take(50)

    assert bucket.wait_s(0.0, 50) == pytest.approx(50)
