import random

from hypothesis import given
from hypothesis import strategies as st

from qzhou.serving.queue import TextQueue

LENGTHS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=30), min_size=1, max_size=8)


def drained(queue: TextQueue) -> list[list]:
    batches = []
    while batch := queue.take():
        batches.append(batch)
    return batches


@given(LENGTHS)
def test_every_text_is_taken_once_and_no_batch_is_above_the_budget(requests):
    queue: TextQueue = TextQueue(64)
    for number, lengths in enumerate(requests):
        queue.add([((number, row, length), length) for row, length in enumerate(lengths)], size=sum(lengths))

    batches = drained(queue)

    taken = [one for batch in batches for one in batch]
    assert sorted(taken) == sorted(
        (n, row, size) for n, lengths in enumerate(requests) for row, size in enumerate(lengths)
    )
    assert len(set(taken)) == len(taken)
    assert all(len(batch) == 1 or len(batch) * max(size for *_, size in batch) <= 64 for batch in batches)


def test_a_text_above_the_budget_goes_alone():
    queue: TextQueue = TextQueue(10)
    queue.add([("long", 50), ("short", 2)], size=52)

    assert drained(queue) == [["long"], ["short"]]


def test_a_small_request_passes_between_the_batches_of_a_large_one():
    queue: TextQueue = TextQueue(100)
    queue.add([(("large", row), 10) for row in range(1000)], size=10_000)
    for _ in range(3):
        queue.take()
    queue.add([(("small", 0), 10)], size=10)

    assert ("small", 0) in queue.take()


def test_a_large_request_is_passed_by_no_more_than_it_holds_itself():
    queue: TextQueue = TextQueue(100)
    queue.add([("large", 10)] * 50, size=500)
    passed, batch = 0, ["small"]
    while "large" not in batch:
        passed += 10 * len(batch)
        queue.add([("small", 10)] * 10, size=100)
        batch = queue.take()

    assert 100 < passed <= 510


def test_requests_of_one_size_are_answered_one_after_the_other():
    queue: TextQueue = TextQueue(100)
    for name in ("first", "second"):
        queue.add([(name, 10)] * 200, size=2000)

    taken = [one for _ in range(20) for one in queue.take()]

    assert taken == ["first"] * 200


def test_what_waits_is_shared_among_those_who_take():
    queue: TextQueue = TextQueue(100)
    queue.add([(row, 2) for row in range(20)], size=40)

    shares = [len(queue.take(takers)) for takers in (4, 3, 2, 1)]

    assert shares == [5, 5, 5, 5]


def test_texts_of_like_length_go_together():
    draw = random.Random(0)
    lengths = [draw.choice([5, 50]) for _ in range(400)]
    queue: TextQueue = TextQueue(500)
    for length in lengths:
        queue.add([(length, length)], size=length)

    batches = drained(queue)

    padding = sum(len(batch) * max(batch) - sum(batch) for batch in batches)
    assert padding < 0.1 * sum(lengths)
