"""The batch plan: a pure function of (seed, step)."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qzhou.config.training import StageSection
from qzhou.errors import DataError
from qzhou.training.batch_plan import BatchPlan, DatasetSize
from qzhou.training.permutation import permuted
from qzhou.training.worker import announce

SETS = [DatasetSize("big", "retrieval", 900), DatasetSize("small", "retrieval", 100), DatasetSize("sts", "pair", 300),
        DatasetSize("cls", "classification", 200)]  # fmt: skip


def plan(datasets=SETS, seed=1, alpha=0.5, grouping="dataset", **changes):
    settings = {
        "steps": 1000,
        "learning_rate": 1e-4,
        "batch_size": 8,
        "cosent_batch_size": 24,
        "retrieval_share": 0.72,
    }
    return BatchPlan(datasets, StageSection(**settings | changes), alpha=alpha, seed=seed, grouping=grouping)


def plain(batch):
    return [(part.dataset, part.task, part.rows.tolist()) for part in batch.parts]


@pytest.mark.parametrize("grouping", ["dataset", "task", "none"])
def test_a_step_is_the_same_in_a_new_plan_and_in_a_longer_one(grouping):
    first, again, longer = (
        plan(grouping=grouping), plan(grouping=grouping), plan(grouping=grouping, steps=5000),
    )  # fmt: skip
    for step in (0, 17, 999):
        assert plain(first.at(step)) == plain(again.at(step)) == plain(longer.at(step))


def test_another_seed_draws_other_batches():
    assert any(plain(plan(seed=1).at(step)) != plain(plan(seed=2).at(step)) for step in range(5))


@pytest.mark.parametrize("grouping", ["dataset", "task"])
def test_the_share_of_retrieval_steps_is_eta_in_any_run_of_steps(grouping):
    made = plan(grouping=grouping)
    retrieval = np.array([made.at(step).task == "retrieval" for step in range(1000)])

    assert retrieval.sum() == 720
    for length in (10, 50, 333):
        runs = np.convolve(retrieval, np.ones(length), "valid")
        assert abs(runs - 0.72 * length).max() <= 1


def test_a_dataset_is_drawn_in_proportion_to_rows_to_the_alpha():
    made = plan(alpha=0.5)
    drawn = [made.at(step).dataset for step in range(1000)]

    expected = 720 * 900**0.5 / (900**0.5 + 100**0.5)
    assert drawn.count("big") == pytest.approx(expected, abs=4 * (720 * 0.75 * 0.25) ** 0.5)


def test_grouped_by_dataset_a_batch_is_of_one_dataset_with_the_size_of_its_loss():
    made = plan()
    for step in range(50):
        batch = made.at(step)
        assert len(batch.parts) == 1
        assert batch.size == (24 if batch.task == "pair" else 8)


def test_grouped_by_task_a_batch_mixes_the_datasets_of_one_task_in_their_shares():
    made = plan(grouping="task")
    rows = dict.fromkeys(("big", "small"), 0)
    for step in range(1000):
        batch = made.at(step)
        assert batch.task != "mixed"
        assert batch.size == (24 if batch.task == "pair" else 8)
        for part in batch.parts:
            if part.dataset in rows:
                rows[part.dataset] += len(part.rows)

    share = rows["big"] / sum(rows.values())
    assert share == pytest.approx(30 / 40, abs=4 * (0.75 * 0.25 / sum(rows.values())) ** 0.5)


def test_without_grouping_rows_of_all_tasks_share_a_batch_and_eta_is_a_share_of_rows():
    made = plan(grouping="none", steps=500)
    batches = [made.at(step) for step in range(500)]
    retrieval = sum(len(part.rows) for batch in batches for part in batch.parts if part.task == "retrieval")

    assert all(batch.size == 8 for batch in batches)
    assert any(batch.task == "mixed" for batch in batches)
    assert retrieval / 4000 == pytest.approx(0.72, abs=4 * (0.72 * 0.28 / 4000) ** 0.5)


@pytest.mark.parametrize("grouping", ["dataset", "task", "none"])
def test_every_row_is_seen_before_any_is_seen_twice(grouping):
    sets = [DatasetSize("one", "retrieval", 100), DatasetSize("other", "retrieval", 40)]
    made = plan(sets, retrieval_share=1.0, batch_size=8, grouping=grouping, steps=200)

    for dataset in sets:
        parts = [part.rows for step in range(200) for part in made.at(step).parts if part.dataset == dataset.name]
        seen = np.concatenate(parts)
        for epoch in range(len(seen) // dataset.rows):
            rows = seen[epoch * dataset.rows : (epoch + 1) * dataset.rows]
            assert sorted(rows) == list(range(dataset.rows))
        assert (seen[: dataset.rows] != seen[dataset.rows : 2 * dataset.rows]).any()


@pytest.mark.parametrize("grouping", ["dataset", "task", "none"])
def test_epochs_are_rows_drawn_by_rows_there(grouping):
    made = plan(grouping=grouping, steps=400)

    drawn = Counter()
    for step in range(400):
        for part in made.at(step).parts:
            drawn[part.dataset] += len(part.rows)
    assert made.epochs == pytest.approx({one.name: drawn[one.name] / one.rows for one in SETS}, rel=0.01)
    assert plan([DatasetSize("few", "pair", 6)], retrieval_share=0.0, steps=50).epochs == {"few": 50.0}


@pytest.mark.parametrize(("steps", "is_said"), [(60, False), (400, True)])
def test_rows_that_are_read_again_and_again_are_said_once(steps, is_said, capsys):
    sets = [DatasetSize("few", "pair", 120), DatasetSize("many", "pair", 10_000)]
    made = plan(sets, retrieval_share=0.0, steps=steps, alpha=0.0, cosent_batch_size=24)

    announce("stage2", made, None)
    said = capsys.readouterr().out
    announce("stage2", made, 5)
    later = capsys.readouterr().out

    assert ("the 120 rows of few are read 39 times each" in said) == is_said
    assert "10,000" not in said
    assert later == "training: stage2: continues after step 5\n"


def test_a_dataset_smaller_than_the_batch_gives_all_it_has():
    batch = plan([DatasetSize("one", "retrieval", 5)], retrieval_share=1.0).at(0)

    assert sorted(batch.parts[0].rows) == [0, 1, 2, 3, 4]


def test_a_share_without_datasets_to_fill_it_is_refused():
    with pytest.raises(DataError, match="no pair or classification examples"):
        plan(SETS[:2])
    with pytest.raises(DataError, match="no retrieval examples"):
        plan(SETS[2:])
    with pytest.raises(DataError, match="'empty' has no training examples"):
        plan([*SETS, DatasetSize("empty", "pair", 0)])


def test_a_hundred_million_rows_are_planned_in_the_memory_of_a_batch():
    """Defect of peers: samplers that hold an index of every row."""
    sets = [DatasetSize("huge", "retrieval", 10**8), DatasetSize("larger", "retrieval", 3 * 10**8)]
    tracemalloc.start()
    made = plan(sets, retrieval_share=1.0, batch_size=256)
    batches = [made.at(step) for step in range(50)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2**20
    assert len({row for batch in batches for part in batch.parts for row in part.rows.tolist()}) == 50 * 256


@given(rows=st.integers(1, 3000), key=st.tuples(st.integers(0, 2**32), st.integers(0, 100)))
def test_a_permutation_gives_each_row_once(rows, key):
    assert sorted(permuted(np.arange(rows), rows=rows, key=key)) == list(range(rows))


def test_a_permutation_looks_random():
    """Neighbours are not neighbours again, and places are even."""
    order = permuted(np.arange(10_000), rows=10_000, key=(1, 2))

    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.04
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04
    assert (permuted(np.arange(10_000), rows=10_000, key=(1, 3)) != order).mean() > 0.99
