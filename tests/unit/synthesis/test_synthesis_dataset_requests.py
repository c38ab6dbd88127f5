"""What is asked about each dataset of a run, without Ray and without a network."""

import dataclasses
from collections import Counter

from qzhou.config.recipe import parse_recipe
from qzhou.data.records import Document, PairExample, RetrievalExample
from qzhou.data.storage import write_records
from qzhou.run.run import Run
from qzhou.synthesis.dataset_requests import dataset_requests, held_out_texts, seed_examples
from qzhou.synthesis.generation import SynthesisResult, SyntheticRecord, without_held_out
from qzhou.synthesis.techniques import requests_for

STEPS = {"steps": 1, "learning_rate": 1e-5}


def run_with(storage, rows, **synthesis):
    """A transformed run: dataset -> so many examples, each with a corpus of three documents."""
    datasets = [{"name": name, "reader": "jsonl", "rule": "title_body", "paths": ["unused"]} for name in rows]
    recipe = {
        "run": {"name": "run", "storage": str(storage)},
        "model": {"backbone": "unused"},
        "datasets": datasets,
        "training": {"stage1": STEPS, "stage2": {**STEPS, "retrieval_share": 1.0}},
        "synthesis": {"endpoint": "http://x/v1", "model": "m", "paraphrase_rows": 2, "query_rows": 3, **synthesis},
    }
    run = Run.open(parse_recipe(recipe, place="test"))
    for name, count in rows.items():
        examples = [
            RetrievalExample(id=f"{name}{n}", dataset=name, query=f"Query {n}?", positives=(f"Answer {n}.",))
            for n in range(count)
        ]
        documents = [Document(id=f"doc{n}", text=f"Document {n}.") for n in range(3)]
        write_records(run.folder / "transform" / "examples" / "retrieval" / name, examples, RetrievalExample)
        write_records(run.folder / "transform" / "corpora" / name, documents, Document)
    return run


def techniques(plan):
    return Counter(request.technique for request in plan.requests)


def test_a_dataset_above_the_limit_gets_neither_rewrites_nor_queries(tmp_path, capsys):
    run = run_with(tmp_path, {"at_limit": 4, "above": 5}, max_dataset_rows=4)

    plans = {plan.name: plan for plan in dataset_requests(run)}

    assert techniques(plans["at_limit"]) == {"paraphrase": 2, "query": 3}
    assert (plans["above"].requests, plans["above"].documents) == ((), ())
    said = "synthesis: above has more rows than synthesis.max_dataset_rows (4) and is left alone\n"
    assert capsys.readouterr().out == said


def test_only_named_datasets_are_asked_about_and_the_others_still_pass_through(tmp_path):
    run = run_with(tmp_path, {"named": 4, "other": 4}, datasets=["named"])

    plans = list(dataset_requests(run))

    assert {plan.name: bool(plan.requests) for plan in plans} == {"named": True, "other": False}
    assert {dataset for dataset, _ in seed_examples(run, plans)} == {"named"}
    assert len(seed_examples(run, plans)) == 2 + 3


def test_documents_that_answer_held_out_queries_get_no_query(tmp_path, capsys):
    """Of 19 held-out answers 19 were asked about: training had the queries' answers."""
    run = run_with(tmp_path, {"d": 1})
    held = RetrievalExample(id="h", dataset="other", query="Held out?", positives=("document  1.",))
    write_records(run.folder / "transform" / "held_out" / "retrieval" / "other", [held], RetrievalExample)

    (plan,) = dataset_requests(run)

    assert {document.id for document in plan.documents} == {"doc0", "doc2"}
    assert "d: 1 documents answer held-out queries and get none written" in capsys.readouterr().out
    assert held_out_texts(run).asked == {"held out?"}


def test_what_is_written_may_ask_with_no_held_out_text():
    seed = PairExample(id="s", dataset="d", text_a="A dog runs.", text_b="An official test row.", score=1.0)
    (request,) = requests_for(seed, "paraphrase")

    def written(text_a):
        record = dataclasses.replace(seed, id=text_a, text_a=text_a)
        result = SynthesisResult(records=[SyntheticRecord(request=request, seed=seed, record=record)])
        found = without_held_out(result, {"an official test row.", "held out"})
        return len(found.records), [one.reason for one in found.dropped]

    assert written("Held  OUT") == (0, ["in_held_out"])
    assert written("Running dog.") == (1, []), "the other text was there before"
