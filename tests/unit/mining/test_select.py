"""Negatives: a positive never stands in a negative slot, and rejected documents never come back."""

import dataclasses

import numpy as np
import pytest

from qzhou.config.mining import MiningSection
from qzhou.data.records import Negative
from qzhou.data.text_digests import digests, key_digests
from qzhou.mining.negative_selection import (
    Ranking,
    combine,
    existing_negatives,
    is_consistent,
    leave_one_out_false_negatives,
    select_negatives,
)

KEY = np.array([7], dtype=np.uint64)


def ranking(scores, *, positive_score, is_positive=None, rows=None, repeats=None, own=None) -> Ranking:
    """What a teacher says of one query."""
    score = np.array([scores], dtype=np.float32)
    no = [False] * score.shape[1]
    return Ranking(
        score_NK=score,
        row_NK=np.array([range(score.shape[1]) if rows is None else rows]),
        key_NK=np.array([range(score.shape[1]) if rows is None else rows], dtype=np.uint64),
        is_positive_NK=np.array([no if is_positive is None else is_positive]),
        is_own_NK=np.array([no if own is None else own]),
        is_repeat_NK=np.array([no if repeats is None else repeats]),
        positive_score_N=np.array([positive_score], dtype=np.float32),
    )


def settings_of(*, count=2, ratio=0.95, **settings) -> MiningSection:
    everything = {"rank_from": 1, "rank_to": 99, "positive_ratio": ratio, "negatives_per_query": count}
    return MiningSection(**{**everything, **settings})


def select(scores, *, positive_score, is_positive=None, key=KEY, repeats=None, own=None, **settings):
    one = ranking(scores, positive_score=positive_score, is_positive=is_positive, repeats=repeats, own=own)
    return select_negatives([one], key, settings_of(**settings))


def test_documents_too_close_to_the_positive_are_refused():
    found = select([0.99, 0.951 * 0.8, 0.75, 0.1], positive_score=0.8, count=9)

    assert sorted(found.rows[0]) == [2, 3]
    assert found.rejected["too close to the positive"] == 2


def test_the_ratio_is_right_for_a_negative_positive_score():
    """Defect of a peer: a plain product lets documents above a negative positive pass."""
    found = select([-0.10, -0.20, -0.22, -0.9], positive_score=-0.2, count=9)

    assert sorted(found.rows[0]) == [2, 3]  # the ceiling is -0.2 - 0.05 * 0.2 = -0.21


@pytest.mark.parametrize(("margin", "rows"), [(None, [0, 1, 2]), (0.1, [1, 2])])
def test_without_a_ratio_only_the_margin_limits(margin, rows):
    found = select([0.79, 0.65, 0.1], positive_score=0.8, count=9, ratio=None, margin=margin)

    assert sorted(found.rows[0]) == rows


@pytest.mark.parametrize(
    ("settings", "rows", "reason"),
    [
        ({"margin": 0.3}, [[2, 3]], "too close to the positive"),
        ({"max_score": 0.45}, [[2, 3]], "above max_score"),
        ({"min_score": 0.45}, [[0, 1]], "below min_score"),
        ({"repeats": [False, True, False, True]}, [[0, 2]], "repeats a positive"),
        ({"own": [True, False, True, False]}, [[1, 3]], "is a negative already"),
        ({"sampling": "top", "count": 2}, [[0, 1]], "not drawn"),
    ],
)
def test_each_criterion_refuses_what_it_says(settings, rows, reason):
    found = select([0.6, 0.55, 0.4, 0.3], positive_score=0.8, **{"count": 9, **settings})

    assert [sorted(one) for one in found.rows] == rows
    assert {name: count for name, count in found.rejected.items() if count} == {reason: 2}


