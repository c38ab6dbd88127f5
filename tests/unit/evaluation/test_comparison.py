"""The tables say what was measured, and nothing of what was not."""

import dataclasses
import statistics
import tomllib

import mteb
import pytest

from qzhou.evaluation.comparison import (
    PUBLISHED,
    Difference,
    Row,
    benchmark_means,
    benchmark_table,
    published_scores,
    seen_and_unseen,
    table,
)
from qzhou.evaluation.judge.task_scores import EvalTask


def rows(**scores):
    return [Row("docs", "Retrieval", "ndcg_at_10", model, score, 1300) for model, score in scores.items()]


def test_the_table_shows_each_score_and_the_gain():
    text = table(rows(bm25=0.5, backbone=0.55, stage1=0.6, stage2=0.625))

    for shown in ("docs", "ndcg_at_10", "1,300", "0.5000", "0.5500", "0.6000", "0.6250", "+0.0750"):
        assert shown in text


def test_a_loss_is_shown_as_a_loss():
    assert "-0.1500" in table(rows(backbone=0.55, stage2=0.4))


def test_what_was_not_measured_is_a_dash():
    other = Row("pairs", "STS", "cosine_spearman", "stage2", 0.5, 9)
    line = next(line for line in table([*rows(backbone=0.55), other]).splitlines() if "docs" in line)

    assert line.count(" - ") == 2, "stage2 and the gain"
    assert "stage1" not in line, "no row has one"


def test_a_gain_that_is_sure_is_marked_and_further_models_have_a_column():
    sure = Difference("docs", "stage2", "backbone", 0.1, 0.05, 0.15)
    unsure = Difference("docs", "stage2", "backbone", 0.1, -0.05, 0.25)

    assert "+0.1000*" in table(rows(backbone=0.5, stage2=0.6), [sure])
    assert "+0.1000*" not in table(rows(backbone=0.5, stage2=0.6), [unsure])
    assert "other" in table(rows(backbone=0.5, stage2=0.6, other=0.7))


def benchmark(tasks, name="MTEB(cmn, v1)"):
    plans = [EvalTask(f"t{n}", "STS", "", "retrieval", 9, 0, False, benchmarks=(name,)) for n in range(tasks)]
    return [Row(f"t{n}", "STS", "cosine_spearman", "stage2", 0.5 + 0.01 * (n % 2), 9) for n in range(tasks)], plans


def test_a_whole_benchmark_stands_beside_published_means():
    (found,) = benchmark_means(*benchmark(31))

    means = {one["model"]: one for one in found["models"]}
    assert means["stage2"]["mean_task"] == pytest.approx(50.48)
    assert means["QZhou-Embedding"]["types"]["Clustering"] == 70.91, "the paper's headings are interchanged"
    assert (means["QZhou-Embedding"]["mean_task"], means["QZhou-Embedding"]["mean_type"]) == (76.99, 78.58)
    shown = benchmark_table(found)
    assert shown.index("QZhou-Embedding") < shown.index("stage2")


def test_part_of_a_benchmark_is_not_compared_with_the_whole():
    found_rows, plans = benchmark(31)

    (found,) = benchmark_means(found_rows[1:], plans)

    assert [one["model"] for one in found["models"]] == ["stage2"]
    assert "30 of 31 tasks" in benchmark_table(found)


def test_a_model_has_a_mean_where_it_has_a_score_on_every_task():
    """One that finds only, as BM25, or collapses on a task would stand beside means over 31 with its own over a few."""
    found_rows, plans = benchmark(31)
    lexical = [dataclasses.replace(row, model="bm25", score=0.9) for row in found_rows[:7]]

    (found,) = benchmark_means([*found_rows, *lexical], plans)

    means = {one["model"]: one for one in found["models"]}
    assert (means["bm25"]["mean_task"], means["bm25"]["mean_type"], means["bm25"]["types"]) == (None, None, {})
    assert means["stage2"]["mean_task"] == pytest.approx(50.48)
    assert "QZhou-Embedding" in means


def test_long_names_are_broken_and_not_cut():
    models = [f"Qwen3-Embedding-{size}-of-somebody" for size in ("0.6B", "4B", "8B", "32B")]
    found = table([Row(f"customer_questions_{n}", "STS", "x", one, 0.5, 9) for one in models for n in "ab"])

    assert "…" not in found


def test_published_means_are_the_means_of_their_types():
    published = tomllib.loads(PUBLISHED.read_text("utf-8"))

    for board in published.values():
        for model, means in board.get("models", {}).items():
            assert len(means) == len(board["types"]) + 2
            assert statistics.mean(means[:-2]) == pytest.approx(means[-1], abs=0.01), model


def test_a_task_of_mteb_stands_beside_what_others_scored_on_it():
    found_rows = [
        Row(task, "Retrieval", "ndcg_at_10", "stage2", 0.5, 9) for task in ("SCIDOCS", "T2Retrieval", "own")
    ]
    plans = [EvalTask(row.task, "Retrieval", "", "retrieval", 9, 0, False, is_published=True) for row in found_rows]
    own = [dataclasses.replace(plan, is_published=plan.name != "SCIDOCS") for plan in plans]

    scidocs, t2 = published_scores(found_rows, plans)
    assert (scidocs["stage2"], scidocs["published"]) == (
        50.0,
        {"QZhou-Embedding": 28.66, "Qwen3-Embedding-8B": 32.74},
    )
    assert t2["published"] == {"QZhou-Embedding": 81.62, "Youtu-Embedding": 87.5}
    assert [one["task"] for one in published_scores(found_rows, own)] == ["T2Retrieval"], (
        "one's own data is another, and so are other languages of the same task"
    )


@pytest.mark.slow
def test_published_scores_are_of_tasks_of_their_benchmark():
    for name, board in tomllib.loads(PUBLISHED.read_text("utf-8")).items():
        tasks = {task.metadata.name for task in mteb.get_benchmark(name).tasks}
        for model, scores in board["scores"].items():
            assert set(scores) <= tasks, model
            assert all(0 < score < 100 for score in scores.values())


def test_seen_and_unseen_tasks_have_means_of_their_own():
    found = [Row("a", "STS", "x", "stage2", 0.5, 1, seen=True), Row("b", "STS", "x", "stage2", 0.7, 1, seen=False)]

    assert [(one["seen"], one["mean"]) for one in seen_and_unseen(found)] == [(True, 50.0), (False, 70.0)]
