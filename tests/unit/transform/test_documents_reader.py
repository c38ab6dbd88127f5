"""The reader "documents", and texts of other readers that are cut into chunks."""

import glob
import json
import os
import re
import shutil
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qzhou.data.records import Document, Qrel, Query, RetrievalExample
from qzhou.data.storage import Folder, read_records
from qzhou.errors import DataError, RecipeError
from qzhou.transform.layout import make_layout
from qzhou.transform.reading.discovery import find_inputs
from tests.document_files import WORDS, docx, pdf
from tests.transform_steps import run_steps

MANUAL = f"# Kettle\n\n{WORDS}\n\n## Lamp\n\nThe lamp is green when the water boils.\n"


@pytest.fixture
def folder(tmp_path):
    """Documents of some kinds, and what lies beside them."""
    place = tmp_path / "docs"
    (place / "deep" / "er").mkdir(parents=True)
    (place / ".git").mkdir()
    (place / "kettle.md").write_text(MANUAL)
    (place / "deep" / "er" / "radio.html").write_text("<h1>Radio</h1><p>Turn the knob until you hear music.</p>")
    (place / "deep" / "fan.docx").write_bytes(docx(("Heading1", "Fan"), ("", "It blows air through the room.")))
    (place / "iron.pdf").write_bytes(pdf("Let the iron cool before you store it."))
    (place / "copy.md").write_text(MANUAL)
    (place / "scan.pdf").write_bytes(pdf(""))
    (place / "photo.png").write_bytes(b"\x89PNG")
    (place / "notes.py").write_text("print()")
    (place / ".git" / "hidden.md").write_text("# Hidden\n\nNobody should read this.")
    (place / ".draft.md").write_text("# Draft\n\nNobody should read this.")
    return place


@pytest.fixture
def recipe_of(make_recipe, tiny_bert):
    """A recipe of some datasets; the tokens of its backbone measure chunks."""

    def make(*datasets, **more):
        return make_recipe(datasets=list(datasets), model={"backbone": str(tiny_bert)}, **more)

    return make


def dataset(folder, **more):
    return {"name": "d", "reader": "documents", "rule": "documents", "paths": [str(folder)], **more}


def titles(path):
    return {"name": "t", "reader": "documents", "rule": "title_body", "paths": [str(path)],
            "columns": {"query": "query", "positive": "body"}, "eval_fraction": 0.5}  # fmt: skip


def other():
    return {"name": "other", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}


def run(recipe, tmp_path):
    """The transform of the datasets that are documents; which files are left out."""
    documents = [one for one in recipe.datasets if one.reader != "jsonl" or one.chunk_tokens]
    recipe = recipe.model_copy(update={"datasets": tuple(documents)})
    found = find_inputs(recipe)
    made = make_layout(recipe, Folder.open(str(tmp_path / "out")), found.files)
    run_steps(made)
    return made, found


def texts(made, name="d"):
    return {one.text for one in read_records(made.folder / "corpora" / name, Document)}


def test_a_folder_is_read_whole_and_what_is_left_out_is_counted(folder, tmp_path, recipe_of):
    made, found = run(recipe_of(dataset(folder), other()), tmp_path)

    corpus = texts(made)
    assert {text.splitlines()[0].strip("# ") for text in corpus} == {"Kettle", "Radio", "Fan", "iron"}
    assert not any("Nobody" in text for text in corpus)
    assert found.no_documents["d"] == {".png": 1, ".py": 1}
    dropped = {one["reason"]: one["record"] for one in read_dropped(made)}
    assert dropped.keys() == {"duplicate", "no_text"}
    assert dropped["no_text"] == "scan.pdf"


def read_dropped(made):
    for path in sorted((made.folder / "dropped").files(".parquet")):
        yield from pq.read_table(f"{made.folder.path}/dropped/{path}").to_pylist()


@pytest.mark.parametrize("pattern", ["", "/", "/**/*.md", "/kettle.md"])
def test_paths_of_files_do_not_depend_on_where_the_folder_is(folder, tmp_path, recipe_of, pattern):
    sides = []
    for place in (folder, tmp_path / "moved" / "elsewhere"):
        if place != folder:
            shutil.copytree(folder, place)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        made, _ = run(recipe_of(titles(f"{place}{pattern}"), other()), tmp_path)
        places = (made.folder / side / "retrieval" / "t" for side in ("examples", "held_out"))
        parts = [list(read_records(one, RetrievalExample)) for one in places]
        sides.append([[one.query for one in part] for part in parts])
    assert sides[0] == sides[1]


def test_chunks_of_one_document_are_on_one_side_of_the_split(tmp_path, recipe_of):
    place = tmp_path / "docs"
    place.mkdir()
    part_of = "## Part {part} of {number}\n\nDevice {number} has a part {part} that does a thing."
    for number in range(30):
        sections = [part_of.format(part=part, number=number) for part in range(6)]
        (place / f"{number}.md").write_text("\n\n".join(sections))
    made, _ = run(recipe_of(titles(place), other()), tmp_path)

    def devices(side):
        found = read_records(made.folder / side / "retrieval" / "t", RetrievalExample)
        return {one.positives[0].split()[1] for one in found}

    assert devices("examples")
    assert devices("held_out")
    assert not devices("examples") & devices("held_out")