def test_softmax_draws_by_score():
    scores = np.log([0.5, 0.3, 0.15, 0.05])
    settings = settings_of(count=1, sampling="softmax", sampling_temperature=1.0)
    one = dataclasses.asdict(ranking(scores, positive_score=2.0))
    many = Ranking(**{name: np.repeat(array, 4000, axis=0) for name, array in one.items()})

    found = select_negatives([many], np.arange(4000, dtype=np.uint64), settings)

    drawn = [rows[0] for rows in found.rows]
    assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_a_pair_is_consistent_when_its_worst_positive_is_among_the_first():
    three = Ranking(
        score_NK=np.array([[0.9, 0.8, 0.7, 0.6]] * 3, dtype=np.float32),
        row_NK=np.array([range(4)] * 3),
        key_NK=np.array([range(4)] * 3, dtype=np.uint64),
        is_positive_NK=np.array([[True, False, False, True], [False] * 4, [False, True, False, False]]),
        is_own_NK=np.zeros((3, 4), dtype=bool),
        is_repeat_NK=np.zeros((3, 4), dtype=bool),
        positive_score_N=np.array([0.6, 0.95, 0.8], dtype=np.float32),
    )

    assert is_consistent(three, top_k=2).tolist() == [False, True, True]
    assert is_consistent(three, top_k=3).tolist() == [True, True, True]


def test_a_document_that_one_teacher_refuses_is_chosen_by_none():
    """Row 7 is too close to the positive for the second teacher, and row 8 is named by both and taken once."""
    first = ranking([0.7, 0.6, 0.5], positive_score=0.9, rows=[7, 8, 9])
    second = ranking([0.88, 0.4, 0.3], positive_score=0.9, rows=[7, 8, 5])

    found = select_negatives([first, second], KEY, settings_of(count=9))

    assert sorted(found.rows[0]) == [5, 8, 9]
    assert found.rejected["refused by another teacher"] == 1
    assert found.rejected["too close to the positive"] == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("teachers", [2, 3])
def test_what_teachers_refuse_each_other_is_what_comparing_every_pair_of_documents_refuses(teachers, seed):
    generator = np.random.default_rng(seed)
    row = np.stack([[generator.permutation(60)[:20] for _ in range(50)] for _ in range(teachers)])
    score = -np.sort(-generator.uniform(-0.2, 1, row.shape).astype(np.float32), axis=2)
    score[:, :, 17:] = -np.inf  # the search found fewer
    named = digests(f"document {number}" for number in range(60))
    rankings = [
        Ranking(
            score_NK=score[number],
            row_NK=row[number],
            key_NK=named[row[number]],
            is_positive_NK=row[number] < 5,
            is_own_NK=row[number] == 7,
            is_repeat_NK=row[number] == 8,
            positive_score_N=np.full(50, 0.7, np.float32),
        )
        for number in range(teachers)
    ]  # fmt: skip
    settings = settings_of(count=99, rank_from=3, rank_to=12)

    found = select_negatives(rankings, np.arange(50, dtype=np.uint64), settings)

    expected, vetoes = by_pairs(rankings, settings)
    assert [sorted(rows) for rows in found.rows] == expected
    assert found.rejected["refused by another teacher"] == vetoes > 0
    assert sum(map(len, expected)) > 50


def by_pairs(rankings, settings):
    """The rows that no teacher refuses, and how many were vetoed, with every two documents of a query compared."""
    names = [select_negatives([one], np.zeros(len(one.row_NK), np.uint64), settings).rows for one in rankings]
    allowed = [np.array([np.isin(row, own) for row, own in zip(one.row_NK, rows, strict=True)])
               for one, rows in zip(rankings, names, strict=True)]  # fmt: skip
    ranked = [one.is_there & ~one.is_positive_NK & (one.rank <= settings.rank_to) for one in rankings]
    refused = [early & ~fine for early, fine in zip(ranked, allowed, strict=True)]
    vetoes = 0
    for number, ranking in enumerate(rankings):
        for other, rival in enumerate(rankings):
            if other == number:
                continue
            same_NKK = ranking.row_NK[:, :, None] == rival.row_NK[:, None, :]
            vetoed = allowed[number] & (same_NKK & refused[other][:, None, :]).any(axis=2)
            vetoes += int(vetoed.sum())
            allowed[number] = allowed[number] & ~vetoed
            if other < number:
                allowed[number] &= ~(same_NKK & allowed[other][:, None, :]).any(axis=2)
    rows = [[] for _ in rankings[0].row_NK]
    for one, fine in zip(rankings, allowed, strict=True):
        for query, own in enumerate(one.row_NK):
            rows[query] += own[fine[query]].tolist()
    return [sorted(own) for own in rows], vetoes


