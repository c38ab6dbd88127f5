"""Files as other people write them: a small one of each shape, and the examples that it becomes."""

import bz2
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from qzhou.data.records import Document, Drop, LabeledExample, PairExample, RetrievalExample
from qzhou.data.storage import Folder, read_records
from qzhou.errors import DataError, RecipeError
from qzhou.transform.conversion import convert_shard
from qzhou.transform.deduplication.duplicates import compare_bucket
from qzhou.transform.layout import make_layout
from qzhou.transform.reading.discovery import find_inputs
from qzhou.transform.shuffling.shuffle import run_shuffle_task
from qzhou.transform.writing.shards import write_corpus, write_shard

RECORDS = {"retrieval": RetrievalExample, "pair": PairExample, "classification": LabeledExample}


@pytest.fixture
def transformed(make_recipe, tmp_path):
    """Gives what a dataset becomes: its examples, its drops and its documents."""

    def run(**settings):
        dataset = {"name": "d", "reader": "jsonl", **settings}
        recipe = make_recipe(datasets=[dataset])
        raw = find_inputs(recipe)
        layout = make_layout(recipe, Folder.open(str(tmp_path / "run")), raw.files, raw.readers, raw.merged)
        for tasks in layout.shuffle_phases:
            for task in tasks:
                run_shuffle_task(layout, task)
        for shard in layout.shards:
            convert_shard(layout, shard)
        for bucket in range(layout.buckets):
            compare_bucket(layout, bucket)
        for shard in layout.shards:
            write_shard(layout, shard, None, None)
        task = recipe.datasets[0].task
        if task == "retrieval" and settings["rule"] != "qrels":
            for part in range(layout.partitions["d"]):
                write_corpus(layout, "d", part)
        examples = list(read_records(layout.folder / "examples" / task / "d", RECORDS[task]))
        documents = list(read_records(layout.folder / "corpora" / "d", Document))
        return examples, list(read_records(layout.folder / "dropped", Drop)), documents

    return run


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def parquet(path, rows, schema=None):
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return str(path)


def triples(examples):
    return {(one.query, one.positives, tuple(each.text for each in one.negatives)) for one in examples}


BINARY = {name: pa.binary() for name in ("query", "document", "text_a", "text_b", "title", "body", "claim", "evidence")}


@pytest.mark.parametrize(
    ("rule", "rows", "wanted"),
    [
        ("title_body", [{"title": b"why", "body": b"so"}], ("why", ("so",), ())),
        (
            "graded",
            [{"query": b"why", "document": b"so", "grade": 1}, {"query": b"why", "document": b"not", "grade": 0}],
            ("why", ("so",), ("not",)),
        ),
        (
            "duplicate_questions",
            [{"text_a": b"why", "text_b": b"so", "label": 1}, {"text_a": b"why", "text_b": b"not", "label": 0}],
            ("why", ("so",), ("not",)),
        ),
        (
            "claim_evidence",
            [{"claim": b"why", "evidence": b"so", "label": "supports"}],
            ("why", ("so",), ()),
        ),
    ],
)
def test_text_that_spark_and_hive_write_as_bytes_is_text(transformed, tmp_path, rule, rows, wanted):
    """Rows that are brought together first were b'...', quotes and all."""
    kinds = {name: BINARY.get(name, pa.string() if isinstance(rows[0][name], str) else pa.int64()) for name in rows[0]}
    path = parquet(tmp_path / "rows.parquet", rows, pa.schema(kinds))

    examples, drops, _ = transformed(rule=rule, reader="parquet", paths=[path])

    assert triples(examples) == {wanted}
    assert not drops


