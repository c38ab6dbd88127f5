"""What an experiment says: means, intervals and differences, compared with scipy; the table and the plot."""

import json
import re
from dataclasses import asdict

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy import stats

from qzhou.data.storage import Folder
from qzhou.evaluation.comparison import Row
from qzhou.evaluation.judge.per_example_scores import Part, PerExampleScores, pooled_difference
from qzhou.evaluation.judge.task_scores import TaskScore
from qzhou.experiments.page import INK, INTERVAL, SEEDS, results_page
from qzhou.experiments.results import ONE_SEED, Outcome, as_json, compared, table
from qzhou.experiments.settings import Experiment
from qzhou.experiments.statistics import Spread, over_seeds

GENERATOR = np.random.default_rng(2)
ITEMS = 50
LIGHT, DARK = "#ffffff", "#0d1117"


def experiment(**settings):
    variants = [{"name": name, "settings": {"training.workers": n}} for n, name in enumerate("abc", 1)]
    scores = [{"task": "one"}, {"type": "Retrieval"}]
    return Experiment.model_validate(
        {"name": "e", "baseline": "a", "variants": variants, "scores": scores, **settings}
    )


def outcome(variant, seed, shift=0.0, tasks=("one", "two")):
    values = {task: GENERATOR.random(ITEMS) / 2 + shift for task in tasks}
    rows = {
        task: Row(task, "Retrieval", "ndcg_at_10", "stage2", float(own.mean()), ITEMS)
        for task, own in values.items()
    }
    items = {
        task: PerExampleScores("mean", (Part("default/test", tuple(own.tolist())),)) for task, own in values.items()
    }
    return Outcome(variant, seed, rows, items)


def scores_of(outcomes, variant, task):
    return np.array([one.rows[task].score for one in outcomes if one.variant == variant])


@pytest.fixture
def outcomes():
    return [outcome(name, seed, shift) for seed in (1, 2, 3) for name, shift in (("a", 0.0), ("b", 0.2))]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_interval_over_seeds_is_students(count):
    values = GENERATOR.normal(size=count).tolist()

    found = over_seeds(values)

    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), expected.low, expected.high))


def test_one_seed_has_no_interval_and_the_table_says_so(outcomes):
    comparisons = compared(experiment(), [one for one in outcomes if one.seed == 1])

    assert over_seeds([0.5]).low is None
    assert comparisons[0].lines[1].difference.low is None
    assert ONE_SEED in table(comparisons[0])


def test_a_difference_is_paired_by_seed(outcomes):
    line = compared(experiment(), outcomes)[0].lines[1]

    ours, theirs = (scores_of(outcomes, variant, "one") for variant in ("b", "a"))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (line.difference.mean, line.difference.low, line.difference.high) == pytest.approx(
        ((ours - theirs).mean(), expected.low, expected.high)
    )
    assert line.scores == {seed: pytest.approx(score) for seed, score in zip((1, 2, 3), ours, strict=True)}


def test_a_difference_is_paired_by_item_over_all_seeds(outcomes):
    line = compared(experiment(), outcomes)[0].lines[1]

    by_variant = [[one.items["one"] for one in outcomes if one.variant == variant] for variant in ("b", "a")]
    assert line.by_items == pooled_difference([(by_variant[0], by_variant[1])], seed=0)


def test_a_type_is_the_mean_of_its_tasks(outcomes):
    comparison = compared(experiment(), outcomes)[1]

    assert comparison.tasks == ("one", "two")
    expected = (scores_of(outcomes, "b", "one") + scores_of(outcomes, "b", "two")) / 2
    assert list(comparison.lines[1].scores.values()) == pytest.approx(expected.tolist())
    assert comparison.lines[1].by_items.value == pytest.approx(comparison.lines[1].difference.mean)


def test_only_seeds_that_both_finished_are_paired(outcomes):
    left = [one for one in outcomes if (one.variant, one.seed) != ("a", 2)]

    line = compared(experiment(), left)[0].lines[1]

    ours, theirs = (scores_of([one for one in outcomes if one.seed != 2], variant, "one") for variant in ("b", "a"))
    assert len(line.scores) == 3
    assert line.difference.mean == pytest.approx((ours - theirs).mean())


def test_without_the_baseline_there_is_no_difference(outcomes):
    alone = compared(experiment(), [one for one in outcomes if one.variant == "b"])[0]

    assert (alone.lines[0].difference, alone.lines[0].by_items) == (None, None)


