import json
import os
from pathlib import Path

import pytest

from qzhou.cluster import session
from qzhou.errors import DataError
from qzhou.recipe import parse_recipe
from qzhou.records import Document, Drop, LabeledExample, PairExample, RetrievalExample, stable_id
from qzhou.storage import Folder, read_records
from qzhou.transform.pipeline import transform

STEPS = {"steps": 1, "learning_rate": 1e-5}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with session():
        yield


def recipe(storage, *datasets):
    return parse_recipe(
        {
            "run": {"name": "run", "storage": str(storage), "seed": 1},
            "model": {"backbone": "unused"},
            "datasets": datasets,
            "training": {"stage1": STEPS, "stage2": {**STEPS, "retrieval_share": 1.0}},
        },
        place="test",
    )


def read(storage, path, record_type):
    return list(read_records(Folder.open(str(storage)) / "run" / "transform" / path, record_type))


def questions(folder):
    """Twenty good rows, a repeat, a blank one and a malformed one."""
    rows = [json.dumps({"question": f"Question {i}?", "answer": f"The answer is {i}."}) for i in range(20)]
    rows += [
        json.dumps({"question": "question  0?", "answer": "the answer is 0."}),
        json.dumps({"question": "Unanswered?", "answer": " "}),
        '{"question": ',
    ]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(rows), "utf-8")
    return {"name": "questions", "reader": "jsonl", "rule": "question_answer", "paths": [str(path)]}


def ratings(folder):
    path = folder / "ratings.csv"
    path.write_text('a cat,"a kitten",4.5\na cat,a lorry,0\nx,y,\n', "utf-8")
    columns = {"text_a": "0", "text_b": "1", "score": "2"}
    return {"name": "ratings", "reader": "csv", "rule": "scored_pair", "paths": [str(path)], "columns": columns}


def documentation(name, **settings):
    return {"name": name, "reader": "python_docs", "packages": ["pydantic_settings"], "split_by": "module", **settings}


def datasets(folder):
    return (
        {**questions(folder), "held_out_fraction": 0.3},
        ratings(folder),
        documentation(
            "modules",
            rule="labeled",
            columns={"text": "summary", "label": "module"},
            held_out_fraction=0.3,
            max_rows=10,
        ),
        documentation(
            "siblings",
            rule="scored_pair",
            view="pairs",
            columns={"text_a": "summary_a", "text_b": "summary_b", "score": "shared_path"},
            held_out_fraction=0.3,
        ),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    storage = tmp_path_factory.mktemp("finished")
    settings = datasets(storage)
    return storage, settings, transform(recipe(storage, *settings))


def test_every_row_of_a_dataset_is_trained_on_held_out_or_dropped(finished):
    storage, _, manifest = finished
    examples = read(storage, "examples/retrieval/questions", RetrievalExample)
    held = read(storage, "held_out/retrieval/questions", RetrievalExample)
    dropped = [row for row in read(storage, "dropped", Drop) if row.dataset == "questions"]

    assert len(examples) + len(held) == 20
    assert examples
    assert held
    assert sorted(row.reason for row in dropped) == ["blank_positive", "duplicate", "not_json"]
    assert ["line 23" in row.detail for row in dropped if row.reason == "not_json"] == [True]
    assert manifest.outputs["retrieval examples"] == len(examples)
    assert manifest.outputs["dropped rows"] == len(read(storage, "dropped", Drop))


def test_the_corpus_is_what_the_training_examples_are_answered_by(finished):
    storage, _, _ = finished
    examples = read(storage, "examples/retrieval/questions", RetrievalExample)

    documents = read(storage, "corpora/questions", Document)

    assert [document.text for document in documents] == [example.positives[0] for example in examples]
    assert [document.id for document in documents] == [stable_id("questions", row.text) for row in documents]


def test_pairs_are_trained_on_from_both_sides_and_held_out_once(finished):
    storage, _, _ = finished
    rated = [(row.text_a, row.text_b, row.score) for row in read(storage, "examples/pair/ratings", PairExample)]
    held = {(row.text_a, row.text_b) for row in read(storage, "held_out/pair/siblings", PairExample)}

    assert rated == [
        ("a cat", "a kitten", 4.5),
        ("a kitten", "a cat", 4.5),
        ("a cat", "a lorry", 0.0),
        ("a lorry", "a cat", 0.0),
    ]
    assert held
    assert not held & {(text_b, text_a) for text_a, text_b in held}


def test_no_training_text_is_asked_by_evaluation(finished):
    storage, _, _ = finished
    asked = {row.text for row in read(storage, "held_out/classification/modules", LabeledExample)}
    asked |= {text for row in read(storage, "held_out/pair/siblings", PairExample) for text in (row.text_a, row.text_b)}
    trained = {row.text for row in read(storage, "examples/classification/modules", LabeledExample)}
    trained |= {
        text for row in read(storage, "examples/pair/siblings", PairExample) for text in (row.text_a, row.text_b)
    }

    assert len(read(storage, "examples/classification/modules", LabeledExample)) == 10
    assert asked
    assert not asked & trained


def test_a_second_run_gives_the_same_records_in_the_same_order(finished, tmp_path):
    storage, settings, manifest = finished

    again = transform(recipe(tmp_path, *settings))

    assert again.outputs == manifest.outputs
    for path, record_type in (
        ("examples/retrieval/questions", RetrievalExample),
        ("examples/classification/modules", LabeledExample),
        ("examples/pair/siblings", PairExample),
        ("held_out/pair/siblings", PairExample),
        ("dropped", Drop),
    ):
        assert read(tmp_path, path, record_type) == read(storage, path, record_type)


def test_a_finished_stage_is_skipped(finished, capsys):
    storage, settings, manifest = finished

    again = transform(recipe(storage, *settings))

    assert again.finished_at == manifest.finished_at
    assert "transform: unchanged since" in capsys.readouterr().out


def test_a_dataset_of_which_nothing_survives_is_refused_with_the_reasons(tmp_path):
    with pytest.raises(DataError) as raised:
        transform(recipe(tmp_path, {**questions(tmp_path), "min_positive_chars": 1000}))

    message = str(raised.value)
    for part in ("'questions'", "none of its 23 rows", "21 short_positive", "1 not_json", "min_positive_chars (1000)"):
        assert part in message
    assert len(read(tmp_path, "dropped", Drop)) == 23


def test_an_empty_dataset_is_refused(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")

    with pytest.raises(DataError, match="dataset 'questions' is empty"):
        transform(recipe(tmp_path, {**questions(tmp_path), "paths": [str(path)]}))


def test_banking77_is_read_whole(tmp_path):
    folder = os.environ.get("QZHOU_DATA")
    if not folder or not (Path(folder) / "banking77").is_dir():
        pytest.skip("QZHOU_DATA names no folder with banking77/{train,test}.csv (PolyAI, CC BY 4.0)")
    intents = {
        "name": "intents",
        "reader": "csv",
        "rule": "labeled",
        "paths": [f"{folder}/banking77/t*.csv"],
        "columns": {"label": "category"},
        "held_out_fraction": 0.1,
    }

    transform(recipe(tmp_path, questions(tmp_path), intents))

    examples = read(tmp_path, "examples/classification/intents", LabeledExample)
    held = read(tmp_path, "held_out/classification/intents", LabeledExample)
    dropped = [row for row in read(tmp_path, "dropped", Drop) if row.dataset == "intents"]
    assert len(examples) + len(held) + len(dropped) == 10_003 + 3_080
    assert {row.reason for row in dropped} <= {"duplicate", "in_held_out"}
    assert len({row.label for row in examples}) == 77
