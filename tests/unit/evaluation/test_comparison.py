"""The table and the report say what was measured, and nothing of what was not."""

import json

from qzhou.evaluation.comparison import Row, table
from qzhou.evaluation.pipeline import rows_of
from qzhou.evaluation.report import write_report
from qzhou.records import Drop
from qzhou.runs import Run
from qzhou.storage import write_records


def rows(**scores):
    return [Row("docs", "Retrieval", "ndcg_at_10", model, score, 1300) for model, score in scores.items()]


def test_the_table_shows_each_score_and_the_gain():
    text = table(rows(bm25=0.5, backbone=0.55, stage1=0.6, stage2=0.625))

    for shown in ("docs", "ndcg_at_10", "1,300", "0.5000", "0.5500", "0.6000", "0.6250", "+0.0750"):
        assert shown in text


def test_a_loss_is_shown_as_a_loss():
    assert "-0.1500" in table(rows(backbone=0.55, stage2=0.4))


def test_what_was_not_measured_is_a_dash():
    line = next(line for line in table(rows(backbone=0.55)).splitlines() if "docs" in line)

    assert line.count(" - ") == 4, "bm25, stage1, stage2 and the gain"


def test_rows_hold_the_main_score_of_each_task():
    found = rows_of("stage2", {"docs": {"type": "Retrieval", "metric": "ndcg_at_10", "score": 0.1234567, "n": 3}})

    assert found == [Row("docs", "Retrieval", "ndcg_at_10", "stage2", 0.123457, 3)]


def test_the_report_is_one_page_with_scores_losses_and_what_was_dropped(make_recipe):
    run = Run.open(make_recipe())
    for stage in ("stage1", "stage2"):
        lines = [json.dumps({"step": n, "task": "retrieval", "loss": 2.0 / (n + 1)}) for n in range(3)]
        (run.folder / "train" / stage).create().write_bytes("metrics.jsonl", "\n".join(lines).encode())
    drop = Drop(stage="synthesis", dataset="docs", reason="too_long", detail="", record="{}")
    write_records(run.folder / "synthesize" / "dropped", [drop, drop], Drop)
    counts = {"task": "retrieval", "rule": "title_body", "read": 40, "kept": 30, "held_out": 7, "sampled_out": 1}
    counts |= {"dropped": {"blank_query": 2}, "languages": {"en": 3, "zh": 1}}
    overlap = {"dataset": "docs", "task": "asked", "examples": 3, "percent": 10.0, "shown": ["a leaked text"]}
    contamination = {"action": "report", "ngram_words": 13, "ngram_chars": 20, "one_ngram_kept_of": 1}
    found = {"datasets": {"docs": counts}, "contamination": {**contamination, "overlaps": [overlap]}}
    (run.folder / "transform").write_json("report.json", found)
    (run.folder / "transform").write_bytes("lengths.svg", b"<svg></svg>")

    write_report(run, rows(bm25=0.5, backbone=0.55, stage1=0.6, stage2=0.625))

    page = run.folder.read_bytes("report.html").decode()
    assert page.count("<svg") == 3
    for shown in ("tiny", "0.6250", "blank_query", "too_long", "en 75 %, zh 25 %", "10.00", "a leaked text"):
        assert shown in page
    write_report(run, rows(bm25=0.5, backbone=0.55, stage1=0.6, stage2=0.625))
    assert run.folder.read_bytes("report.html").decode() == page, "the same run gives the same page"


def test_a_name_cannot_write_into_the_page(make_recipe):
    run = Run.open(make_recipe())

    write_report(run, [Row("<script>alert(1)</script>", "STS", "cosine_spearman", "backbone", 0.5, 3)])

    assert "<script>" not in run.folder.read_bytes("report.html").decode()
