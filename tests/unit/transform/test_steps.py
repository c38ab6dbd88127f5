"""The steps of the stage, one after the other without Ray: what is cut differently gives the same examples."""

import gzip
import json
from collections import Counter

import pytest

from qzhou.data.records import Document, Drop, RetrievalExample
from qzhou.data.storage import Folder, read_records
from qzhou.errors import RecipeError
from qzhou.transform.layout import PARTITION_BYTES, make_layout
from qzhou.transform.reading.files import InputFile
from qzhou.transform.reading.parts import SMALLEST_SPLIT_BYTES
from tests.transform_steps import run_steps

LONG = "a question that reads much the same as all the others of a long list of questions, number"


def rows():
    """Repeats, blanks and one line that is no JSON, more than a chunk of them."""
    for number in range(12_000):
        if number % 50 == 3:
            yield json.dumps({"question": f"{LONG} {number - 3}", "answer": f"Answer {(number - 3) % 777}"})
        elif number % 100 == 7:
            yield json.dumps({"question": " ", "answer": "x"})
        else:
            yield json.dumps({"question": f"{LONG} {number}", "answer": f"answer {number % 777}"})
    yield "{no json"


def run(recipe, folder, files):
    """Everything between the layout and the report."""
    made = make_layout(recipe, Folder.open(str(folder)), {"d": {"rows": files}})
    run_steps(made)
    return made


def read(made, path, record_type):
    return list(read_records(made.folder / path, record_type))


@pytest.fixture
def recipe(make_recipe):
    dataset = {"name": "d", "reader": "jsonl", "rule": "question_answer", "paths": ["unused"]}
    return make_recipe(datasets=[dataset])


@pytest.mark.slow
def test_a_file_that_cannot_be_cut_is_dealt_out_and_gives_the_same(tmp_path, recipe):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(rows()).encode()))
    small, large = (
        InputFile(str(path), 1000),
        InputFile(str(path), PARTITION_BYTES),
    )  # said to be larger than it is

    whole, dealt = (run(recipe, tmp_path / "whole", [small]), run(recipe, tmp_path / "dealt", [large]))

    assert [shard.kind for shard in whole.shards] == ["file"]
    assert [shard.kind for shard in dealt.shards] == ["spread"] * (4)
    ids = [{row.id for row in read(made, "examples/retrieval/d", RetrievalExample)} for made in (whole, dealt)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 12_000 - 240 - 120
    texts = [sorted(row.text for row in read(made, "corpora/d", Document)) for made in (whole, dealt)]
    assert texts[0] == texts[1]
    assert len({text.casefold() for text in texts[0]}) == 777
    dropped = [sorted(read(made, "dropped", Drop), key=lambda row: row.record) for made in (whole, dealt)]
    assert [row.record for row in dropped[0]] == [row.record for row in dropped[1]]
    raw = Counter(rows())
    assert all(raw[row.record] for row in dropped[0])  # as it stood in the file
    repeats = [row for row in dropped[0] if row.reason == "duplicate"]
    assert {row.detail for row in repeats} == {
        "an earlier row of dataset 'd' has the same texts up to case and white space"
    }
    drops = [sorted(row.reason for row in found) for found in dropped]
    assert drops[0] == drops[1]
    assert {reason: drops[0].count(reason) for reason in set(drops[0])} == {
        "blank_query": 120,
        "duplicate": 240,
        "not_json": 1,
    }


def test_what_is_done_is_known_by_step_and_name(tmp_path, recipe):
    files = [InputFile("x.jsonl.gz", 2**30)]
    first, again = (make_layout(recipe, Folder.open(str(tmp_path)), {"d": {"rows": files}}) for _ in range(2))
    (task,) = first.shuffle_phases[0]

    first.marks("shuffle").write_json(f"{task.name}.json", {})

    assert again.finished("shuffle") == {task.name}
    assert again.finished("convert") == set()


def test_documents_without_queries_fill_the_corpus_and_make_no_example(tmp_path, make_recipe):
    path = tmp_path / "texts.jsonl"
    texts = [{"text": f"Document {number % 7} of seven"} for number in range(10)] + [{"text": " "}]
    path.write_text("\n".join(map(json.dumps, texts)))
    asked = {"endpoint": "builtin", "query_rows": 5}
    dataset = {"name": "d", "reader": "jsonl", "rule": "documents", "paths": ["unused"]}
    pairs = {"name": "p", "reader": "jsonl", "rule": "question_answer", "paths": ["unused"]}

    made = run(make_recipe(datasets=[dataset], synthesis=asked), tmp_path / "out", [InputFile(str(path), 100)])

    assert read(made, "examples/retrieval/d", RetrievalExample) == []
    assert sorted(row.text for row in read(made, "corpora/d", Document)) == [
        f"Document {n} of seven" for n in range(7)
    ]
    assert sorted(row.reason for row in read(made, "dropped", Drop)) == [
        "blank_text",
        "duplicate",
        "duplicate",
        "duplicate",
    ]
    with pytest.raises(RecipeError, match=r"'d' has documents and no queries, and synthesis.query_rows is 0"):
        make_recipe(datasets=[dataset])
    make_recipe(datasets=[dataset, pairs])  # beside others it is there to be searched


@pytest.mark.slow
def test_pieces_of_a_file_give_what_the_whole_gives(tmp_path, recipe):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows()))
    size = path.stat().st_size

    tasks, whole = (
        run(recipe, tmp_path / name, [InputFile(str(path), said)]) for name, said in (("a", size), ("b", 1000))
    )

    assert size > SMALLEST_SPLIT_BYTES
    assert len(tasks.shards) > len(whole.shards) == 1
    assert read(tasks, "examples/retrieval/d", RetrievalExample) == read(
        whole, "examples/retrieval/d", RetrievalExample
    )
