"""Candidates by way of 16 bits: the best of all blocks, and a bound that holds for the rest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qzhou.mining.prefilter import GROUP, prefilter


def unit(generator, rows, width=16):
    found = generator.normal(size=(rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 3 * GROUP), min_size=1, max_size=5),
    count=st.integers(1, 80),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),  # the second is a GPU's
)
def test_what_is_left_out_is_below_the_bound_and_the_candidates_are_the_best(seed, sizes, count, dtype):
    generator = np.random.default_rng(seed)
    query_ND, document_MD = unit(generator, 7), unit(generator, sum(sizes))
    ends = np.cumsum(sizes)
    blocks = [
        (np.arange(end - size, end), document_MD[end - size : end]) for size, end in zip(sizes, ends, strict=True)
    ]

    found = prefilter(query_ND, blocks, count, dtype=dtype)

    kept = min(count, len(document_MD))
    rounded = (torch.from_numpy(query_ND).to(dtype) @ torch.from_numpy(document_MD).to(dtype).T).float().numpy()
    for query, rows in enumerate(found.row_NC):
        assert len(set(rows.tolist())) == kept
        best = np.sort(rounded[query])[::-1][:kept]
        assert np.sort(rounded[query][rows])[::-1].tolist() == best.tolist()
        outside = np.setdiff1d(np.arange(len(document_MD)), rows)
        if len(outside):
            assert (document_MD[outside] @ query_ND[query]).max() <= found.outside_N[query]


@pytest.mark.parametrize("better_last", [False, True])
def test_later_blocks_are_searched_where_they_hold_something_better(better_last):
    generator = np.random.default_rng(1)
    query = unit(generator, 3)
    near = np.repeat(query, 20, axis=0) + 0.05 * generator.normal(size=(60, 16)).astype(np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    parts = [unit(generator, 1000), near.astype(np.float32)]
    document = np.concatenate(parts if better_last else parts[::-1])
    blocks = [
        (np.arange(start, min(start + 500, 1060)), document[start : start + 500]) for start in range(0, 1060, 500)
    ]

    found = prefilter(query, blocks, 10)

    exact = np.argsort(-(query @ document.T), axis=1)[:, :5]
    for query_rows, best in zip(found.row_NC, exact, strict=True):
        assert set(best.tolist()) <= set(query_rows.tolist())