def test_what_a_teacher_ranks_before_the_window_is_refused_for_all():
    """Its best documents are the likeliest answers that nobody labelled."""
    first = ranking([0.7, 0.6, 0.5], positive_score=0.9, rows=[1, 7, 8])
    second = ranking([0.95, 0.4, 0.3], positive_score=0.8, rows=[7, 2, 3])

    found = select_negatives([first, second], KEY, settings_of(count=9, rank_from=2))

    assert 7 not in found.rows[0]
    assert found.rejected["refused by another teacher"] == 1


def test_negatives_come_in_the_order_of_their_draw_so_that_a_cut_list_is_still_a_draw():
    scores = np.linspace(0.5, 0.1, 20)

    first = [
        select(scores, positive_score=0.9, count=4, key=np.array([k], dtype=np.uint64)).rows[0][0]
        for k in range(400)
    ]

    assert min(np.bincount(first, minlength=20)) >= 5  # 20 on average


@pytest.mark.parametrize(("combine", "rows"), [("each", [1, 2, 11, 12]), ("union", [1, 2, 11, 12])])
def test_teachers_take_turns_or_are_merged_by_rank(combine, rows):
    first = ranking([0.9, 0.8, 0.7], positive_score=2.0, rows=[1, 2, 3])
    second = ranking([0.3, 0.2, 0.1], positive_score=2.0, rows=[11, 12, 13])

    found = select_negatives([first, second], KEY, settings_of(count=4, sampling="top", combine=combine))

    assert sorted(found.rows[0]) == rows


def test_what_is_a_negative_already_is_not_drawn_and_takes_no_turn_of_a_teacher():
    first = ranking([0.9, 0.8, 0.7], positive_score=2.0, rows=[1, 2, 3], own=[True, False, False])
    second = ranking([0.3, 0.2, 0.1], positive_score=2.0, rows=[11, 12, 13])
    settings = settings_of(count=3, sampling="top", combine="each")
    given = [Negative(text="document 1", origin="given")]

    found = select_negatives([first, second], KEY, settings)
    mined = [Negative(text=f"document {row}", origin="mined") for row in found.rows[0]]

    kept = combine(given, mined, set(), count=3)
    assert [one.text for one in kept] == ["document 1", "document 2", "document 11"]


def test_each_teacher_keeps_its_share_whatever_the_draw():
    first = ranking(np.linspace(0.9, 0.8, 30), positive_score=2.0, rows=range(30))
    second = ranking([0.3, 0.2, 0.1], positive_score=2.0, rows=[111, 112, 113])

    shares = [
        sum(row > 100 for row in select_negatives(
            [first, second], np.array([k], dtype=np.uint64), settings_of(count=4, combine="each")
        ).rows[0])
        for k in range(20)
    ]  # fmt: skip

    assert shares == [2] * 20


@pytest.mark.parametrize(
    ("hidden_score", "admitted"),
    # the other positive has 0.8: the ceiling is 0.76; min_score 0.4
    [(0.5, True), (0.77, False), (0.35, False)],
)
def test_a_hidden_positive_is_admitted_when_it_passes_every_criterion(hidden_score, admitted):
    scores = sorted([0.8, hidden_score, 0.45], reverse=True)
    positive = [score != 0.45 for score in scores]
    one = ranking(scores, positive_score=min(0.8, hidden_score), is_positive=positive)

    found = leave_one_out_false_negatives(one, np.array([0.8], dtype=np.float32), settings_of(min_score=0.4))

    assert found[0].tolist() == [score == np.float32(hidden_score) and admitted for score in np.float32(scores)]
    alone = leave_one_out_false_negatives(one, np.array([np.nan], dtype=np.float32), settings_of())
    assert not alone.any()


