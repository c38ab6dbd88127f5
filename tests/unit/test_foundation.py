"""Prompts, records, errors, storage and runs."""

import pickle

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from qzhou import errors
from qzhou.data.prompts import Prompt, declared_prompt
from qzhou.data.records import (
    LabeledExample,
    Negative,
    PairExample,
    RetrievalExample,
    Source,
    normalized_text,
    relevant_keys,
    stable_id,
)
from qzhou.data.storage import Folder, read_records, schema_of, write_records
from qzhou.errors import DataError, QzhouError, StorageError, from_json, to_json
from qzhou.run.run import Run, Stage

EXAMPLE = RetrievalExample(
    id="1",
    dataset="d",
    query="q",
    positives=("a", "b"),
    negatives=(Negative(text="x", origin="mined", score=0.5), Negative(text="y", origin="given")),
    source=Source(technique="paraphrase", parent="0", model="m", prompt="p@v1"),
)


def test_the_prompt_is_the_official_template_byte_for_byte():
    prompt = Prompt("Find it", symmetric=False)

    assert prompt.query("where?") == "Instruct: Find it\nQuery: where?"
    assert prompt.document("here") == "here"


def test_a_symmetric_prompt_stands_on_both_sides():
    prompt = Prompt("Compare", symmetric=True)

    assert prompt.document("x") == prompt.query("x") == "Instruct: Compare\nQuery: x"


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, Prompt(prefixes=("q: ", "d: "))),
        ({"passage": "p: "}, Prompt(prefixes=("", "p: "))),
        ({"query": "", "document": "", "sts": "s: "}, None),
    ],
)
def test_the_prefixes_of_another_model_are_those_that_it_declares(declared, expected):
    assert declared_prompt(declared) == expected


def test_an_empty_text_becomes_the_word_that_the_official_embedder_uses():
    assert Prompt().query("") == Prompt().document("") == "Null"


def test_ids_depend_on_dataset_and_content_alone():
    assert stable_id("d", "a", "b") == stable_id("d", "a", "b")
    assert (
        len({stable_id("d", "a", "b"), stable_id("e", "a", "b"), stable_id("d", "ab", ""), stable_id("d", "a")})
        == 4
    )


def test_what_answers_a_query_is_known_from_relatives_and_from_the_same_query():
    """Else one of two answers would be mined as the hard negative of the other."""

    def example(number, query, positive, parent=""):
        source = Source(parent=parent)
        return RetrievalExample(id=number, dataset="d", query=query, positives=(positive,), source=source)

    found = relevant_keys(
        [example("a", "Why", "One"), example("b", "why ", "two"), example("c", "how", "three", parent="a"),
         example("d", "else", "four")]
    )  # fmt: skip

    assert found == [{"one", "two", "three"}, {"one", "two"}, {"one", "three"}, {"four"}]


def test_case_and_white_space_do_not_make_two_texts_different():
    assert normalized_text(" A  b\n") == normalized_text("a B")
    assert normalized_text("a b") != normalized_text("ab")


@pytest.mark.parametrize("name", [name for name in dir(errors) if name.endswith("Error")])
def test_every_error_pickles_with_its_message(name):
    error = getattr(errors, name)("what happened")

    again = pickle.loads(pickle.dumps(error))

    assert isinstance(again, QzhouError)
    assert (type(again), str(again)) == (type(error), "what happened")


@pytest.mark.parametrize("name", [name for name in dir(errors) if name.endswith("Error")])
def test_every_error_comes_back_from_its_json(name):
    again = from_json(to_json(getattr(errors, name)("what \ud800 happened")))

    assert (type(again).__name__, str(again)) == (name, "what \ud800 happened")


def test_an_error_of_a_derived_class_comes_back_as_the_one_in_the_tree():
    derived = type("RayTaskError(DataError)", (DataError,), {})

    assert type(from_json(to_json(derived("no rows")))) is DataError


