"""Plans from a finished run: its rows, its factors, and what they say of a larger run and of other machines."""

import json
import os
from pathlib import Path

import pytest

from bench.plan import WITHIN, scaled
from qzhou.config.recipe import load_recipe
from qzhou.errors import DataError
from qzhou.estimate.assumptions import Assumptions
from qzhou.estimate.lengths import texts_of
from qzhou.estimate.measured import MeasuredRun
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.plan import plan_of
from qzhou.estimate.tables import as_json
from qzhou.run.run import Run
from tests.unit.estimate.run_folder import HELD_OUT, KEPT, RAW, WALLS, finished, write_manifest

ROOT = Path(__file__).parents[3]
SMALL = {"model": {"backbone": "BAAI/bge-small-en-v1.5", "dtype": "float32"}}
DATASET = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
# what the transform of the quickstart counted: raw rows, kept rows, rows beyond max_rows, examples, held out
QUICKSTART = {
    "docs_search": (59_790, 4000, 21_696, 4000, 3577),
    "docs_package": (59_790, 2000, 45_411, 2000, 7311),
    "docs_siblings": (174_848, 1000, 144_879, 2000, 22_430),
}


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(**SMALL)


def planned(recipe, **options):
    return plan_of(recipe, PlanOptions(**options))


def stages_of(recipe, **options):
    return {one.name: one for one in planned(recipe, **options).stages}


def test_a_measured_run_predicts_itself_and_one_four_times_as_large(make_recipe):
    recipe = make_recipe(datasets=[{**DATASET, "max_rows": KEPT}], **SMALL)
    folder = finished(recipe)
    stage = {"steps": 16, "learning_rate": 1e-3, "batch_size": 4, "retrieval_share": 1.0}
    larger = make_recipe(
        datasets=[{**DATASET, "max_rows": 4 * KEPT}], training={"stage1": stage, "stage2": stage}, **SMALL
    )
    sizes = {"mean_query_tokens": 10, "mean_document_tokens": 20}

    same = stages_of(recipe, measured=folder.uri, **sizes)
    four = stages_of(larger, measured=folder.uri, **sizes)
    by_table = [stages_of(one, measured="", **sizes) for one in (recipe, larger)]

    for name, wall_s in WALLS.items():
        assert same[name].wall_s == pytest.approx(wall_s, rel=1e-6), name
        assert same[name].basis == "measured"
    # the transform reads as many raw rows, and as much is held out
    for name in ("transform", "model", "evaluation"):
        assert four[name].wall_s == pytest.approx(WALLS[name]), name
    for name in ("mining", "training/stage1", "training/stage2"):
        growth = by_table[1][name].wall_s / by_table[0][name].wall_s
        assert four[name].wall_s == pytest.approx(growth * WALLS[name]), name
        assert four[name].wall_s > WALLS[name]


