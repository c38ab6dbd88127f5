import pytest

from qzhou.serving.errors import RequestError
from qzhou.serving.keys import ApiKey
from qzhou.serving.limits import TokenRate

A, B = ApiKey("a"), ApiKey("b")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_that_has_used_up_its_minute_is_told_when_to_come_back():
    clock = Clock()
    rate = TokenRate(600, clock)
    rate.admit(A)
    rate.charge(A, 700)

    with pytest.raises(RequestError) as caught:
        rate.admit(A)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    wait = int(caught.value.headers()["Retry-After"])
    assert wait == 11  # 101 tokens at 10 a second
    rate.admit(B)
    clock.now += wait
    rate.admit(A)


def test_many_at_the_same_time_do_not_all_pass():
    rate = TokenRate(600, Clock())
    with rate.reserve_tokens(A, 400), rate.reserve_tokens(A, 400) as second:
        second.tokens = 250
        with pytest.raises(RequestError, match="Rate limit reached"):
            rate.admit(A)
    rate.admit(A)  # the first has cost nothing, the second less than was guessed
    with rate.reserve_tokens(A, 0) as third:
        third.tokens = 350
    with pytest.raises(RequestError, match="Rate limit reached"), rate.reserve_tokens(A, 0):
        pytest.fail("350 were left, and 350 are spent")


def test_rest_gives_back_at_most_a_minute():
    clock = Clock()
    rate = TokenRate(60, clock)
    rate.charge(A, 0)
    clock.now += 10_000
    rate.charge(A, 61)

    with pytest.raises(RequestError):
        rate.admit(A)


def test_without_a_limit_everyone_is_let_in():
    rate = TokenRate(None)
    rate.charge(A, 10**12)
    rate.admit(A)


def test_keys_that_rest_are_forgotten():
    clock = Clock()
    rate = TokenRate(60, clock)
    for number in range(10_001):
        rate.charge(ApiKey(str(number)), 1)
        clock.now += 0.1

    assert len(rate._buckets) < 100


def test_a_key_may_have_a_limit_of_its_own():
    rate = TokenRate(600, Clock())
    small, large = ApiKey("small", 10), ApiKey("large", 10_000)
    for key in (small, large):
        rate.charge(key, 700)

    with pytest.raises(RequestError, match="10 tokens per minute"):
        rate.admit(small)
    rate.admit(large)
    rate.admit(ApiKey("large", 20_000))  # it was changed


def test_a_limit_without_a_default_holds_for_its_key_alone():
    rate = TokenRate(None, Clock())
    rate.charge(ApiKey("a", 10), 11)
    rate.charge(B, 10**9)

    rate.admit(B)
    with pytest.raises(RequestError):
        rate.admit(ApiKey("a", 10))


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_limit_holds_for_all_replicas_together(replicas):
    rates = [TokenRate(600, Clock()) for _ in range(replicas)]
    answered = 0
    for rate in rates:
        rate.replicas = replicas
        try:
            while True:
                with rate.reserve_tokens(A, 10) as bill:
                    bill.tokens = 10
                answered += 10
        except RequestError:
            pass
    assert answered == 600


def test_replicas_that_come_while_a_request_is_worked_on_cost_it_nothing():
    rate = TokenRate(600, Clock())
    with rate.reserve_tokens(A, 500) as bill:
        rate.replicas = 4
        bill.tokens = 0
    with rate.reserve_tokens(A, 0) as bill:
        bill.tokens = 149
    rate.admit(A)
    rate.charge(A, 1)
    with pytest.raises(RequestError):
        rate.admit(A)
