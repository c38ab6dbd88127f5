"""Batches of texts of like length: within the budget, none lost."""

from hypothesis import given
from hypothesis import strategies as st

from qzhou.encoder.batching import length_batches, nearest_batch

LENGTHS = st.lists(st.integers(1, 90), max_size=40)


@given(lengths=LENGTHS, budget=st.integers(1, 200), most_padding=st.sampled_from([1.0, 0.2, 0.0]))
def test_batches_stay_within_the_budget_and_lose_nothing(lengths, budget, most_padding):
    batches = list(length_batches(lengths, budget, most_padding=most_padding))

    rows = [row for batch in batches for row in batch]
    assert rows == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    for batch in batches:
        padded = len(batch) * lengths[batch[0]]
        assert padded <= budget or len(batch) == 1
        used = sum(lengths[row] for row in batch)
        assert len(batch) == 1 or padded <= budget // 4 or used >= (1 - most_padding) * padded


@given(lengths=LENGTHS.filter(len), budget=st.integers(1, 200))
def test_the_first_row_takes_along_the_nearest_that_fit(lengths, budget):
    batch = nearest_batch(lengths, budget)

    longest = max(lengths[row] for row in batch)
    assert batch[0] == 0
    assert len(batch) * longest <= budget or len(batch) == 1
    for row in set(range(len(lengths))).difference(batch):
        assert (len(batch) + 1) * max(longest, lengths[row]) > budget