def test_held_out_documents_wait_for_their_queries(tmp_path, recipe_of):
    place = tmp_path / "docs"
    place.mkdir()
    for number in range(20):
        (place / f"{number}.md").write_text(f"# Device {number}\n\nIt is number {number} of many devices.")
    synthesis = {"endpoint": "builtin", "query_rows": 10}
    made, _ = run(recipe_of(dataset(place, eval_fraction=0.4), synthesis=synthesis), tmp_path)

    unseen = {one.text for one in read_records(made.folder / "held_out_documents" / "d", Document)}
    assert len(unseen) + len(texts(made)) == 20
    assert unseen
    assert not unseen & texts(made)
    assert not (made.folder / "held_out" / "retrieval" / "d").files()


def test_a_column_of_any_reader_is_cut(tmp_path, recipe_of):
    text = "\n\n".join(
        f"## Part {n}\n\nThis is what part {n} says about kettles and their lamps." for n in range(9)
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps({"title": "Manual", "content": text, "id": 7}))
    one = {"name": "d", "reader": "jsonl", "rule": "documents", "paths": [str(tmp_path / "rows.jsonl")],
           "columns": {"text": "content"}, "chunk_tokens": 24, "chunk_column": "content"}  # fmt: skip
    made, _ = run(recipe_of(one, other()), tmp_path)
    assert len(texts(made)) >= 4
    assert all(text.startswith("Manual") for text in texts(made))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Path.exists, "no file matches"),
        (lambda place: (place / "a.png").write_bytes(b"x"), r"no document in .*: it holds 1 \.png, and documents"),
        (lambda place: (place / ".a.md").write_text("# x"), "no file matches"),
    ],
    ids=["empty", "images", "hidden"],
)
def test_a_folder_without_documents_is_refused(tmp_path, recipe_of, make, told):
    place = tmp_path / "docs"
    place.mkdir()
    make(place)
    with pytest.raises(DataError, match=told):
        find_inputs(recipe_of(dataset(place), other()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_dropped_and_named(folder, tmp_path, recipe_of):
    (folder / "kettle.md").chmod(0)
    made, _ = run(recipe_of(dataset(folder), other()), tmp_path)
    assert ("unreadable_document", "kettle.md") in {(one["reason"], one["record"]) for one in read_dropped(made)}


def test_names_that_are_no_utf8_are_read(folder, tmp_path, recipe_of):
    (folder / "kettle.md").rename(os.fsdecode(os.fsencode(folder) + b"/k\xfcche.md"))
    made, _ = run(recipe_of(dataset(folder), other()), tmp_path)
    assert any("power button" in text for text in texts(made))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"eval_fraction": 0.2}, r"'d' has documents and no queries.*take its eval_fraction \(0\.2\) out"),
        ({"chunk_tokens": 20, "chunk_overlap": 20}, "chunk_overlap is 20, and chunk_tokens 20"),
    ],
)
def test_settings_that_cannot_be(recipe_of, more, told):
    with pytest.raises(RecipeError, match=told):
        recipe_of(dataset("docs", **more), other())


def test_labels_of_the_page_become_a_task(folder, tmp_path, recipe_of):
    """As docs/documents.md says: the saved file, and the corpus of the run."""
    made, _ = run(recipe_of(dataset(folder), other()), tmp_path)
    corpus = list(read_records(made.folder / "corpora" / "d", Document))
    answer = next(one for one in corpus if "power button" in one.text)
    labels = [
        {"query": "it does not start", "id": one.id, "grade": int(one is answer), "text": one.text}
        for one in corpus
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    page = (Path(__file__).parents[3] / "docs" / "documents.md").read_text("utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    block = block.replace("labels.jsonl", f"{tmp_path}/labels.jsonl")
    block = block.replace("runs/handbook/transform/corpora/handbook", f"{made.folder.path}/corpora/d")
    (judged,) = tomllib.loads(block)["datasets"]
    recipe = recipe_of(judged, other())
    recipe = recipe.model_copy(update={"datasets": recipe.datasets[:1]})
    layout = make_layout(recipe, Folder.open(str(tmp_path / "judged")), find_inputs(recipe).files)
    run_steps(layout)

    (query,) = read_records(layout.folder / "queries" / "labels", Query)
    grades = {one.document_id: one.grade for one in read_records(layout.folder / "qrels" / "labels", Qrel)}
    assert query.text == "it does not start"
    assert grades == {one.id: int(one is answer) for one in corpus}
    assert len(texts(layout, "labels")) == len(corpus)


def test_near_copies_of_documents_are_dropped(tmp_path, make_recipe, tiny_bert):
    place = tmp_path / "docs"
    place.mkdir()
    words = [f"word{number}" for number in range(60)]
    for number, text in enumerate((words, [*words[:-1], "another"], words[::-1])):
        (place / f"{number}.txt").write_text(" ".join(text))
    recipe = make_recipe(
        datasets=[dataset(place, chunk_tokens=500), other()],
        model={"backbone": str(tiny_bert)},
        transform={"near_duplicates": 0.8},
    )
    made, _ = run(recipe, tmp_path)
    assert len(texts(made)) == 2
    assert [one["reason"] for one in read_dropped(made)] == ["near_duplicate"]


def test_links_to_folders_are_not_followed(folder, tmp_path, recipe_of):
    (folder / "latest").symlink_to(folder)
    (folder / "all").symlink_to(tmp_path)
    made, _ = run(recipe_of(dataset(folder), other()), tmp_path)
    assert {text.splitlines()[0].strip("# ") for text in texts(made)} == {"Kettle", "Radio", "Fan", "iron"}


@pytest.mark.parametrize("name", ["with space", "br[1]", "a*b?"])
def test_folders_of_any_name(folder, tmp_path, recipe_of, name):
    moved = folder.rename(tmp_path / name)
    made, _ = run(recipe_of(dataset(glob.escape(str(moved))), other()), tmp_path)
    assert len(texts(made)) >= 4