def test_the_recorded_quickstart_predicts_itself_and_one_four_times_as_large(tmp_path, monkeypatch):
    """Seconds of both runs are those that bench/plan.py measured, on two cores."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    quickstart = ROOT / "recipes" / "quickstart.toml"
    (tmp_path / "larger.toml").write_text(scaled(quickstart.read_text("utf-8"), 4), "utf-8")
    small = load_recipe(quickstart, ["--run.storage", str(tmp_path / "small")])
    large = load_recipe(tmp_path / "larger.toml", ["--run.storage", str(tmp_path / "large")])
    recorded = json.loads((ROOT / "bench" / "results" / "plan.json").read_text("utf-8"))["rows"]
    seconds = {one["case"]: one for one in recorded if one["case"] not in ("stages", "pipeline")}
    run = Run.open(small).folder
    names = ("read", "kept", "sampled_out")
    counts = {
        name: dict(zip(names, row, strict=False)) | {"written": {"examples": row[3], "held_out": row[4]}}
        for name, row in QUICKSTART.items()
    }
    (run / "transform").write_json("report.json", {"datasets": counts})
    for stage, one in seconds.items():
        write_manifest(run, stage, one["small_s"])
    lengths = {"mean_query_tokens": 17, "mean_document_tokens": 57}

    same = stages_of(small, measured=run.uri, **lengths)
    four = stages_of(large, measured=run.uri, **lengths)

    for stage, one in seconds.items():
        assert same[stage].wall_s == pytest.approx(one["small_s"]), stage
    predicted = sum(four[stage].wall_s for stage in seconds)
    measured = sum(one["large_s"] for one in seconds.values())
    assert predicted == pytest.approx(measured, rel=0.05)
    for stage in set(seconds) - {"synthesis"}:
        assert four[stage].wall_s == pytest.approx(seconds[stage]["large_s"], rel=WITHIN), stage


def test_the_factor_of_every_measured_stage_is_said(make_recipe):
    recipe = make_recipe(datasets=[DATASET], **SMALL)
    folder = finished(recipe, stages=("transform", "mining"))
    run = MeasuredRun.open(folder.uri)

    plan = planned(recipe, measured=folder.uri)

    factors = {one.name: one.factor for one in plan.stages if one.factor is not None}
    assert set(factors) == {"transform", "mining"}
    texts = texts_of(run.recipe, PlanOptions()).datasets
    table = run.estimator(texts, Assumptions()).stages()
    for one in table:
        if one.name in factors:
            assert factors[one.name] == pytest.approx(WALLS[one.name] / one.wall_s)
    said = next(note for note in plan.notes if "times of the table" in note)
    assert f"transform {factors['transform']:.3g}, mining {factors['mining']:.3g}" in said
    assert as_json(plan)["stages"][1]["factor"] == factors["transform"]


def test_raw_rows_of_a_measured_run_grow_with_rows(make_recipe):
    recipe = make_recipe(datasets=[DATASET], **SMALL)
    folder = finished(recipe)
    cpus = os.cpu_count() or 1

    plan = planned(recipe, measured=folder.uri, rows=10 * RAW, cpus=2 * cpus)

    transform = next(one for one in plan.stages if one.name == "transform")
    (rows,) = plan.rows
    assert (rows.held_out, rows.raw) == (10 * HELD_OUT, 10 * RAW)
    assert transform.basis == "scaled"
    small = stages_of(recipe, measured=folder.uri)["transform"]
    assert transform.start_s == small.start_s
    assert transform.work_s == pytest.approx(10 * small.work_s / 2), "twice the CPUs"


def test_tokens_of_an_llm_are_those_that_the_runs_ledger_has(make_recipe):
    asked = {
        "endpoint": "http://host/v1",
        "model": "m",
        "paraphrase_rows": 50,
        "input_price": 2.0,
        "output_price": 8.0,
    }
    recipe = make_recipe(datasets=[DATASET], synthesis={**asked, "filters": {"scores": False}}, **SMALL)
    folder = finished(recipe)
    # 50 first requests and 10 follow-ups, of which a fifth was answered before
    total = {"requests": 60, "reused": 12, "prompt_tokens": 24_000, "completion_tokens": 4000}
    (folder / "synthesis").write_json("ledger.json", {"total": total, "rows": []})

    plan = planned(recipe, measured=folder.uri, synthetic=500)

    amount = next(one for one in plan.stages if one.name == "synthesis")
    assert amount.tokens == pytest.approx(500 / 50 * (30_000 + 5000))
    assert amount.llm_usd == pytest.approx(500 / 50 * (30_000 * 2 + 5000 * 8) / 1e6)


def test_a_run_on_cpus_tells_nothing_of_gpus_and_what_is_unfinished_is_by_the_table(make_recipe):
    recipe = make_recipe(datasets=[DATASET], **SMALL)
    folder = finished(recipe, stages=("transform", "synthesis"))

    plan = planned(recipe, measured=folder.uri, gpu="h100", gpus=8)

    bases = {one.name: one.basis for one in plan.stages}
    assert (bases["transform"], bases["training/stage1"]) == ("scaled", "assumed")
    assert any("it has not finished mining, training/stage1" in note for note in plan.notes)


def test_the_share_of_the_peak_that_a_measured_gpu_reached_goes_to_another(make_recipe):
    cluster = {"gpu": True, "encode_workers": 2, "training": {"accelerator_type": "A100-80G"}}
    recipe = make_recipe(datasets=[DATASET], cluster=cluster, **SMALL)
    folder = finished(recipe)

    same, other = (
        next(
            one
            for one in planned(
                recipe, measured=folder.uri, gpu=gpu, gpus=2, assume="all_reduce_bytes_per_s=1e24"
            ).stages
            if one.name == "training/stage1"
        )
        for gpu in ("A100", "H100")
    )

    assert (same.basis, other.basis) == ("measured", "scaled")
    assert same.wall_s == pytest.approx(WALLS["training/stage1"])
    assert other.work_s * 989 / 312 == pytest.approx(same.work_s)


def test_a_folder_that_is_no_run_is_named(recipe, tmp_path):
    with pytest.raises(DataError, match=r"--measured: .*nowhere has no recipe\.json"):
        planned(recipe, measured=str(tmp_path / "nowhere"))
    folder = finished(recipe, stages=())
    with pytest.raises(DataError, match="the stage 'transform' has not finished"):
        planned(recipe, measured=folder.uri)
