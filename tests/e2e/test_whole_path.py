"""Every stage on a random Qwen2 through ``ray job submit``: what is said, what is left, what is not done twice."""

import json
import math
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.clusters import wait_until
from tests.e2e.commands import call, on_an_idle_machine, run, start
from tests.e2e.conftest import COMPILERS

STAGES = ("transform", "synthesis", "mining", "training/stage1", "training/stage2", "model", "evaluation")
ENDING_S = 600  # reached only in failure


def folder_of(recipe: Path) -> Path:
    return recipe.parent / "runs" / "tiny"


def metrics_of(folder: Path, stage: str) -> list[dict]:
    lines = (folder / "training" / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def rows_of(recipe: Path) -> list[dict]:
    return json.loads((folder_of(recipe) / "evaluation" / "comparison.json").read_text())["rows"]


def test_a_submitted_run_says_what_it_does_and_where_things_are(submitted):
    recipe, done = submitted

    assert done.status == 0, done.text
    assert re.search(r"ray job submit: pipeline-\w+; dashboard: http://127\.0\.0\.1:\d+", done.out)
    for stage in STAGES:
        assert f"{stage}: started" in done.out
        assert f"{stage}: done in" in done.out
    assert "Held-out evaluation (mteb)" in done.out
    assert f"{folder_of(recipe)}/report.html" in done.out
    assert "make serve" in done.out
    assert "curl http://127.0.0.1:8000/v1/embeddings" in done.out
    assert "Traceback" not in on_an_idle_machine(done.text)


def test_no_stage_needs_a_compiler(submitted, path_without_compiler):
    assert submitted[1].status == 0
    assert [name for name in COMPILERS if shutil.which(name, path=path_without_compiler)] == []


def test_each_stage_leaves_a_manifest_with_what_it_made(submitted):
    recipe, _ = submitted

    for stage in STAGES:
        manifest = json.loads((folder_of(recipe) / stage / "manifest.json").read_text())
        assert manifest["stage"] == stage
        assert manifest["outputs"]
        assert manifest["fingerprint"]
        assert manifest["wall_s"] > 0


def test_the_comparison_has_a_row_for_each_task_and_model(submitted):
    recipe, _ = submitted

    rows = rows_of(recipe)

    assert all(row["low"] <= row["score"] <= row["high"] and row["seen"] for row in rows)
    found = {(row["task"], row["type"], row["metric"], row["model"]) for row in rows}
    trained = ("backbone", "stage1", "stage2")
    assert found == (
        {("facts", "Retrieval", "ndcg_at_10", model) for model in ("bm25", *trained)}
        | {("alike", "STS", "cosine_spearman", model) for model in trained}
        | {("kinds", "Classification", "accuracy", model) for model in trained}
    )
    assert all(math.isfinite(row["score"]) and row["n"] > 5 for row in rows)


def test_training_steps_keep_to_the_plan(submitted):
    recipe, _ = submitted
    stage1, stage2 = (metrics_of(folder_of(recipe), stage) for stage in ("stage1", "stage2"))

    assert [one["step"] for one in stage1] == list(range(6))
    assert {one["task"] for one in stage1} == {"retrieval"}
    assert [one["step"] for one in stage2] == list(range(10))
    assert sum(one["task"] == "retrieval" for one in stage2) == 7, "eta = 0.72 of ten steps"
    assert all(math.isfinite(one["loss"]) and one["gradient_norm"] > 0 for one in stage1 + stage2)


def test_the_model_loads_with_sentence_transformers_alone(submitted):
    """In a process that knows nothing of this platform."""
    recipe, _ = submitted
    code = (
        "import sys; from sentence_transformers import SentenceTransformer as S; m = S(sys.argv[1]);"
        "v = m.encode(['x', 'a longer text'], prompt_name='query');"
        "print(v.shape, (v ** 2).sum(1).round(5).tolist(), m.prompts['query'], 'qzhou' in sys.modules)"
    )

    done = run("-c", code, folder_of(recipe) / "model")

    assert done.out.split("\n")[0] == "(2, 32) [1.0, 1.0] Instruct: Find the answer", done.text
    assert done.out.endswith("False\n")


def test_the_trained_model_is_not_the_backbone_and_still_looks_both_ways(submitted, tiny_qwen2):
    from safetensors.numpy import load_file

    recipe, _ = submitted
    model = folder_of(recipe) / "model"

    assert json.loads((model / "config.json").read_text())["is_causal"] is False
    before, after = (load_file(tiny_qwen2 / "model.safetensors"), load_file(model / "model.safetensors"))
    assert before.keys() == after.keys()
    assert not np.allclose(before["layers.0.mlp.up_proj.weight"], after["layers.0.mlp.up_proj.weight"])


def test_synthetic_rows_say_who_wrote_them(submitted):
    import pyarrow.parquet as pq

    recipe, _ = submitted

    examples = folder_of(recipe) / "synthesis" / "examples"
    rows = [row for folder in sorted(examples.glob("*/*")) for row in pq.read_table(folder).to_pylist()]
    sources = [row["source"] for row in rows if row["source"]["technique"] != "raw"]
    negatives = [negative for row in rows for negative in row.get("negatives", [])]

    assert sources
    assert negatives
    assert {negative["origin"] for negative in negatives} == {"synthetic"}
    sources += [negative["source"] for negative in negatives]
    assert {source["model"] for source in sources} == {"builtin-rules"}
    assert all(source["parent"] and source["prompt"] for source in sources)


def test_the_report_needs_no_network_and_shows_every_score(submitted):
    recipe, _ = submitted

    page = (folder_of(recipe) / "report.html").read_text()

    assert "default-src 'none'" in page, "browsers refuse whatever it would load"
    assert "is not there" not in page
    assert "Not finished" not in page
    for row in rows_of(recipe):
        assert f"{row['score']:.4f}" in page


def test_a_second_run_skips_every_stage_and_says_so(submitted, head):
    recipe, _ = submitted
    report = folder_of(recipe) / "report.html"
    before = report.stat().st_mtime_ns

    done = run("jobs/pipeline.py", recipe, **head)

    assert done.status == 0, done.text
    for stage in STAGES:
        assert f"{stage}: unchanged since" in done.out
        assert f"{stage}: started" not in done.out
    assert "Held-out evaluation (mteb)" in done.out
    assert report.stat().st_mtime_ns == before


def wait_for(checkpoints: Path, name: str, process: subprocess.Popen[str]) -> None:
    """Until Ray Train has taken note of a checkpoint."""
    noted = checkpoints / "checkpoint_manager_snapshot.json"
    wait_until(lambda: noted.exists() and name in noted.read_text(), process)


@pytest.mark.long
def test_an_interrupted_training_says_so_and_keeps_its_checkpoints(submitted, head, tmp_path):
    """Ray Train's own handler would end the process with status 1 and no word."""
    recipe, _ = submitted
    shutil.copytree(recipe.parent / "runs", tmp_path / "runs")
    longer = ("--run.storage", tmp_path / "runs", "--training.stage2.steps", "400")
    running = start("jobs/train.py", recipe, *longer, **head)
    wait_for(tmp_path / "runs" / "tiny" / "training" / "stage2" / "checkpoints", "step_000004", running)

    running.send_signal(signal.SIGINT)

    _, said = running.communicate(timeout=ENDING_S)
    assert running.returncode == 130
    assert "interrupted; the same command goes on from what is finished" in said
    assert "Traceback" not in on_an_idle_machine(said)


def test_another_setting_redoes_its_stage_alone_and_keeps_the_stale_output(submitted, head, tmp_path):
    recipe, _ = submitted
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(recipe.parent / "runs", tmp_path / "runs")

    fewer = ("--run.storage", tmp_path / "runs", "--training.stage2.steps", "3")

    done = call("jobs/train.py", recipe, *fewer, **head)

    assert done.status == 0, done.text
    assert "training/stage1: unchanged since" in done.out
    assert "training/stage2: runs again, because settings changed: training.stage2.steps 10 -> 3" in done.out
    assert "--keep training/stage2 takes it back" in done.out
    assert re.search(r"training/stage2: done in .* \(3 steps\)", done.out)
    assert len(metrics_of(folder, "stage2")) == 3
    (stale,) = (folder / "stale").iterdir()
    assert (stale / "model" / "model.safetensors").exists()
