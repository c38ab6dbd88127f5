"""Negatives: a positive never stands in a negative slot, and rejected documents never come back."""

import numpy as np
import pytest

from qzhou.errors import RecipeError
from qzhou.mining.search import nearest, recall_of
from qzhou.mining.select import combine, is_consistent, select_negatives
from qzhou.recipe import MiningSection
from qzhou.records import Negative

KEY = np.array([7], dtype=np.uint64)


def select(scores, *, positive_score, is_positive=None, key=KEY, count=2, ratio=0.95, repeats=None, **settings):
    scores = np.array([scores], dtype=np.float32)
    positive = np.zeros(scores.shape, dtype=bool) if is_positive is None else np.array([is_positive])
    rows = np.arange(scores.shape[1])[None, :]
    mining = MiningSection(
        **{"rank_from": 1, "rank_to": 99, "positive_ratio": ratio, "negatives_per_query": count, **settings}
    )
    is_repeat = None if repeats is None else np.array([repeats])
    return select_negatives(
        scores, rows, positive, np.array([positive_score], dtype=np.float32), key, mining, is_repeat_QK=is_repeat
    )


def test_exact_search_ranks_by_cosine():
    generator = np.random.default_rng(0)
    query, document = (generator.normal(size=(size, 8)).astype(np.float32) for size in (3, 20))

    scores, rows = nearest(query, document, count=5)

    expected = np.argsort(-(query @ document.T), axis=1)[:, :5]
    assert (rows == expected).all()
    assert np.allclose(scores, np.take_along_axis(query @ document.T, expected, 1), atol=1e-5)


def test_an_approximate_index_is_measured_against_the_exact_one():
    generator = np.random.default_rng(0)
    query, document = (generator.normal(size=(size, 16)).astype(np.float32) for size in (50, 2000))

    few = nearest(query, document, count=20, index="IVF50,Flat", parameters="nprobe=2")
    all_cells = nearest(query, document, count=20, index="IVF50,Flat", parameters="nprobe=50")

    expected = np.argsort(-(query @ document.T), axis=1, kind="stable")[:, :20]
    shared = [len(set(found) & set(best)) for found, best in zip(few[1].tolist(), expected.tolist(), strict=True)]
    assert recall_of(query, document, *few) == pytest.approx(sum(shared) / 1000)
    assert 0.05 < recall_of(query, document, *few) < 0.9
    assert recall_of(query, document, *all_cells) == 1.0


def test_what_an_approximate_index_does_not_find_is_no_candidate():
    document = np.eye(8, dtype=np.float32)

    scores, rows = nearest(document[:1], document, count=8, index="IVF8,Flat", parameters="nprobe=1")

    assert scores[0, 0] == 1.0
    assert (scores[0, 1:] == -np.inf).all()
    found = select(scores[0], positive_score=2.0, count=9)
    assert found.rows == [[0]]
    assert rows.min() >= 0


def test_an_index_that_faiss_does_not_know_is_refused_by_name():
    vectors = np.eye(3, dtype=np.float32)

    with pytest.raises(RecipeError, match=r"mining.index 'Flatt' .* 3 documents of 3 dimensions: .*'Flat' always does"):
        nearest(vectors, vectors, count=2, index="Flatt")


def test_a_corpus_smaller_than_the_window_gives_what_it_has():
    vectors = np.eye(3, dtype=np.float32)

    assert nearest(vectors, vectors, count=30)[1].shape == (3, 3)


def test_documents_too_close_to_the_positive_are_refused():
    found = select([0.99, 0.951 * 0.8, 0.75, 0.1], positive_score=0.8, count=9)

    assert found.rows == [[2, 3]]
    assert found.rejected["too close to the positive"] == 2


def test_the_ratio_is_right_for_a_negative_positive_score():
    """Defect of a peer: a plain product lets documents above a negative positive pass."""
    found = select([-0.10, -0.20, -0.22, -0.9], positive_score=-0.2, count=9)

    assert found.rows == [[2, 3]]  # the ceiling is -0.2 - 0.05 * 0.2 = -0.21


