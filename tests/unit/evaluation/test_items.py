"""Scores from items, and how sure a difference is, beside scipy, scikit-learn and mteb."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import datasets
import mteb
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from qzhou.evaluation.judge.mteb_models import MtebEncoder
from qzhou.evaluation.judge.per_example_scores import (
    Part,
    PerExampleScores,
    paired_difference,
    pooled_difference,
    score_interval,
)
from qzhou.evaluation.judge.predictions import PAIR_MEASURES, per_example_scores_of
from tests.unit.evaluation import test_tasks as known

GENERATOR = np.random.default_rng(5)


def items(statistic, values, gold=(), ids=()):
    return PerExampleScores(statistic, (Part("default/test", tuple(values), tuple(ids), tuple(gold)),))


def test_each_statistic_is_that_of_a_library():
    gold = GENERATOR.integers(0, 4, 60).astype(float)
    cosines = np.round(gold / 9 + GENERATOR.normal(size=60), 1)  # rounded, so that some are equal

    assert items("mean", cosines).score == pytest.approx(cosines.mean())
    assert items("spearman", cosines, gold).score == pytest.approx(stats.spearmanr(cosines, gold).statistic)
    hits = gold > 2
    expected = average_precision_score(hits, cosines)
    assert items("average_precision", cosines, hits.astype(float)).score == pytest.approx(expected)


@pytest.mark.parametrize("statistic", ["mean", "spearman"])
def test_intervals_of_a_difference_are_those_of_scipy(statistic):
    gold = GENERATOR.normal(size=80)
    one, other = gold + GENERATOR.normal(size=80), gold + 2 * GENERATOR.normal(size=80)

    def ahead(one, other, gold):
        if statistic == "mean":
            return np.mean(one) - np.mean(other)
        return stats.spearmanr(one, gold).statistic - stats.spearmanr(other, gold).statistic

    expected = stats.bootstrap(
        (one, other, gold), ahead, paired=True, vectorized=False, n_resamples=2000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    given = () if statistic == "mean" else gold
    found = paired_difference(items(statistic, one, given), items(statistic, other, given), seed=0)

    assert found.value == pytest.approx(ahead(one, other, gold))
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.1 * width)
    assert found.high == pytest.approx(expected.high, abs=0.1 * width)


def test_pairing_sees_what_two_intervals_would_hide():
    # how hard a query is weighs far more than which model is asked
    hard = GENERATOR.normal(size=200)
    one, other = (items("mean", hard + 0.05), items("mean", hard + 0.001 * GENERATOR.normal(size=200)))

    found = paired_difference(one, other, seed=0)

    assert found.low > 0.04
    assert score_interval(one, seed=0).low < score_interval(other, seed=0).high


def test_models_that_were_judged_on_other_items_are_not_compared():
    assert paired_difference(items("mean", [1, 0], ids="ab"), items("mean", [1, 0], ids="ac"), seed=0) is None
    assert paired_difference(items("mean", [1, 0]), items("mean", [1, 0, 1]), seed=0) is None
    assert paired_difference(items("spearman", [1, 0], [1, 2]), items("spearman", [1, 0], [2, 1]), seed=0) is None


def test_the_same_items_over_other_data_are_not_compared():
    here, there = (
        PerExampleScores("mean", items("mean", [1, 0] * 9, ids="abcdefghijklmnopqr").parts, data) for data in "xy"
    )

    assert paired_difference(here, there, seed=0) is None
    assert pooled_difference([([here], [there])], seed=0) is None
    assert paired_difference(here, here, seed=0).value == 0


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_of_a_few_items_nothing_is_sure(count):
    one, other = items("mean", [0.9] * count), items("mean", [0.1] * count)

    assert (paired_difference(one, other, seed=0).low, paired_difference(one, other, seed=0).high) == (-2, 2)
    assert (score_interval(one, seed=0).low, score_interval(one, seed=0).high) == (-1, 1)
    assert pooled_difference([([one], [other])], seed=0).low == -2


@pytest.mark.parametrize(("count", "most"), [(10, 0.08), (30, 0.08)])
def test_two_equal_models_are_seldom_surely_apart(count, most):
    """A percentile bootstrap says so of ten items in every tenth comparison."""
    draws = np.random.default_rng(11).normal(size=(300, 2, count))
    found = [paired_difference(items("mean", one), items("mean", other), seed=0) for one, other in draws]

    assert np.mean([one.low > 0 or one.high < 0 for one in found]) <= most


def test_a_query_that_is_asked_of_several_trainings_counts_once():
    one, other = GENERATOR.normal(size=(3, 90)) + 0.3, GENERATOR.normal(size=(3, 90))
    ours, theirs = ([items("mean", values) for values in rows] for rows in (one, other))
    averaged = [items("mean", values.mean(axis=0)) for values in (one, other)]

    found = pooled_difference([(ours, theirs)], seed=0)
    once = pooled_difference([([averaged[0]], [averaged[1]])], seed=0)

    assert [found.low, found.high] == pytest.approx([once.low, once.high])
    assert found.value == pytest.approx(one.mean() - other.mean())


def test_pooled_limits_of_several_tasks_are_those_of_the_formula():
    """Tasks are drawn from one by one, and their mean is compared."""
    first, second = GENERATOR.normal(size=(2, 70)), 2 * GENERATOR.normal(size=(2, 40))

    def drawn(rows, generator):
        place = generator.integers(rows.shape[1], size=(4000, rows.shape[1]))
        return (rows[0] - rows[1])[place].mean(axis=1)

    generator = np.random.default_rng(3)
    expected = np.quantile((drawn(first, generator) + drawn(second, generator)) / 2, [0.025, 0.975])
    tasks = [([items("mean", rows[0])], [items("mean", rows[1])]) for rows in (first, second)]
    found = pooled_difference(tasks, seed=0)

    assert found.value == pytest.approx(((first[0] - first[1]).mean() + (second[0] - second[1]).mean()) / 2)
    assert [found.low, found.high] == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))


def test_trainings_that_were_judged_on_other_items_are_not_pooled():
    one, other = items("mean", [1, 0], ids="ab"), items("mean", [1, 0], ids="ac")

    assert pooled_difference([([one, one], [one, other])], seed=0) is None
    assert pooled_difference([], seed=0) is None


def test_draws_follow_the_seed_and_json_changes_nothing():
    some = items("spearman", GENERATOR.normal(size=30), GENERATOR.normal(size=30))

    again = PerExampleScores.from_json(json.loads(json.dumps(asdict(some))))

    assert again == some
    assert score_interval(some, seed=3) == score_interval(again, seed=3) != score_interval(some, seed=4)


def pairs(scores):
    return [
        known.PairExample(
            id=f"{n}",
            dataset="d",
            text_a=known.TOPICS[n % 6],
            text_b=f"{known.TOPICS[n % 6]} {known.TOPICS[n * n % 6]}",
            score=n % scores,
        )
        for n in range(12)
    ]


TEXTS = [known.text(f"{known.TOPICS[n % 3]} {n}{' dates' * (n % 4 == 0)}", known.TOPICS[n % 3]) for n in range(40)]
TEXTS += [known.text(f"graphs {n}", known.TOPICS[n % 3]) for n in range(9)]
SWAPPED = [
    known.retrieval("how sorting", "files is done so"),
    known.retrieval("sums files", "sums"),
    *known.ASKED[1:],
]
ALL = {"max_rows": 99, "seed": 0}
TASKS = {
    "retrieval": lambda: known.task_of(SWAPPED),
    "graded": lambda: known.collection(extra=[("q1", "d4", 2)]),
    "sts": lambda: known.sts_task("d", pairs(3), **ALL),
    "pair_classification": lambda: known.pair_classification_task("d", pairs(2), **ALL),
    "classification": lambda: known.classification_task("d", TEXTS, **ALL),
}


@pytest.mark.parametrize("kind", TASKS)
def test_the_items_of_a_task_add_up_to_the_score_of_mteb(kind, tmp_path):
    task, model = TASKS[kind](), MtebEncoder(known.WordEncoder(), {}, name="words")
    judged = mteb.evaluate(
        model, task, cache=None, prediction_folder=tmp_path, show_progress_bar=False, co2_tracker=False
    )
    score = judged.task_results[0].get_score()

    found = per_example_scores_of(task, tmp_path, score)

    assert found is not None
    assert found.score == pytest.approx(score, abs=1e-4)
    assert abs(score) < 1, "the task tells models apart"
    assert per_example_scores_of(task, tmp_path, score + 0.1) is None, "items that do not add up are not used"


@pytest.mark.parametrize("measure", PAIR_MEASURES)
def test_pair_classification_keeps_its_items_whichever_measure_wins(tmp_path, measure):
    """mteb's max_ap is the best of five; where Manhattan led by 0.0005, the interval was gone."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    values = {one: random.uniform(0, 1, 60) for one in PAIR_MEASURES}
    values[measure] = random.normal(labels, 0.7)
    if measure.endswith("distances"):
        values[measure] = -values[measure]
    (tmp_path / "pairs_predictions.json").write_text(
        json.dumps({"default": {"test": {name: list(map(float, one)) for name, one in values.items()}}})
    )
    data = datasets.Dataset.from_dict({"labels": labels.tolist()})
    task = SimpleNamespace(
        metadata=SimpleNamespace(
            name="pairs", type="PairClassification", main_score="max_ap", dataset={"revision": "r"}
        ),
        dataset={"default": {"test": data}},
        label_column_name="labels",
    )
    likeness = -values[measure] if measure.endswith("distances") else values[measure]

    found = per_example_scores_of(task, tmp_path, average_precision_score(labels, likeness))

    assert found is not None
    assert found.parts[0].values == pytest.approx(likeness)
