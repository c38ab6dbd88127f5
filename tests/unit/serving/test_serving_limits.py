import pytest

from qzhou.serving.errors import RequestError
from qzhou.serving.limits import TokenRate


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_that_has_used_up_its_minute_is_told_when_to_come_back():
    clock = Clock()
    rate = TokenRate(600, clock)
    rate.admit("a")
    rate.charge("a", 700)

    with pytest.raises(RequestError) as caught:
        rate.admit("a")
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    wait = int(caught.value.headers()["Retry-After"])
    assert wait == 11  # 101 tokens at 10 a second
    rate.admit("b")
    clock.now += wait
    rate.admit("a")


def test_many_at_the_same_time_do_not_all_pass():
    rate = TokenRate(600, Clock())
    with rate.reserve_tokens("a", 400), rate.reserve_tokens("a", 400) as second:
        second.tokens = 250
        with pytest.raises(RequestError, match="Rate limit reached"):
            rate.admit("a")
    rate.admit("a")  # the first has cost nothing, the second less than was guessed
    with rate.reserve_tokens("a", 0) as third:
        third.tokens = 350
    with pytest.raises(RequestError, match="Rate limit reached"), rate.reserve_tokens("a", 0):
        pytest.fail("350 were left, and 350 are spent")


def test_rest_gives_back_at_most_a_minute():
    clock = Clock()
    rate = TokenRate(60, clock)
    rate.charge("a", 0)
    clock.now += 10_000
    rate.charge("a", 61)

    with pytest.raises(RequestError):
        rate.admit("a")


def test_without_a_limit_everyone_is_let_in():
    rate = TokenRate(None)
    rate.charge("a", 10**12)
    rate.admit("a")


def test_keys_that_rest_are_forgotten():
    clock = Clock()
    rate = TokenRate(60, clock)
    for number in range(10_001):
        rate.charge(str(number), 1)
        clock.now += 0.1

    assert len(rate._buckets) < 100
