"""Who encodes which texts of a batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qzhou.training.deal import deal

LISTS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=12), min_size=1, max_size=40)


@given(ids=LISTS, world=st.integers(1, 5), budget=st.integers(1, 60))
def test_every_text_is_encoded_once_and_found_again_by_every_rank(ids, world, budget):
    deals = [deal(ids, rank=rank, world=world, micro_batch_tokens=budget) for rank in range(world)]

    gathered = [tuple(text) for one in deals for chunk in one.chunks for text in chunk]
    for one in deals:
        assert [gathered[place] for place in one.place_N.tolist()] == [tuple(text) for text in ids]
        assert [len(chunk) for chunk in one.chunks] == [len(chunk) for chunk in deals[0].chunks]
        assert one.padded == deals[0].padded
        for chunk, padded in zip(one.chunks, one.padded, strict=True):
            assert len(chunk) == 1 or padded <= budget
            assert len(chunk) * max(map(len, chunk)) <= padded
    assert len(gathered) - len({tuple(text) for text in ids}) < world
    assert 0 <= deals[0].padding_share < 1


def test_equal_texts_are_encoded_once():
    found = deal([[1, 2], [3], [1, 2]], micro_batch_tokens=10)

    assert sum(map(len, found.chunks)) == 2
    assert found.place_N.tolist() == [0, 1, 0]
    assert found.tokens == 3


def test_the_last_chunks_are_held_as_long_as_they_fit_and_one_always_is():
    found = deal([[1] * length for length in (1, 2, 3, 4)], micro_batch_tokens=1)

    assert found.padded == [4, 3, 2, 1]
    assert [found.held(budget) for budget in (0, 1, 3, 5, 6, 10)] == [1, 1, 2, 2, 3, 4]
    assert isinstance(found.place_N, torch.Tensor)
