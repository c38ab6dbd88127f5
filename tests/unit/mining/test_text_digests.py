"""Who answers whom, in arrays: the same as sets of texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qzhou.data.records import RetrievalExample, Source, normalized_text, relevant_keys
from qzhou.data.text_digests import Groups, RelevantTexts, RowLookup, digests, is_among, key_digests

TEXTS = st.sampled_from(["a", "b", "B", " b ", "c", "d", "e f", "E  f", ""])
EXAMPLES = st.lists(
    st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(["", "0", "1", "2"])), max_size=12
)


@given(rows=EXAMPLES, start=st.integers(0, 5))
def test_answers_in_arrays_equal_answers_in_sets(rows, start):
    examples = [
        RetrievalExample(id=str(n), dataset="d", query=query, positives=tuple(own), source=Source(parent=parent))
        for n, (query, own, parent) in enumerate(rows)
    ]
    owner = np.repeat(np.arange(len(examples)), [len(one.positives) for one in examples])
    positives = key_digests(text for one in examples for text in one.positives)
    some = examples[start:]

    found = RelevantTexts(Groups.of(examples), positives, owner).of(Groups.of(some))

    candidates = ["a", "B", "c", "D", "e f", "", "x"]
    key_NK = np.tile(key_digests(candidates), (len(some), 1))
    expected = [[normalized_text(text) in own for text in candidates] for own in relevant_keys(examples)[start:]]
    assert is_among(*found, key_NK).tolist() == expected


def test_a_text_is_found_by_its_first_row_and_an_unknown_one_is_an_error():
    row_lookup = RowLookup(digests(["x", "y", "x", "z"]))

    assert row_lookup(digests(["z", "x", "y"])).tolist() == [3, 0, 1]
    with pytest.raises(KeyError):
        row_lookup(digests(["w"]))
    with pytest.raises(KeyError):
        RowLookup(digests([]))(digests(["w"]))


def test_texts_that_are_not_valid_unicode_have_a_digest():
    assert len(set(digests(["\ud800", "\ud801", ""]).tolist())) == 3