def test_a_variant_that_collapses_on_a_task_wins_no_mean(outcomes):
    """Its mean over the tasks that are left would be another score, that of the seeds that are left a luckier one."""
    collapsed = [outcome("c", seed, 0.4, tasks=("one",) if seed == 2 else ("one", "two")) for seed in (1, 2, 3)]
    of_one, of_both = compared(experiment(), [*outcomes, *collapsed])

    assert of_one.lines[2].difference.mean > 0
    line = of_both.lines[2]
    assert (line.spread, line.difference, line.by_items) == (None, None, None)
    assert sorted(line.scores) == [1, 3]
    assert "c has no score on two (seed 2), so it has no mean" in " ".join(table(of_both).split())
    assert "c" in plots_of(results_page("e", [of_both]))[0]["data"][-1]["y"]


def test_a_variant_without_any_score_stays_in_sight_and_a_baseline_without_one_compares_nothing(outcomes):
    gone = [outcome("c", seed, tasks=("two",)) for seed in (1, 2)]
    comparison = compared(experiment(baseline="c"), [*outcomes, *gone])[0]

    assert [line.variant for line in comparison.lines] == ["a", "b", "c"]
    assert comparison.lines[2].undefined == "has no score on one (seed 1, 2)"
    assert all(line.difference is None for line in comparison.lines)
    assert comparison.lines[0].spread.mean > 0


def test_seeds_of_the_very_same_score_make_nothing_sure():
    assert over_seeds([0.002, 0.002]) == Spread(0.002)
    assert over_seeds([0.002, 0.002, 0.0021]).low > 0


def test_what_a_trial_left_is_read_from_its_folder(tmp_path):
    known = outcome("a", 1)
    place = Folder.open(str(tmp_path)) / "evaluation"
    rows = [*known.rows.values(), Row("one", "Retrieval", "ndcg_at_10", "backbone", 0.1, ITEMS)]
    place.write_json("comparison.json", {"rows": [asdict(row) for row in rows]})
    for task, row in known.rows.items():
        judged = TaskScore("key", task, row.type, row.metric, row.score, ITEMS, per_example=known.items[task])
        (place / "scores" / "stage2").write_json(f"{task}.json", asdict(judged))

    assert Outcome.read("a", 1, Folder.open(str(tmp_path))) == known


def test_the_json_holds_every_score_and_every_comparison(outcomes):
    comparisons = compared(experiment(), outcomes)

    found = json.loads(json.dumps(as_json(experiment(), comparisons, outcomes)))

    assert [one["score"] for one in found["comparisons"]] == ["one", "mean of Retrieval"]
    assert found["trials"][0]["scores"]["two"] == {"metric": "ndcg_at_10", "score": outcomes[0].rows["two"].score}


def test_the_table_marks_what_leaves_out_zero(outcomes):
    said = table(compared(experiment(), outcomes)[0])

    (line,) = [line for line in said.splitlines() if line.startswith("│ b ")]
    assert line.count("*") >= 1
    assert "+0.1" in line or "+0.2" in line
    assert "- a" in said


def test_a_score_that_no_trial_has_is_said_so(outcomes):
    missing = compared(experiment(scores=[{"task": "three"}]), outcomes)

    assert table(missing[0]) == "three: no finished trial was judged by it"
    assert plots_of(results_page("e", missing)) == []


def plots_of(page):
    found = re.findall(r'<script type="application/json">(.*?)</script>', page)
    return [json.loads(one) for one in found]


def brightness(colour):
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return sum(
        weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
        for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


@pytest.mark.parametrize("page", [LIGHT, DARK])
@pytest.mark.parametrize("colour", [INK, SEEDS, INTERVAL])
def test_the_plot_can_be_read_on_light_and_on_dark_pages(colour, page):
    darker, lighter = sorted((brightness(colour), brightness(page)))

    assert (lighter + 0.05) / (darker + 0.05) >= 3


def test_the_page_has_a_point_for_each_seed_and_the_interval_of_each_mean(outcomes):
    comparisons = compared(experiment(), outcomes)

    page = results_page("e", comparisons)

    assert page == results_page("e", comparisons)
    for plot, comparison in zip(plots_of(page), comparisons, strict=True):
        go.Figure(plot)  # raises where Plotly does not know a property
        *intervals, seeds = plot["data"]
        assert seeds["x"] == [score for line in comparison.lines for score in line.scores.values()]
        for interval, line in zip(intervals, comparison.lines, strict=True):
            assert interval["x"] == [line.spread.low, line.spread.mean, line.spread.high]
        (baseline,) = plot["layout"]["shapes"]
        assert baseline["x0"] == comparison.lines[0].spread.mean