@pytest.mark.parametrize(
    ("settings", "rows", "reason"),
    [
        ({"margin": 0.3}, [[2, 3]], "too close to the positive"),
        ({"max_score": 0.45}, [[2, 3]], "above max_score"),
        ({"min_score": 0.45}, [[0, 1]], "below min_score"),
        ({"repeats": [False, True, False, True]}, [[0, 2]], "repeats a positive"),
        ({"sampling": "top", "count": 2}, [[0, 1]], "not drawn"),
    ],
)
def test_each_criterion_refuses_what_it_says(settings, rows, reason):
    found = select([0.6, 0.55, 0.4, 0.3], positive_score=0.8, **{"count": 9, **settings})

    assert found.rows == rows
    assert {name: count for name, count in found.rejected.items() if count} == {reason: 2}


def test_softmax_draws_by_score():
    scores = np.log([0.5, 0.3, 0.15, 0.05])

    drawn = [
        select(scores, positive_score=2.0, count=1, sampling="softmax", sampling_temperature=1.0,
               key=np.array([k], dtype=np.uint64)).rows[0][0]
        for k in range(4000)
    ]  # fmt: skip

    assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_a_pair_is_consistent_when_its_worst_positive_is_among_the_first():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]] * 3, dtype=np.float32)
    positive = np.array([[True, False, False, True], [False] * 4, [False, True, False, False]])
    worst = np.array([0.6, 0.95, 0.8], dtype=np.float32)

    assert is_consistent(scores, positive, worst, top_k=2).tolist() == [False, True, True]
    assert is_consistent(scores, positive, worst, top_k=3).tolist() == [True, True, True]


def test_too_few_candidates_give_fewer_and_never_a_rejected_one():
    """Defect of a peer: with one legal negative and three asked for, it returned two rejected documents."""
    found = select([0.9, 0.89, 0.88, 0.3], positive_score=0.9, count=3)

    assert found.rows == [[3]]


def test_ranks_are_counted_without_the_positives():
    found = select(
        [0.9, 0.8, 0.7, 0.6, 0.5], positive_score=0.95, is_positive=[True, False, False, False, False],
        rank_from=2, rank_to=3, count=9,
    )  # fmt: skip

    assert found.rows == [[2, 3]]


def test_a_positive_is_never_chosen_whatever_its_score():
    generator = np.random.default_rng(0)
    for trial in range(200):
        scores = np.sort(generator.uniform(-1, 1, 12))[::-1]
        positive = generator.random(12) < 0.5
        found = select(scores, positive_score=0.9, is_positive=positive, key=np.array([trial], dtype=np.uint64))
        assert not positive[found.rows[0]].any()
        assert len(found.rows[0]) <= 2


def test_the_draw_follows_from_the_key_alone_and_spreads_over_the_window():
    scores = np.linspace(0.5, 0.1, 20)

    drawn = [
        select(scores, positive_score=0.9, count=1, key=np.array([k], dtype=np.uint64)).rows[0][0] for k in range(400)
    ]

    again = select(scores, positive_score=0.9, count=1, key=np.array([3], dtype=np.uint64))
    assert again.rows[0][0] == drawn[3]
    assert min(np.bincount(drawn, minlength=20)) >= 5  # 20 on average


@pytest.mark.parametrize("text", ["The Answer", " the  answer\n"])
def test_combining_drops_what_repeats_a_positive(text):
    mined = [Negative(text=text, origin="mined"), Negative(text="other", origin="mined")]

    assert [one.text for one in combine([], mined, ["the answer"], count=2, llm_fraction=0.3)] == ["other"]


def test_given_negatives_come_first_and_written_ones_stay_within_their_share():
    existing = [Negative(text=f"w{i}", origin="synthetic") for i in range(5)] + [Negative(text="g", origin="given")]
    mined = [Negative(text=f"m{i}", origin="mined") for i in range(9)]

    kept = combine(existing, mined, ["p"], count=10, llm_fraction=0.3)

    assert [one.text for one in kept] == ["g", "w0", "w1", "w2", "m0", "m1", "m2", "m3", "m4", "m5"]
