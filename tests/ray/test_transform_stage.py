import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qzhou.config.recipe import parse_recipe
from qzhou.data.records import Document, Drop, LabeledExample, PairExample, Qrel, Query, RetrievalExample, stable_id
from qzhou.data.storage import Folder, read_records
from qzhou.errors import DataError
from qzhou.transform.pipeline import transform

pytestmark = pytest.mark.usefixtures("cluster")

RECIPES = Path(__file__).parents[2] / "recipes"
STEPS = {"steps": 1, "learning_rate": 1e-5}


def recipe(storage, *datasets):
    return parse_recipe(
        {
            "run": {"name": "run", "storage": str(storage), "seed": 1},
            "model": {"backbone": "unused"},
            "datasets": datasets,
            "training": {"stage1": STEPS, "stage2": {**STEPS, "retrieval_share": 1.0}},
        },
        place="test",
        folder=str(RECIPES),
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


def documentation(name, view, **settings):
    options = {"packages": ["pydantic_settings"]}
    if view == "pairs":
        options["eval_fraction"] = settings["eval_fraction"]
    reader = {"reader": f"python_docs_reader:{view}", "reader_options": options}
    return {"name": name, "split_by": "module", **reader, **settings}


def datasets(folder):
    return (
        {**questions(folder), "eval_fraction": 0.3},
        ratings(folder),
        documentation(
            "modules",
            "docstrings",
            rule="labeled",
            columns={"text": "summary", "label": "module"},
            eval_fraction=0.3,
            max_rows=10,
        ),
        documentation(
            "siblings",
            "pairs",
            rule="scored_pair",
            columns={"text_a": "summary_a", "text_b": "summary_b", "score": "shared_path"},
            eval_fraction=0.3,
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
    asked |= {
        text for row in read(storage, "held_out/pair/siblings", PairExample) for text in (row.text_a, row.text_b)
    }
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
    for part in (
        "'questions'",
        "none of its 23 rows",
        "21 short_positive",
        "1 not_json",
        "min_positive_chars (1000)",
    ):
        assert part in message
    assert len(read(tmp_path, "dropped", Drop)) == 23


def test_an_empty_dataset_is_refused(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")

    with pytest.raises(DataError, match="dataset 'questions' is empty"):
        transform(recipe(tmp_path, {**questions(tmp_path), "paths": [str(path)]}))


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def collection(folder):
    """Four documents, one of them blank and one twice; two queries; judgements of which two lead nowhere."""
    documents = [{"_id": "a", "title": "A", "text": "first"}, {"_id": "b", "title": "", "text": "second"}]
    documents += [{"_id": "a", "title": "A", "text": "first "}]
    documents += [{"_id": "c", "title": "", "text": " "}, {"_id": "d", "title": "", "text": "third"}]
    qrels = [
        ("1", "a", 2),
        ("1", "b", 0),
        ("2", "b", 1),
        ("1", "x", 1),
        ("9", "a", 1),
        ("2", "c", 1),
        ("1", "d", 1),
    ]
    return {
        "name": "collection",
        "rule": "qrels",
        "reader": "jsonl",
        "paths": [
            lines(folder / "qrels.jsonl", *({"query-id": q, "corpus-id": d, "score": s} for q, d, s in qrels))
        ],
        "queries": {
            "reader": "jsonl",
            "paths": [lines(folder / "queries.jsonl", {"_id": "1", "text": "one?"}, {"_id": "2", "text": "two?"})],
        },
        "corpus": {"reader": "jsonl", "paths": [lines(folder / "corpus.jsonl", *documents)]},
    }


def test_judgements_meet_their_texts_and_leave_an_evaluation_task(tmp_path):
    settings = collection(tmp_path / "raw")
    transform(recipe(tmp_path, {**settings, "eval_fraction": 1.0}, questions(tmp_path)))

    (one, two) = read(tmp_path, "held_out/retrieval/collection", RetrievalExample)
    assert (one.query, set(one.positives), [n.text for n in one.negatives]) == (
        "one?",
        {"A\nfirst", "third"},
        ["second"],
    )
    assert (two.query, two.positives) == ("two?", ("second",))
    assert {row.id: row.text for row in read(tmp_path, "corpora/collection", Document)} == {
        "a": "A\nfirst",
        "b": "second",
        "d": "third",
    }
    assert [row.id for row in read(tmp_path, "queries/collection", Query)] == ["1", "2"]
    judged = {(row.query_id, row.document_id): row.grade for row in read(tmp_path, "qrels/collection", Qrel)}
    assert judged == {("1", "a"): 2, ("1", "b"): 0, ("1", "d"): 1, ("2", "b"): 1}
    dropped = {row.reason: row for row in read(tmp_path, "dropped", Drop) if row.dataset == "collection"}
    assert sorted(dropped) == ["blank_document", "blank_text", "repeated_id", "unknown_document", "unknown_query"]
    assert json.loads(dropped["unknown_document"].record) == {"query-id": "1", "corpus-id": "x", "score": 1}
    assert json.loads(dropped["repeated_id"].record)["text"] == "first "


def test_rows_of_one_query_meet_wherever_they_stand(tmp_path):
    rows = [{"query": f"q{n % 5}", "document": f"d{n}", "grade": int(n >= 10)} for n in range(15)]
    rows[3:3] = [{"query": "", "document": "x", "grade": 1}]
    path = lines(tmp_path / "graded.jsonl", *rows)
    graded = {"name": "graded", "reader": "jsonl", "rule": "graded", "paths": [path]}

    transform(recipe(tmp_path, graded))

    examples = read(tmp_path, "examples/retrieval/graded", RetrievalExample)
    # in the order of their first rows
    assert [row.query for row in examples] == ["q0", "q1", "q2", "q3", "q4"]
    assert examples[3].positives == ("d13",)
    assert [negative.text for negative in examples[3].negatives] == ["d3", "d8"]
    report = json.loads((tmp_path / "run/transform/report.json").read_text())["datasets"]["graded"]
    assert (report["read"], report["kept"], report["dropped"]) == (16, 15, {"blank_query": 1})


def test_near_duplicates_and_contamination_can_be_dropped(tmp_path):
    text = "a sentence that is long enough for thirteen words in a row to be found number {} in the list"
    rows = [
        {"question": f"entirely different question {n} {n * n}?", "answer": f"{n} {'x' * n}"} for n in range(20)
    ]
    rows += [{"question": text.format(n), "answer": f"nothing else {n}"} for n in ("one", "two")]
    held = [{"question": "held?", "answer": "before " + text.format("three")}]
    train = {
        "name": "train",
        "reader": "jsonl",
        "rule": "question_answer",
        "paths": [lines(tmp_path / "t.jsonl", *rows)],
    }
    test = {**train, "name": "test", "paths": [lines(tmp_path / "h.jsonl", *held)], "eval_fraction": 1.0}

    def kept(**settings):
        made = parse_recipe(
            {
                **recipe(tmp_path, train, test).model_dump(),
                "run": {"name": "-".join(settings), "storage": str(tmp_path)},
                "transform": settings,
            },
            place="test",
        )
        transform(made)
        folder = Folder.open(str(tmp_path)) / "-".join(settings) / "transform"
        reasons = {row.reason for row in read_records(folder / "dropped", Drop)}
        return (
            sum(1 for _ in read_records(folder / "examples/retrieval/train", RetrievalExample)),
            reasons,
            folder,
        )

    # their answers differ, so they are two examples
    assert kept(near_duplicates=0.6)[:2] == (22, set())
    count, reasons, folder = kept(contamination={"action": "drop"})
    assert (count, reasons) == (20, {"contaminated"})
    (overlap,) = folder.read_json("report.json")["contamination"]["overlaps"]
    assert (overlap["dataset"], overlap["task"], overlap["examples"], overlap["compared"]) == (
        "train",
        "test",
        2,
        22,
    )
    assert kept(max_chars=10_000)[0] == 22  # a report drops nothing


def test_too_many_dropped_rows_fail_the_job_with_the_reasons(tmp_path):
    settings = {**questions(tmp_path), "max_dropped_fraction": 0.1}

    with pytest.raises(DataError) as raised:
        transform(recipe(tmp_path, settings))

    for part in (
        "3 of its 23 rows (13.0%) are dropped",
        "max_dropped_fraction is 0.1",
        "1 blank_positive",
        "1 not_json",
    ):
        assert part in str(raised.value)
    assert transform(recipe(tmp_path, {**settings, "max_dropped_fraction": 0.2})).outputs["dropped rows"] == 3


def test_a_file_that_is_damaged_far_down_is_named_and_by_choice_skipped(tmp_path):
    rows = [{"question": f"question {n} {n * n}", "answer": f"answer {n}"} for n in range(20_000)]
    whole = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-1000])
    settings = {**questions(tmp_path), "paths": [str(tmp_path / "cut.jsonl.gz")]}

    with pytest.raises(
        DataError, match=r"cut\.jsonl\.gz is damaged or truncated after .* on_corrupt_file = \"skip\""
    ):
        transform(recipe(tmp_path, settings))

    transform(recipe(tmp_path, {**settings, "on_corrupt_file": "skip"}))
    kept = len(read(tmp_path, "examples/retrieval/questions", RetrievalExample))
    assert 15_000 < kept < 20_000
    reasons = [row.reason for row in read(tmp_path, "dropped", Drop)]
    assert reasons.count("corrupt_file") == 1


def test_the_report_counts_every_row(finished):
    storage, settings, _ = finished
    folder = storage / "run" / "transform"
    report = json.loads((folder / "report.json").read_text())

    for dataset in settings:
        row = report["datasets"][dataset["name"]]
        assert row["read"] == row["kept"] + row["held_out"] + row["sampled_out"] + sum(row["dropped"].values())
        assert row["languages"]
        assert row["lengths"]
    assert not (folder / "work").exists()


READER = """
import json, os, signal, time
from pathlib import Path

def rows(stream, dies_at="", slow_s=0.0):
    time.sleep(slow_s)
    for line in stream:
        if dies_at and b'"die"' in line and not Path(dies_at).exists():
            Path(dies_at).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield json.loads(line)
"""


def own(folder, count, **options):
    """Datasets of a slow reader of their own, longer than what is looked at before the start; the last row goes."""
    (folder / "own_reader.py").write_text(READER)
    made = []
    for number in range(count):
        rows = [{"question": f"question {number} {n}", "answer": f"answer {n}"} for n in range(150)]
        rows.append({"question": "die", "answer": ""})
        path = lines(folder / f"own-{number}.jsonl", *rows)
        shape = {"reader": "own_reader:rows", "rule": "question_answer", "reader_options": options}
        made.append({"name": f"own-{number}", "paths": [path], **shape})
    return made


def tables(folder):
    """Everything that a transform leaves, its manifest apart: file -> content."""
    found = {path.relative_to(folder): pq.read_table(path) for path in sorted(folder.rglob("*.parquet"))}
    return found | {"report.json": (folder / "report.json").read_text()}


def test_a_killed_worker_changes_nothing(tmp_path):
    (tmp_path / "once").mkdir()
    (tmp_path / "calm").mkdir()
    datasets = own(tmp_path, 2, dies_at=str(tmp_path / "died"))
    made = {name: recipe(tmp_path / name, *datasets) for name in ("once", "calm")}
    for one in made.values():
        one.in_folder(str(tmp_path))

    transform(made["once"])
    assert (tmp_path / "died").exists()
    transform(made["calm"])

    assert tables(tmp_path / "once/run/transform") == tables(tmp_path / "calm/run/transform")


@pytest.mark.long
def test_a_killed_driver_goes_on_with_the_shards_that_were_not_finished(tmp_path):
    datasets = own(tmp_path, 12, slow_s=0.4)
    path = tmp_path / "recipe.json"
    path.write_text(recipe(tmp_path, *datasets).model_dump_json())

    def start(name):
        code = (
            "import json; from qzhou.config.recipe import parse_recipe\n"
            "from qzhou.transform.pipeline import transform\n"
            f"content = json.load(open({str(path)!r})); content['run']['name'] = {name!r}\n"
            f"recipe = parse_recipe(content, place='test'); transform(recipe.in_folder({str(tmp_path)!r}))"
        )
        return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)

    killed = start("killed")
    folder = tmp_path / "killed" / "transform"
    deadline = time.monotonic() + 600
    while len(list(folder.glob("work/done/convert/*.json"))) < 5 and time.monotonic() < deadline:
        assert killed.poll() is None, "the driver has ended by itself"
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = {one.stem[: len("000000-0000000000")] for one in folder.glob("work/done/convert/*.json")}
    before = {name: (folder / f"dropped/{name}.parquet").stat().st_mtime_ns for name in done}

    again = start("killed")
    assert again.wait(timeout=900) == 0
    assert start("calm").wait(timeout=900) == 0

    assert 5 <= len(done) < 12
    assert {name: (folder / f"dropped/{name}.parquet").stat().st_mtime_ns for name in done} == before
    assert tables(folder) == tables(tmp_path / "calm/transform")