@pytest.mark.parametrize("grade", [1, 1.0])
def test_ids_meet_however_they_are_written(transformed, tmp_path, grade):
    """Numbers, numbers that pandas made floats because one is missing, bytes: the same id."""
    corpus = parquet(tmp_path / "corpus.parquet", [{"_id": b"1", "title": b"A", "text": b"B"}], pa.schema(
        {"_id": pa.binary(), "title": pa.binary(), "text": pa.binary()}))  # fmt: skip
    queries = parquet(tmp_path / "queries.parquet", [{"_id": 7.0, "text": "why"}, {"_id": None, "text": "lost"}])
    rows = parquet(tmp_path / "rows.parquet", [{"query-id": 7, "corpus-id": 1.0, "score": grade}])

    examples, drops, documents = transformed(
        rule="qrels", reader="parquet", paths=[rows], corpus={"reader": "parquet", "paths": [corpus]},
        queries={"reader": "parquet", "paths": [queries]},
    )  # fmt: skip

    assert triples(examples) == {("why", ("A\nB",), ())}
    assert documents == [Document(id="1", text="A\nB")]
    assert not drops


def test_bytes_that_are_no_text_stay_out_of_it(transformed, tmp_path):
    rows = [{"title": b"\xff\xfe", "body": b"text", "picture": b"\x89PNG"}, {"title": b"a", "body": b"b"}]
    path = parquet(tmp_path / "rows.parquet", rows)

    examples, drops, _ = transformed(rule="title_body", reader="parquet", paths=[path])

    assert triples(examples) == {("a", ("b",), ())}
    assert [one.reason for one in drops] == ["blank_query"]


def test_triplets_with_one_negative_a_row_keep_all_of_them(transformed, tmp_path):
    """MS MARCO's layout: of fifty rows of one query 49 were duplicates, and their negatives gone."""
    path = jsonl(
        tmp_path / "rows.jsonl",
        *({"query": "why", "pos": "so", "neg": f"not {n}"} for n in range(3)),
        {"query": "why", "pos": "thus", "neg": "never"},
        {"query": "Why", "pos": "so", "neg": "not 3"},
    )

    examples, drops, _ = transformed(rule="triplets", paths=[path])

    assert triples(examples) == {
        ("why", ("so",), ("not 0", "not 1", "not 2", "not 3")),
        ("why", ("thus",), ("never",)),
    }
    assert not drops


@pytest.mark.parametrize(("merge", "negatives"), [(None, ("a", "b")), (True, ("a", "b", "c")), (False, ("a", "b"))])
def test_rows_with_lists_are_merged_where_the_recipe_says_so(transformed, tmp_path, merge, negatives):
    path = jsonl(
        tmp_path / "rows.jsonl",
        {"query": "why", "pos": ["so"], "neg": ["a", "b"]},
        {"query": "why", "pos": ["so"], "neg": ["c"]},
    )

    examples, drops, _ = transformed(rule="triplets", paths=[path], merge_rows=merge)

    assert triples(examples) == {("why", ("so",), negatives)}
    assert [one.reason for one in drops] == ([] if merge else ["duplicate"])


TEVATRON = {
    "query": "why",
    "positive_passages": [{"title": "T1", "text": "one"}, {"title": "", "text": "two"}, {"title": None, "text": None}],
    "negative_passages": [{"title": "N", "text": "none"}],
}


def test_a_template_over_a_list_makes_one_text_of_each_element(transformed, tmp_path):
    """Tevatron's and DPR's files: all passages were glued into one."""
    path = jsonl(tmp_path / "rows.jsonl", TEVATRON)
    columns = {
        "positive": "{positive_passages[].title}\n{positive_passages[].text}",
        "negative": "{query}: {negative_passages[].title} {negative_passages[].text}",
    }

    examples, _, _ = transformed(rule="triplets", paths=[path], columns=columns)

    assert triples(examples) == {("why", ("T1\none", "two"), ("why: N none",))}


def test_a_template_over_two_lists_is_refused(transformed, tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", TEVATRON)
    columns = {"positive": "{positive_passages[].title}{negative_passages[].text}"}

    with pytest.raises(RecipeError, match="joins elements of two lists"):
        transformed(rule="triplets", paths=[path], columns=columns)