def test_too_few_candidates_give_fewer_and_never_a_rejected_one():
    """Defect of a peer: with one legal negative and three asked for, it returned two rejected documents."""
    found = select([0.9, 0.89, 0.88, 0.3], positive_score=0.9, count=3)

    assert sorted(found.rows[0]) == [3]


def test_ranks_are_counted_without_the_positives():
    found = select(
        [0.9, 0.8, 0.7, 0.6, 0.5], positive_score=0.95, is_positive=[True, False, False, False, False],
        rank_from=2, rank_to=3, count=9,
    )  # fmt: skip

    assert sorted(found.rows[0]) == [2, 3]


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
        select(scores, positive_score=0.9, count=1, key=np.array([k], dtype=np.uint64)).rows[0][0]
        for k in range(400)
    ]

    again = select(scores, positive_score=0.9, count=1, key=np.array([3], dtype=np.uint64))
    assert again.rows[0][0] == drawn[3]
    assert min(np.bincount(drawn, minlength=20)) >= 5  # 20 on average


@pytest.mark.parametrize("text", ["The Answer", " the  answer\n"])
def test_combining_drops_what_repeats_a_positive(text):
    mined = [Negative(text=text, origin="mined"), Negative(text="other", origin="mined")]

    relevant_keys = set(key_digests(["the answer"]).tolist())
    assert [one.text for one in combine([], mined, relevant_keys, count=2)] == ["other"]


def test_given_negatives_come_first_and_written_ones_stay_within_their_share():
    existing = [Negative(text=f"w{i}", origin="synthetic") for i in range(5)] + [Negative(text="g", origin="given")]
    mined = [Negative(text=f"m{i}", origin="mined") for i in range(9)]

    own = existing_negatives(existing, set(), settings_of(count=10, llm_negative_fraction=0.3))
    kept = combine(own, mined, set(), count=10)

    assert [one.text for one in kept] == ["g", "w0", "w1", "w2", "m0", "m1", "m2", "m3", "m4", "m5"]


@pytest.mark.parametrize(("later", "rows"), [(0, []), (4, []), (5, [4]), (9, [4, 5])])
def test_a_query_whose_window_is_too_close_takes_from_behind_it(later, rows):
    """Ranks 1 to 3 and the next are above the limit of 0.76, rank 5 is the first below."""
    scores = [0.99, 0.98, 0.97, 0.96, 0.5, 0.4, 0.3]

    found = select(scores, positive_score=0.8, rank_to=3, later_rank_to=later, sampling="top")

    assert found.rows == [rows]
    assert found.scores == [pytest.approx([scores[row] for row in rows])]
    assert found.later == ((0,) if rows else ())


def test_other_queries_keep_what_their_window_gave():
    scores = np.array([[0.99, 0.98, 0.5, 0.4], [0.7, 0.6, 0.5, 0.4], [0.9, 0.9, 0.9, 0.9]], dtype=np.float32)
    no = np.zeros(scores.shape, dtype=bool)
    row = np.tile(np.arange(4), (3, 1))
    one = Ranking(scores, row, row.astype(np.uint64), no, no, no, np.full(3, 0.8, dtype=np.float32))
    keys = np.arange(3, dtype=np.uint64)
    settings = {"rank_to": 2, "sampling": "top"}

    found = select_negatives([one, one], keys, settings_of(**settings, later_rank_to=4))

    assert found.rows == [[2, 3], [0, 1], []]
    assert found.later == (0,)
    assert found.rows[1] == select_negatives([one, one], keys, settings_of(**settings)).rows[1]
