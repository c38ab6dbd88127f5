"""Which rank encodes which texts of a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qzhou.training.sharding import shard_batch

LISTS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=12), min_size=1, max_size=40)


@given(ids=LISTS, world=st.integers(1, 5), budget=st.integers(1, 60), packed=st.booleans())
def test_every_text_is_encoded_once_and_found_again_by_every_rank(ids, world, budget, packed):
    shards = [
        shard_batch(ids, rank=rank, world=world, micro_batch_tokens=budget, packed=packed) for rank in range(world)
    ]

    gathered = [tuple(text) for one in shards for chunk in one.micro_batches for text in chunk]
    for one in shards:
        assert [gathered[place] for place in one.row_N.tolist()] == [tuple(text) for text in ids]
        assert [len(chunk) for chunk in one.micro_batches] == [len(chunk) for chunk in shards[0].micro_batches]
        assert one.padded_tokens == shards[0].padded_tokens
        for chunk, padded in zip(one.micro_batches, one.padded_tokens, strict=True):
            assert len(chunk) == 1 or padded <= budget
            assert (sum(map(len, chunk)) if packed else len(chunk) * max(map(len, chunk))) <= padded
    assert len(gathered) - len({tuple(text) for text in ids}) < world
    if packed:
        assert shards[0].encoded_tokens == sum(map(len, gathered))
    assert 0 <= shards[0].padding_share < 1


def test_equal_texts_are_encoded_once():
    found = shard_batch([[1, 2], [3], [1, 2]], micro_batch_tokens=10)

    assert sum(map(len, found.micro_batches)) == 2
    assert found.row_N.tolist() == [0, 1, 0]
    assert found.tokens == 3


def test_the_last_micro_batches_are_counted_as_long_as_they_fit_and_one_always_is():
    found = shard_batch([[1] * length for length in (1, 2, 3, 4)], micro_batch_tokens=1)

    assert found.padded_tokens == [4, 3, 2, 1]
    assert [found.count_within(budget) for budget in (0, 1, 3, 5, 6, 10)] == [1, 1, 2, 2, 3, 4]
    assert isinstance(found.row_N, torch.Tensor)


def of_lengths_like_ms_marco(seed):
    """Token ids of 256 queries and 1,280 documents, a step of the paper's recipe."""
    random = np.random.default_rng(seed)
    documents = np.clip(random.lognormal(np.log(133), 0.83, 1280), 8, 1536).astype(int)
    queries = np.clip(random.normal(35, 8, 256), 18, 256).astype(int)
    return [np.arange(length) + 10_000 * number for number, length in enumerate([*queries, *documents])]


@pytest.mark.parametrize(("world", "most"), [(8, 0.14), (32, 0.2), (64, 0.28)])
def test_a_share_of_any_size_has_little_padding_and_none_where_texts_are_packed(world, most):
    """A micro-batch that had to be a quarter full whatever its padding wasted half of a small share."""
    for seed in range(2):
        ids = of_lengths_like_ms_marco(seed)
        padded, packed = (
            shard_batch(ids, world=world, micro_batch_tokens=16_384, packed=packed) for packed in (False, True)
        )
        assert padded.padding_share < most
        assert packed.padding_share < 0.01
        assert len(packed.micro_batches) <= len(padded.micro_batches)
