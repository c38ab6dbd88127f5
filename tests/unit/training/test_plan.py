"""The batch plan: a pure function of (seed, step)."""

import numpy as np
import pytest

from qzhou.errors import DataError
from qzhou.learning import StageSection
from qzhou.training.plan import BatchPlan, DatasetSize

SETS = [DatasetSize("big", "retrieval", 900), DatasetSize("small", "retrieval", 100), DatasetSize("sts", "pair", 300),
        DatasetSize("cls", "classification", 200)]  # fmt: skip


def plan(datasets=SETS, seed=1, alpha=0.5, **changes):
    settings = {"steps": 1000, "learning_rate": 1e-4, "batch_size": 8, "cosent_batch_size": 24, "retrieval_share": 0.72}
    return BatchPlan(datasets, StageSection(**settings | changes), alpha=alpha, seed=seed)


def test_a_step_is_the_same_in_a_new_plan_and_in_a_longer_one():
    for step in (0, 17, 999):
        first, again, longer = (one.at(step) for one in (plan(), plan(), plan(steps=5000)))
        assert first.dataset == again.dataset == longer.dataset
        assert (first.rows == again.rows).all()
        assert (first.rows == longer.rows).all()


def test_another_seed_draws_other_batches():
    assert any((plan(seed=1).at(step).rows[:3] != plan(seed=2).at(step).rows[:3]).any() for step in range(5))


def test_the_share_of_retrieval_steps_is_eta_in_any_run_of_steps():
    retrieval = np.array([plan().at(step).task == "retrieval" for step in range(1000)])

    assert retrieval.sum() == 720
    for length in (10, 50, 333):
        runs = np.convolve(retrieval, np.ones(length), "valid")
        assert abs(runs - 0.72 * length).max() <= 1


def test_a_dataset_is_drawn_in_proportion_to_rows_to_the_alpha():
    drawn = [plan(alpha=0.5).at(step).dataset for step in range(1000)]

    expected = 720 * 900**0.5 / (900**0.5 + 100**0.5)
    assert drawn.count("big") == pytest.approx(expected, abs=4 * (720 * 0.75 * 0.25) ** 0.5)


def test_batches_come_from_one_dataset_with_the_size_of_its_loss():
    for step in range(50):
        batch = plan().at(step)
        assert len(batch.rows) == (24 if batch.task == "pair" else 8)


def test_every_row_is_seen_before_any_is_seen_twice():
    alone = plan([DatasetSize("one", "retrieval", 100)], retrieval_share=1.0, batch_size=8)

    seen = np.concatenate([alone.at(step).rows for step in range(25)])  # 200 rows: two epochs

    assert sorted(seen[:100]) == list(range(100))
    assert sorted(seen[100:]) == list(range(100))
    assert (seen[:100] != seen[100:]).any()


def test_a_dataset_smaller_than_the_batch_gives_all_it_has():
    batch = plan([DatasetSize("one", "retrieval", 5)], retrieval_share=1.0).at(0)

    assert sorted(batch.rows) == [0, 1, 2, 3, 4]


def test_a_share_without_datasets_to_fill_it_is_refused():
    with pytest.raises(DataError, match="no pair or classification examples"):
        plan(SETS[:2])
    with pytest.raises(DataError, match="'empty' has no training examples"):
        plan([*SETS, DatasetSize("empty", "pair", 0)])