def test_every_error_is_drawn_in_the_tree():
    drawn = errors.__doc__ or ""

    assert all(name in drawn for name in dir(errors) if name.endswith("Error"))


@pytest.mark.parametrize(
    "record",
    [
        EXAMPLE,
        PairExample(id="2", dataset="d", text_a="a", text_b="b", score=1.5),
        LabeledExample(id="3", dataset="d", text="a", label="l"),
    ],
)
def test_a_record_comes_back_from_parquet_as_it_went(tmp_path, record):
    folder = Folder.open(str(tmp_path)) / "x"

    written = write_records(folder, [record], type(record))

    assert written == 1
    assert list(read_records(folder, type(record))) == [record]


def test_reading_another_schema_names_the_file_and_both_schemas(tmp_path):
    pq.write_table(pa.table({"id": ["1"], "surprise": [2]}), tmp_path / "part-000000.parquet")

    with pytest.raises(DataError, match=r"part-000000\.parquet does not hold LabeledExample(.|\n)*surprise"):
        list(read_records(Folder.open(str(tmp_path)), LabeledExample))


def test_columns_carry_the_field_names():
    assert schema_of(LabeledExample).names == ["id", "dataset", "text", "label", "source"]


def test_a_write_that_dies_leaves_the_old_file_whole_and_no_rest(tmp_path):
    folder = Folder.open(str(tmp_path))
    folder.write_bytes("f", b"old")

    def die() -> None:
        with folder.writing("f") as temporary:
            with folder.filesystem.open_output_stream(temporary) as stream:
                stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die()
    assert folder.read_bytes("f") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_storage_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(StorageError, match=r"file/run.*cannot be written"):
        (Folder.open(str(tmp_path / "file")) / "run").create()


def test_an_unknown_scheme_is_a_storage_error():
    with pytest.raises(StorageError, match="nope://"):
        Folder.open("nope://x/y")


def test_any_filesystem_of_pyarrow_will_do():
    folder = Folder(pa.fs._MockFileSystem(), "bucket/run", "mock://")

    write_records(folder / "x", [EXAMPLE], RetrievalExample)
    (folder / "x").move_to(folder / "y")

    assert list(read_records(folder / "y", RetrievalExample)) == [EXAMPLE]
    assert not (folder / "x").exists()


def stage(run, work=lambda _: {"rows": 1}, **settings):
    return run.stage(
        Stage(name="work", settings=settings, inputs={}, code_of=("qzhou.data.records",), persistent=("paid",)),
        work,
    )


def test_a_finished_stage_is_skipped_and_says_so(make_recipe, capsys):
    run = Run.open(make_recipe())
    stage(run, a=1)

    stage(run, lambda _: pytest.fail("was done again"), a=1)

    assert "work: unchanged since" in capsys.readouterr().out


def test_a_stale_stage_is_moved_aside_and_what_is_paid_for_stays(make_recipe):
    run = Run.open(make_recipe())

    def work(folder):
        assert not folder.exists("output")
        folder.write_bytes("output", b"")
        (folder / "paid").write_bytes("answer", b"42")
        return {}

    stage(run, work, a=1)
    stage(run, work, a=2)

    aside = (run.folder / "stale").folders()
    assert len(aside) == 1
    assert (run.folder / "stale" / aside[0]).exists("output")
    assert (run.folder / "work" / "paid").read_bytes("answer") == b"42"


def test_a_stage_that_died_is_entered_again_with_what_it_had(make_recipe):
    run = Run.open(make_recipe())

    def dies(folder):
        folder.write_bytes("half", b"")
        raise DataError("died")

    with pytest.raises(DataError):
        stage(run, dies, a=1)

    assert stage(run, lambda folder: {"found": int(folder.exists("half"))}, a=1).outputs == {"found": 1}


def test_a_stage_before_its_input_says_which_job_to_run(make_recipe):
    with pytest.raises(DataError, match="qzhou export"):
        Run.open(make_recipe()).manifest("model")
