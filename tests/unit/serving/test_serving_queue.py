import random

from hypothesis import given
from hypothesis import strategies as st

from qzhou.serving.queue import FairQueue

LENGTHS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=30), min_size=1, max_size=8)


def drained(queue: FairQueue) -> list[list]:
    batches = []
    while batch := queue.take():
        batches.append(batch)
    return batches


@given(LENGTHS)
def test_every_text_is_taken_once_and_no_batch_is_above_the_budget(requests):
    queue: FairQueue = FairQueue(64)
    for number, lengths in enumerate(requests):
        queue.add(((number, row, length), length) for row, length in enumerate(lengths))

    batches = drained(queue)

    taken = [one for batch in batches for one in batch]
    assert sorted(taken) == sorted(
        (n, row, size) for n, lengths in enumerate(requests) for row, size in enumerate(lengths)
    )
    assert len(set(taken)) == len(taken)
    assert all(len(batch) == 1 or len(batch) * max(size for *_, size in batch) <= 64 for batch in batches)


def test_a_text_above_the_budget_goes_alone():
    queue: FairQueue = FairQueue(10)
    queue.add([("long", 50), ("short", 2)])

    assert drained(queue) == [["long"], ["short"]]


def test_a_small_request_passes_between_the_batches_of_a_large_one():
    queue: FairQueue = FairQueue(100)
    queue.add((("large", row), 10) for row in range(1000))
    for _ in range(3):
        queue.take()
    queue.add([(("small", 0), 10)])

    assert ("small", 0) in queue.take() + queue.take()


def test_equal_requests_advance_together():
    queue: FairQueue = FairQueue(100)
    for name in ("a", "b"):
        queue.add((name, 10) for _ in range(200))

    taken = [one for _ in range(10) for one in queue.take()]

    assert abs(taken.count("a") - taken.count("b")) <= 10


def test_texts_of_like_length_go_together():
    draw = random.Random(0)
    lengths = [draw.choice([5, 50]) for _ in range(400)]
    queue: FairQueue = FairQueue(500)
    for length in lengths:
        queue.add([(length, length)])

    batches = drained(queue)

    padding = sum(len(batch) * max(batch) - sum(batch) for batch in batches)
    assert padding < 0.1 * sum(lengths)
