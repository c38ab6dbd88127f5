"""Files as other people write them: a small one of each shape, and the examples that it becomes."""

import base64
import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import unicodedata
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qzhou.config.dataset import Dataset
from qzhou.config.transform import ContaminationSection
from qzhou.data.cleaning import clean_text
from qzhou.data.overlap import Overlap
from qzhou.data.records import Document, Drop, LabeledExample, PairExample, RetrievalExample
from qzhou.data.storage import Folder, read_records
from qzhou.errors import DataError, RecipeError
from qzhou.transform.contamination.index_builder import IndexBuilder
from qzhou.transform.layout import make_layout
from qzhou.transform.reading.discovery import find_inputs
from qzhou.transform.rules.candidates import Converter
from qzhou.transform.writing.report import warn_of_losses
from qzhou.transform.writing.row_counts import RowCounts
from tests.transform_steps import run_steps

RECORDS = {"retrieval": RetrievalExample, "pair": PairExample, "classification": LabeledExample}


@pytest.fixture
def transformed(make_recipe, tmp_path):
    """Gives what a dataset becomes: its examples, its drops and its documents."""

    def run(**settings):
        dataset = Dataset.model_validate({"name": "d", "reader": "jsonl", **settings})
        recipe = make_recipe().model_copy(update={"datasets": (dataset,)})
        raw = find_inputs(recipe)
        layout = make_layout(recipe, Folder.open(str(tmp_path / "run")), raw.files, raw.readers, raw.merged)
        run_steps(layout)
        task = recipe.datasets[0].task
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


BINARY = {
    name: pa.binary() for name in ("query", "document", "text_a", "text_b", "title", "body", "claim", "evidence")
}


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
        ("claim_evidence", [{"claim": b"why", "evidence": b"so", "label": "supports"}], ("why", ("so",), ())),
    ],
)
def test_text_that_spark_and_hive_write_as_bytes_is_text(transformed, tmp_path, rule, rows, wanted):
    """Rows that are brought together first were b'...', quotes and all."""
    kinds = {
        name: BINARY.get(name, pa.string() if isinstance(rows[0][name], str) else pa.int64()) for name in rows[0]
    }
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
    "positive_passages": [
        {"title": "T1", "text": "one"},
        {"title": "", "text": "two"},
        {"title": None, "text": None},
    ],
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


ROW = {"question": "why", "answer": "so"}
PAIR = ("why", ("so",), ())


def zst(content):
    return pa.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize(("suffix", "pack"), [(".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zst)])
def test_packed_files_are_unpacked(transformed, tmp_path, suffix, pack):
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(pack(json.dumps(ROW).encode()))

    examples, _, _ = transformed(rule="question_answer", paths=[str(path)])

    assert triples(examples) == {PAIR}


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zst)]
)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_packed_file_that_was_cut_stops_the_run_with_its_name(transformed, tmp_path, suffix, pack, part):
    rows = [{"title": f"title {n}", "body": random.Random(n).randbytes(20).hex()} for n in range(2000)]
    whole = pack("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / f"rows.jsonl{suffix}").write_bytes(whole[: int(part * len(whole))])

    with pytest.raises(DataError, match=rf"rows\.jsonl\{suffix} is damaged or truncated"):
        transformed(rule="title_body", paths=[f"{tmp_path}/rows.jsonl{suffix}"])


def tar_of(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def test_an_archive_that_was_cut_between_its_members_is_refused(transformed, tmp_path):
    row = json.dumps({"title": "why", "body": "so"}).encode()
    path = tmp_path / "rows.tar"
    whole = tar_of(path, [("a.jsonl", row), ("b.jsonl", row)])
    for end in (1024, 1024 + 300):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"rows\.tar is damaged or truncated"):
            transformed(rule="title_body", paths=[str(path)])


def test_an_archive_that_holds_a_name_twice_is_refused(transformed, tmp_path):
    path = tmp_path / "rows.tar"
    tar_of(path, [("a.jsonl", b"{}"), ("./a.jsonl", b"{}")])

    with pytest.raises(DataError, match=r"it holds '\./a\.jsonl' twice"):
        transformed(rule="title_body", paths=[str(path)])


def test_parquet_in_an_archive_is_no_damage(transformed, tmp_path):
    parquet(tmp_path / "rows.parquet", [{"title": "why", "body": "so"}])
    tar_of(tmp_path / "rows.tar", [("rows.parquet", (tmp_path / "rows.parquet").read_bytes())])

    with pytest.raises(
        DataError, match="is packed, and Parquet cannot be read from its beginning to its end: unpack"
    ):
        transformed(rule="title_body", reader="parquet", paths=[f"{tmp_path}/rows.tar"])


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zst"])
def test_members_of_tar_archives_are_files(transformed, tmp_path, mode):
    """A .tar.gz was read as text: the first and last line of every member were lost."""
    suffix = mode.removeprefix("w").replace(":", ".").replace("zst", ".zst")
    path = tmp_path / f"rows.tar{suffix}"
    (tmp_path / "plain.tar").touch()
    with tarfile.open(tmp_path / "plain.tar", mode if ":" in mode else "w") as archive:
        for number in range(3):
            content = json.dumps({"question": f"why {number}", "answer": "so"}).encode()
            entry = tarfile.TarInfo(f"part/{number}.jsonl")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        archive.addfile(tarfile.TarInfo("part/empty"))
    content = (tmp_path / "plain.tar").read_bytes()
    path.write_bytes(zst(content) if mode == "zst" else content)

    every, _, _ = transformed(rule="question_answer", paths=[f"tar://*.jsonl::{path}"])
    assert {one.query for one in every} == {"why 0", "why 1", "why 2"}


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        ('["why", ["so"]]\n', {"columns": {"question": "value[0]", "answer": "value[-1]"}}),
        ('[["why", "so"]]', {"reader": "json", "columns": {"question": "value[0]", "answer": "value[1]"}}),
        ('{"7": {"question": "why", "answer": "so"}}', {"reader": "json", "records": "{}"}),
        ('{"data": {"why": "so"}}', {
            "reader": "json", "records": "data.{}", "columns": {"question": "key", "answer": "value"}}),
        ('{"data": [{"x": {"why": {"answer": "so"}}}]}', {
            "reader": "json", "records": "data[].x.{}", "columns": {"question": "key"}}),
        ('{"question": ["why"], "answer": ["so"]}', {
            "reader": "json", "records": ".", "explode": ["question", "answer"]}),
        ('{"set": ["why", "so", "thus"]}\n', {"columns": {"question": "set[0]", "answer": "set[1]"}}),
    ],
)  # fmt: skip
def test_json_of_any_shape(transformed, tmp_path, content, settings):
    path = tmp_path / "rows.json"
    path.write_text(content)
    columns = {
        "query" if name == "question" else "positive": one for name, one in settings.pop("columns", {}).items()
    }

    examples, drops, _ = transformed(rule="question_answer", paths=[str(path)], columns=columns, **settings)

    assert triples(examples) == {PAIR}
    assert not drops


def test_one_json_list_read_as_lines_says_which_reader(transformed, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps([{"title": "why", "body": "so"}]), "utf-8")

    with pytest.raises(DataError, match="its lines are JSON lists"):
        transformed(rule="title_body", paths=[str(path)])


def test_json_lines_read_as_one_document_say_which_reader(transformed, tmp_path):
    path = jsonl(tmp_path / "rows.json", ROW, ROW)

    with pytest.raises(DataError, match="set reader = 'jsonl'"):
        transformed(rule="question_answer", reader="json", records=".", paths=[path])


def test_columns_with_numbers_are_a_list_in_their_order(transformed, tmp_path):
    """n-tuples of sentence-transformers and F2LLM."""
    row = {"query": "why", "passage": "so", "negative_10": "ten", "negative_2": "two", "negative_1": None}
    path = jsonl(tmp_path / "rows.jsonl", row)
    columns = {"positive": "passage", "negative": "negative_*"}

    examples, _, _ = transformed(rule="triplets", paths=[path], columns=columns)

    assert triples(examples) == {("why", ("so",), ("two", "ten"))}


def test_the_lines_of_a_broken_csv_record_are_no_rows(transformed, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\n1,"he said "hi" to me\nsecond line, with comma"\nwhy,so\n"a ""b""","c\nd"\n')

    examples, drops, _ = transformed(rule="question_answer", reader="csv", paths=[str(path)])

    assert triples(examples) == {PAIR, ('a "b"', ("c\nd",), ())}
    assert [(one.reason, "lines" in one.detail or "line 2" in one.detail) for one in drops] == [("not_csv", True)]
    assert "second line, with comma" in drops[0].record


def test_a_quote_in_a_line_of_tabs_swallows_no_lines(transformed, tmp_path):
    """MS MARCO's queries: four lines were two rows. Cells that pandas quotes are still cells."""
    path = tmp_path / "rows.tsv"
    path.write_text('1\t"the man\n2\twho "was" it\n3\t"a ""b"""\n4\tlast"\n')
    columns = {"query": "0", "positive": "1"}

    examples, drops, _ = transformed(rule="question_answer", reader="csv", paths=[str(path)], columns=columns)

    assert {one.positives[0] for one in examples} == {'"the man', 'who "was" it', 'a "b"', 'last"'}
    assert not drops


def test_a_wide_csv_file_says_which_encoding(transformed, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\nwhy,so\n", "utf-16")

    with pytest.raises(DataError, match="Set encoding = 'utf-16'"):
        transformed(rule="question_answer", reader="csv", paths=[str(path)])
    examples, _, _ = transformed(rule="question_answer", reader="csv", paths=[str(path)], encoding="utf-16")
    assert triples(examples) == {PAIR}


def search(tmp_path, *documents, judgements=(("q", "d"),)):
    """Settings of a collection of one query, with corpus files of these (id, text)."""
    paths = [
        jsonl(tmp_path / f"corpus{number}.jsonl", {"_id": one, "title": "", "text": text})
        for number, (one, text) in enumerate(documents)
    ]
    queries = jsonl(tmp_path / "queries.jsonl", {"_id": "q", "text": "why"})
    rows = jsonl(tmp_path / "rows.jsonl", *({"query-id": q, "corpus-id": d, "score": 1} for q, d in judgements))
    corpus, asked = {"reader": "jsonl", "paths": paths}, {"reader": "jsonl", "paths": [queries]}
    return {"rule": "qrels", "paths": [rows], "corpus": corpus, "queries": asked}


def test_an_id_with_two_texts_is_refused_with_both_files(transformed, tmp_path):
    """Two collections count their documents from 1: judgements of one meant documents of the other."""
    said = r"the id 'd' has two texts, 'so' and 'other', in \S+corpus0.jsonl, \S+corpus1.jsonl"

    with pytest.raises(DataError, match=said):
        transformed(**search(tmp_path, ("d", "so"), ("d", "other")))
    examples, drops, _ = transformed(**search(tmp_path, ("d", "so"), ("d", "so ")))
    assert triples(examples) == {PAIR}
    assert [one.reason for one in drops] == ["repeated_id"]


def test_a_positive_is_the_text_of_its_corpus_repairs_included(transformed, tmp_path):
    settings = search(tmp_path, ("d", "so &amp;amp; <b>so</b>"))

    examples, _, documents = transformed(**settings, repairs=["html_tags"])

    assert examples[0].positives == (documents[0].text,)


def test_the_first_turn_of_a_longer_chat(transformed, tmp_path):
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}] * 2
    path = jsonl(tmp_path / "rows.jsonl", {"messages": turns}, {"messages": turns[1:]})

    examples, drops, _ = transformed(rule="chat", paths=[path], first_turn=True)

    assert triples(examples) == {PAIR}
    assert [one.reason for one in drops] == ["not_single_turn"]


def test_rows_of_several_labels_are_said_to_be_so(transformed, tmp_path):
    rows = [{"text": f"text {n}", "label": labels} for n, labels in enumerate((["a", "b"], ["a"], "b"))]
    path = jsonl(tmp_path / "rows.jsonl", *rows)

    examples, drops, _ = transformed(rule="labeled", paths=[path])
    first, _, _ = transformed(rule="labeled", paths=[path], columns={"label": "label[0]"})

    assert [one.label for one in examples] == ["d/a", "d/b"]
    assert [one.reason for one in drops] == ["several_labels"]
    assert len(first) == 2, "and the row whose label is no list is blank"


def test_what_takes_a_tenth_of_the_rows_is_said_with_the_setting_to_change(capsys):
    dataset = Dataset.model_validate({"name": "d", "reader": "jsonl", "rule": "labeled", "paths": ["x"]})
    lost = RowCounts("d", read=100, cut=7, dropped=Counter(other_language=15, short_text=9, blank_text=10))

    warn_of_losses(dataset, lost, 20_000)

    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert "15% of its rows are dropped as other_language. They are in none of its languages" in said[0]
    assert "10% of its rows are dropped as blank_text. Look at columns and rule" in said[1]
    assert "7 texts were cut at transform.max_chars (20,000)" in said[2]


def test_pairs_are_triplets_without_negatives(make_recipe, transformed, tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"query": "why", "pos": "so"})

    examples, _, _ = transformed(rule="triplets", paths=[path])
    named = {"columns": {"negative": "negs"}}

    assert triples(examples) == {PAIR}
    with pytest.raises(DataError, match="no column 'negs'"):
        transformed(rule="triplets", paths=[path], **named)
    recipe = make_recipe(datasets=[{"name": "d", "reader": "jsonl", "rule": "triplets", "paths": [path]}])
    assert list(find_inputs(recipe).without_negatives) == ["d"]


def test_texts_of_an_evaluation_are_compared_clean():
    """They were hashed as they came: decomposed letters and entities hid every overlap."""
    settings = ContaminationSection()
    text = "Un café très fort n&#39;est pas un thé noir, ni un lait chaud, ni une eau fraîche du tout."
    builder = IndexBuilder(settings)
    builder.add_texts("task", [unicodedata.normalize("NFD", text)])
    clean = clean_text(text)
    table = pa.table(
        {"text": [clean, "another text of more than thirteen words which nobody has ever asked, read or written"]}
    )

    found = Overlap("d").compare(table, "classification", builder.index())

    assert found.tolist() == [True, False]


def written_collection(tmp_path):
    documents = [{"_id": str(n), "title": "", "text": f"passage {n}"} for n in range(6)]
    queries = [{"_id": "1", "text": "what is it"}, {"_id": "2", "text": "where is it"}]
    return {
        "rule": "qrels",
        "corpus": {"reader": "jsonl", "paths": [jsonl(tmp_path / "corpus.jsonl", *documents)]},
        "queries": {"reader": "jsonl", "paths": [jsonl(tmp_path / "queries.jsonl", *queries)]},
    }


# qid, pid, pid of MS MARCO; the same with lists, as msmarco-hard-negatives and Tevatron's BM25 runs have them
TRIPLES = "1\t0\t1\n1\t0\t2\n2\t3\t4\n2\t3\t9\n"
LISTS = [
    {"qid": 1, "pos": [0], "neg": {"bm25": [1, 2]}},
    {"qid": 2, "pos": [3], "neg": {"bm25": [4, 9]}},
    {"qid": 2, "pos": [], "neg": {}},
]


@pytest.mark.parametrize("form", ["triples", "lists"])
def test_rows_of_ids_are_joined_with_their_texts(transformed, tmp_path, form):
    if form == "triples":
        (tmp_path / "triples.tsv").write_text(TRIPLES, "utf-8")
        rows = {"reader": "csv", "paths": [str(tmp_path / "triples.tsv")]}
        columns = {"query_id": "0", "document_id": "1", "negative_id": "2"}
    else:
        rows = {"paths": [jsonl(tmp_path / "lists.jsonl", *LISTS)]}
        columns = {"query_id": "qid", "document_id": "pos", "negative_id": "neg.bm25"}

    examples, drops, _ = transformed(**written_collection(tmp_path), **rows, columns=columns)

    assert triples(examples) == {
        ("what is it", ("passage 0",), ("passage 1", "passage 2")),
        ("where is it", ("passage 3",), ("passage 4",)),
    }
    ends = ["document '9' is not in the corpus"] + ["document '' is not in the corpus"] * (form == "lists")
    assert [one.detail for one in drops] == ends
    assert "bm25" not in drops[0].record, "one id, not the whole list"


def test_the_folders_of_a_partitioned_table_are_columns(transformed, tmp_path):
    for folder, text in (("kind=how%20to/day=1", "mend it"), ("kind=why/day=2", "it broke")):
        (tmp_path / folder).mkdir(parents=True)
        jsonl(tmp_path / folder / "part-0.jsonl", {"text": text})
    (tmp_path / "kind=__HIVE_DEFAULT_PARTITION__/day=1").mkdir(parents=True)
    jsonl(tmp_path / "kind=__HIVE_DEFAULT_PARTITION__/day=1/part-0.jsonl", {"text": "no kind"})
    own = tmp_path / "kind=why/day=3"
    own.mkdir()
    jsonl(own / "part-0.jsonl", {"text": "its own", "kind": "other"})

    paths = [f"{tmp_path}/kind=*/*/*.jsonl"]
    examples, drops, _ = transformed(rule="labeled", paths=paths, columns={"text": "text", "label": "kind"})

    assert {(one.text, one.label) for one in examples} == {
        ("mend it", "d/how to"),
        ("it broke", "d/why"),
        ("its own", "d/other"),  # a file's own column stands before its folder's
    }
    assert [one.reason for one in drops] == ["blank_label"]


def test_folders_that_aligned_files_share_are_columns(transformed, tmp_path):
    for side, text in (("en", "good morning"), ("de", "guten Morgen")):
        folder = tmp_path / "score=1" / f"lang={side}"
        folder.mkdir(parents=True)
        (folder / "part-0.txt").write_text(f"{text}\n", "utf-8")

    paths = [f"{tmp_path}/score=1/lang={side}/part-0.txt" for side in ("en", "de")]
    columns = {"text_a": "0", "text_b": "1", "score": "score"}
    examples, _, _ = transformed(rule="scored_pair", reader="aligned_text", paths=paths, columns=columns)

    assert ("good morning", "guten Morgen", 1.0) in [(one.text_a, one.text_b, one.score) for one in examples]


def test_braces_in_a_path_are_alternatives(transformed, tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "a.jsonl.bak"):
        jsonl(tmp_path / name, {"query": f"why {name}", "positive": "so"})

    paths = [f"{tmp_path}/{{a,c}}.jsonl{{,.gz}}"]
    examples, _, _ = transformed(
        rule="question_answer", paths=paths, columns={"query": "query", "positive": "positive"}
    )

    assert sorted(one.query for one in examples) == ["why a.jsonl", "why c.jsonl"]


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (
            [{"qid": 1, "pos": [0], "neg": {"bm25": [1]}}],
            {"negative_id": "neg.bm52"},
            "no row has 'bm52'.*are bm25",
        ),
        (
            [{"qid": 1, "pos": [0], "neg": {"bm25": [1]}}],
            {"negative_id": "neg.*"},
            r"no row has 'neg\.\*'.*qid, pos",
        ),
        ([{"qid": 1, "pos": [0], "neg": [{"pid": 1}]}], {"negative_id": "neg[].id"}, "no row has 'id'.*are pid"),
        ([{"qid": 1, "pos": [0], "neg": [1]}], {"negative_id": "neg.bm25"}, "no row has 'bm25'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(transformed, tmp_path, rows, columns, said):
    """The misspelt path gave rows without negatives, and not a word."""
    rows = {"paths": [jsonl(tmp_path / "rows.jsonl", *rows)]}
    columns = {"query_id": "qid", "document_id": "pos", **columns}

    with pytest.raises(DataError, match=said):
        transformed(**written_collection(tmp_path), **rows, columns=columns)


@pytest.mark.parametrize("value", [{}, [], None, "text", [None]])
def test_a_path_of_which_the_rows_say_nothing_is_no_mistake(transformed, tmp_path, value):
    rows = [{"query": "why", "pos": ["so"], "meta": value, "neg": ["no", "not"]}]
    rows += [{"query": "who", "pos": ["they"], "meta": {"negs": ["none", "nobody"]}, "neg": []}]
    paths = [jsonl(tmp_path / "rows.jsonl", *rows)]

    examples, _, _ = transformed(rule="triplets", paths=paths, columns={"negative": "meta.negs"})

    assert len(examples) == 2


def test_objects_in_place_of_ids_or_texts_are_counted(transformed, tmp_path):
    rows = [{"qid": 1, "pos": [0], "neg": [{"pid": 1}, 2]}]
    columns = {"query_id": "qid", "document_id": "pos", "negative_id": "neg"}
    of_ids = {"paths": [jsonl(tmp_path / "ids.jsonl", *rows)], "columns": columns}
    _, unknown, _ = transformed(**written_collection(tmp_path), **of_ids)

    texts = [{"query": "why", "pos": ["so", {"text": "p"}], "neg": [{"text": "n"}]}]
    _, parts, _ = transformed(rule="triplets", paths=[jsonl(tmp_path / "texts.jsonl", *texts)], merge_rows=False)

    assert [one.reason for one in unknown] == ["unknown_document"]
    assert [(one.reason, one.part) for one in parts] == [("not_text", True), ("not_text", True)]
    assert "name the text in it: 'neg[].text'" in parts[1].detail


def test_scores_that_belong_to_no_text_are_said(transformed, tmp_path):
    rows = [{"query": "why", "pos": ["so", "thus"], "neg": ["no", "not"], "s": [0.9]}]
    columns = {"positive_score": "s"}

    examples, parts, _ = transformed(rule="triplets", paths=[jsonl(tmp_path / "t.jsonl", *rows)], columns=columns)

    assert examples[0].positive_scores == ()
    assert [(one.reason, one.detail) for one in parts] == [
        ("scores_unmatched", "1 scores for 2 texts in column 'pos'")
    ]


def test_rows_that_become_one_keep_the_first_score_and_say_the_others(transformed, tmp_path):
    rows = [{"query": "why", "pos": "so", "neg": f"no {n}", "s": score} for n, score in enumerate((0.9, 0.9, 0.4))]
    columns = {"positive_score": "s"}

    examples, parts, _ = transformed(rule="triplets", paths=[jsonl(tmp_path / "t.jsonl", *rows)], columns=columns)

    assert [one.positive_scores for one in examples] == [(0.9,)]
    assert sorted(one.text for one in examples[0].negatives) == ["no 0", "no 1", "no 2"]
    assert [(one.reason, one.record) for one in parts] == [("scores_differ", "[0.4]")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "holds NaN or Infinity, which JSON has no word for: write null"),
        ("-Infinity", "holds NaN or Infinity"),
        (str(2**64), "holds an integer above 64 bits: write it as a string"),
    ],
)
def test_json_of_python_that_json_has_no_word_for_is_no_damage(transformed, tmp_path, value, message):
    path = tmp_path / "rows.json"
    path.write_text(f'[{{"query": "why", "positive": "so", "n": 1}},\n {{"n": {value}}}]', "utf-8")

    with pytest.raises(DataError, match=message):
        transformed(rule="question_answer", reader="json", paths=[str(path)])


def test_one_object_where_lists_of_them_stand_is_a_row(transformed, tmp_path):
    path = tmp_path / "squad.json"
    asked = [{"question": "who", "context": "they"}, {"question": "why", "context": "so"}]
    path.write_text(json.dumps({"data": [{"qas": asked[:1]}, {"qas": asked[1]}]}), "utf-8")

    examples, _, _ = transformed(
        rule="question_answer",
        reader="json",
        records="data[].qas[]",
        paths=[str(path)],
        columns={"query": "question", "positive": "context"},
    )

    assert {one.query for one in examples} == {"who", "why"}


def test_ids_that_were_numbers_with_gaps_meet_in_text_files_too(transformed, tmp_path):
    (tmp_path / "rows.tsv").write_text("query-id\tcorpus-id\tscore\n1.0\t0.0\t1\n", "utf-8")
    rows = {"reader": "csv", "paths": [str(tmp_path / "rows.tsv")]}

    examples, drops, _ = transformed(**written_collection(tmp_path), **rows)

    assert (triples(examples), drops) == ({("what is it", ("passage 0",), ())}, [])


def test_a_sample_of_equal_rows_that_stay_is_no_larger_than_asked_for(transformed, tmp_path):
    rows = [{"text_a": "a", "text_b": "b", "score": 1}] * 50
    rows += [{"text_a": f"a{n}", "text_b": f"b{n}", "score": 1} for n in range(50)]
    settings = {"rule": "scored_pair", "deduplicate": False, "max_rows": 30}

    examples, _, _ = transformed(paths=[jsonl(tmp_path / "rows.jsonl", *rows)], **settings)

    assert len(examples) == 30


def test_rows_are_merged_where_any_file_has_one_negative_a_row(transformed, tmp_path):
    first = jsonl(tmp_path / "a.jsonl", {"query": "who", "pos": "they", "neg": None})
    rows = [{"query": "why", "pos": "so", "neg": one} for one in ("no", "not")]

    examples, _, _ = transformed(rule="triplets", paths=[first, jsonl(tmp_path / "b.jsonl", *rows)])

    assert triples(examples) == {("who", ("they",), ()), ("why", ("so",), ("no", "not"))}


def test_maps_of_spark_have_keys_of_any_type_and_none_twice(transformed, tmp_path):
    schema = pa.schema({"fields": pa.map_(pa.binary(), pa.string()), "other": pa.map_(pa.int32(), pa.string())})
    good = {"fields": [(b"question", "why"), (b"answer", "so")], "other": [(1, "x")]}
    twice = {"fields": [(b"question", "who"), (b"question", "whom")], "other": []}

    examples, drops, _ = transformed(
        rule="question_answer",
        reader="parquet",
        paths=[parquet(tmp_path / "maps.parquet", [good, twice], schema)],
        columns={"query": "fields.question", "positive": "fields.answer"},
    )

    assert triples(examples) == {("why", ("so",), ())}
    assert [one.reason for one in drops] == ["repeated_key"]


def test_a_map_of_parquet_is_an_object(transformed, tmp_path):
    schema = pa.schema({"fields": pa.map_(pa.string(), pa.string())})
    rows = [{"fields": [("question", "why"), ("answer", "so")]}]

    examples, _, _ = transformed(
        rule="question_answer",
        reader="parquet",
        paths=[parquet(tmp_path / "maps.parquet", rows, schema)],
        columns={"query": "fields.question", "positive": "fields.answer"},
    )

    assert triples(examples) == {("why", ("so",), ())}


@pytest.mark.parametrize(("deduplicate", "kept"), [(None, 1), (True, 1), (False, 3)])
def test_a_dataset_may_keep_its_repeats(transformed, tmp_path, deduplicate, kept):
    rows = [{"text": "the same text", "label": "a"}] * 3

    examples, drops, _ = transformed(
        rule="labeled", paths=[jsonl(tmp_path / "r.jsonl", *rows)], deduplicate=deduplicate
    )

    assert len(examples) == kept
    assert [one.reason for one in drops] == ["duplicate"] * (3 - kept)


def test_a_sample_may_be_drawn_label_by_label(transformed, tmp_path):
    rows = [{"text": f"text {n}", "label": "rare" if n % 50 == 0 else "common"} for n in range(400)]
    settings = {"rule": "labeled", "paths": [jsonl(tmp_path / "rows.jsonl", *rows)]}

    examples, _, _ = transformed(**settings, max_rows_per_label=20)
    again, _, _ = transformed(**settings, max_rows_per_label=20)

    assert Counter(one.label for one in examples) == {"d/common": 20, "d/rare": 8}
    assert [one.id for one in again] == [one.id for one in examples]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "scored_pair", "max_rows_per_label": 2}, "has no labels to count; set max_rows"),
        ({"rule": "labeled", "max_rows_per_label": 2, "max_rows": 9}, "keep one of them"),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Dataset.model_validate({"name": "d", "reader": "jsonl", "paths": ["x"], **settings})


def test_a_folder_of_beir_is_one_line(transformed, tmp_path):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "d", "title": "A", "text": "B"}\n'))
    jsonl(folder / "queries.jsonl", {"_id": "q", "text": "why"}, {"_id": "r", "text": "held"})
    (folder / "queries.jsonl.bak").write_text("an editor's copy")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")

    examples, drops, documents = transformed(
        rule="qrels", reader="beir", paths=[str(folder)], reader_options={"split": "test"}
    )

    assert triples(examples) == {("why", ("A\nB",), ())}
    assert [one.id for one in documents] == ["d"]
    assert not drops
    with pytest.raises(ValueError, match="takes one folder"):
        Dataset.model_validate({"name": "d", "reader": "beir", "paths": ["a", "b"]})


def test_labels_stay_beside_their_texts_where_some_are_null(transformed, tmp_path):
    evidence = [
        {"evidence": "unlabelled"},
        {"evidence": "for it", "label": "SUPPORTS"},
        {"evidence": None, "label": "REFUTES"},
        {"evidence": "against it", "label": "REFUTES"},
    ]
    path = jsonl(tmp_path / "claims.jsonl", {"claim": "it is so", "evidences": evidence})
    columns = {"evidence": "evidences[].evidence", "label": "evidences[].label"}

    examples, parts, _ = transformed(rule="claim_evidence", paths=[path], columns=columns)

    assert triples(examples) == {("it is so", ("for it",), ("against it",))}
    assert [one.reason for one in parts] == ["not_enough_info", "blank_evidence"]


def test_scores_stay_beside_their_texts_where_some_are_null(transformed, tmp_path):
    negatives = [{"t": "n1"}, {"s": 0.2}, {"t": "n3", "s": 0.3}]
    path = jsonl(tmp_path / "rows.jsonl", {"query": "why", "pos": "so", "neg": negatives})
    columns = {"negative": "neg[].t", "negative_score": "neg[].s"}

    examples, parts, _ = transformed(rule="triplets", paths=[path], columns=columns)

    assert [(one.text, one.score) for one in examples[0].negatives] == [("n1", None), ("n3", 0.3)]
    assert not parts


@pytest.mark.parametrize("template", ["{ctxs[].title}\n{ctxs[].txt}", "{body.title}\n{body.txt}"])
def test_a_wrong_path_in_a_template_is_refused(transformed, tmp_path, template):
    inner = {"title": "T", "text": "passage"}
    path = jsonl(tmp_path / "rows.jsonl", {"q": "why", "ctxs": [inner], "body": inner})

    with pytest.raises(DataError, match="leads nowhere, since no row has 'txt' there; there are title, text"):
        transformed(rule="triplets", paths=[path], columns={"query": "q", "positive": template})


@pytest.mark.parametrize("template", ["{p.title}\n{p.text}", "{p.title[]}\n{p.text[]}"])
def test_lists_side_by_side_are_joined_element_by_element(transformed, tmp_path, template):
    """A list of objects, as datasets from a hub give it."""
    rows = [
        {"query": "why", "p": {"title": ["T1", None, "T3"], "text": ["x1", "x2", "x3"]}},
        {"query": "lengths differ", "p": {"title": ["T1"], "text": ["x1", "x2"]}},
    ]
    path = jsonl(tmp_path / "rows.jsonl", *rows)

    examples, drops, _ = transformed(rule="triplets", paths=[path], columns={"positive": template})

    assert triples(examples) == {("why", ("T1\nx1", "x2", "T3\nx3"), ())}
    assert [one.reason for one in drops] == ["blank_positive"]


def test_aligned_files_of_wide_characters_are_lines_too(transformed, tmp_path):
    for name, text in (("a.txt", "one\ntwo\n"), ("b.txt", "eins\nzwei\n")):
        (tmp_path / name).write_text(text, "utf-16")

    paths = [f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"]
    columns = {"query": "0", "positive": "1"}
    form = {"reader": "aligned_text", "paths": paths, "columns": columns, "encoding": "utf-16"}
    examples, drops, _ = transformed(rule="title_body", **form)

    assert {(one.query, one.positives[0]) for one in examples} == {("one", "eins"), ("two", "zwei")}
    assert not drops


def test_numbers_to_split_by_are_groups_however_they_are_written():
    dataset = Dataset(name="d", rule="title_body", paths=("x",), reader="jsonl", split_by="fold", eval_fraction=0.5)
    convert = Converter(dataset, max_chars=100)

    sides = {
        fold: {
            convert([{"title": "t", "body": "b", "fold": one}])[0].held_out
            for one in (fold, float(fold), str(fold))
        }
        for fold in range(8)
    }

    assert all(len(side) == 1 for side in sides.values())
    assert {True, False} == set.union(*sides.values())


def test_elements_that_the_path_of_records_does_not_go_through_are_counted(transformed, tmp_path):
    path = tmp_path / "rows.json"
    asked = [{"question": "who", "answer": "they"}]
    path.write_text(json.dumps({"data": [{"qas": asked}, {"qa": asked}, "text", None]}), "utf-8")

    examples, drops, _ = transformed(
        rule="question_answer", reader="json", records="data[].qas[]", paths=[str(path)]
    )

    assert {one.query for one in examples} == {"who"}
    assert [one.reason for one in drops] == ["path_ends"] * 3
    assert "no 'qas' in it; there are qa" in drops[0].detail


@pytest.mark.parametrize("last", ['q200,"b 6" pipe"', 'q200,"never closed', "q200,fine"])
def test_good_records_between_broken_ones_are_kept(transformed, tmp_path, last):
    good = [f'"question {number}","an answer, {number}"' for number in range(198)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["question,answer", 'q1,"a 5" pipe"', *good, last, *good[:4]]) + "\n")

    examples, drops, _ = transformed(rule="question_answer", reader="csv", paths=[str(path)], deduplicate=False)

    assert len(examples) == 198 + 4 + (last == "q200,fine")
    assert {one.reason for one in drops} == {"not_csv"}
    assert len(drops) == 2 - (last == "q200,fine")


def test_backslashes_before_quotes_are_a_setting(transformed, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\n"why","he said \\"hi\\", then left"\n')
    form = {"rule": "question_answer", "reader": "csv", "paths": [str(path)]}

    examples, _, _ = transformed(**form, escape="\\")

    assert [one.positives for one in examples] == [('he said "hi", then left',)]


def test_files_without_the_negatives_of_the_others_are_named(make_recipe, tmp_path):
    paths = [
        jsonl(tmp_path / "a.jsonl", {"query": "why", "pos": "so", "neg": ["no"]}),
        jsonl(tmp_path / "b.jsonl", {"query": "who", "pos": "they", "negs": ["no"]}),
    ]
    dataset = Dataset(name="d", rule="triplets", paths=tuple(paths), reader="jsonl")

    found = find_inputs(make_recipe().model_copy(update={"datasets": (dataset,)}))

    assert found.without_negatives == {"d": [paths[1]]}


def test_columns_of_scores_are_no_numbered_texts(transformed, tmp_path):
    row = {"query": "why", "pos": "so", "negative_1": "no", "negative_1_score": 0.7, "negative_2": "nor"}

    examples, _, _ = transformed(
        rule="triplets", paths=[jsonl(tmp_path / "t.jsonl", row)], columns={"negative": "negative_*"}
    )

    assert triples(examples) == {("why", ("so",), ("no", "nor"))}


def test_lists_that_were_written_as_text_are_refused(transformed, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,pos\nwhy,\"['p1', 'p2']\"\nwho,\"['p3']\"\n")

    with pytest.raises(DataError, match=r"column 'pos' holds lists written as text .*'p1'.*Parquet"):
        transformed(rule="triplets", reader="csv", paths=[str(path)])


def test_labels_are_translated_for_classes_too(transformed, tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"text": "a text", "label": 0}, {"text": "another", "label": "x"})

    examples, _, _ = transformed(rule="labeled", paths=[path], labels={"0": "business"})

    assert {one.label for one in examples} == {"d/business", "d/x"}


@pytest.mark.parametrize("nothing", [[], {"text": [], "answer_start": []}])
def test_a_passage_that_does_not_answer_is_no_positive(transformed, tmp_path, nothing):
    rows = [
        {"question": "who", "context": "They did.", "answers": nothing},
        {"question": "why", "context": "Since so.", "answers": [{"text": "so"}]},
        {"question": "when", "context": "Then it was."},
    ]

    examples, drops, _ = transformed(rule="reading_comprehension", paths=[jsonl(tmp_path / "squad.jsonl", *rows)])

    assert {one.query for one in examples} == {"why", "when"}
    assert [one.reason for one in drops] == ["unanswerable"]


def test_answers_may_be_a_template_of_several_columns(transformed, tmp_path):
    rows = [
        {"question": "who", "context": "They did.", "short": "", "long": "They did it."},
        {"question": "why", "context": "Since so.", "short": "", "long": ""},
    ]
    form = {"rule": "reading_comprehension", "paths": [jsonl(tmp_path / "rows.jsonl", *rows)]}

    examples, drops, _ = transformed(**form, columns={"answer": "{short}{long}"})

    assert [one.query for one in examples] == ["who"]
    assert [(one.reason, one.detail) for one in drops] == [("unanswerable", "column 'short, long' holds no answer")]


def test_two_columns_of_one_name_are_refused(transformed, tmp_path):
    table = pa.Table.from_arrays(
        [pa.array(["why"]), pa.array(["so"]), pa.array(["no"])], ["question", "answer", "answer"]
    )
    pq.write_table(table, tmp_path / "rows.parquet")

    with pytest.raises(DataError, match=r"columns of one name .'answer'."):
        transformed(rule="question_answer", reader="parquet", paths=[f"{tmp_path}/rows.parquet"])


def test_a_corpus_may_have_no_titles(transformed, tmp_path):
    (tmp_path / "qrels").mkdir()
    jsonl(tmp_path / "corpus.jsonl", {"_id": "d", "text": "B"})
    jsonl(tmp_path / "queries.jsonl", {"_id": "q", "text": "why"})
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")

    examples, _, _ = transformed(rule="qrels", reader="beir", paths=[str(tmp_path)])

    assert triples(examples) == {("why", ("B",), ())}


def test_a_document_over_many_lines_says_which_reader(transformed, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps([{"question": "why", "answer": "so"}], indent=1), "utf-8")

    with pytest.raises(DataError, match="one JSON document over many lines: set reader = 'json'"):
        transformed(rule="question_answer", paths=[str(path)])


def test_bytes_that_are_no_text_are_shown_in_the_drop_as_they_were(transformed, tmp_path):
    rows = [
        {"question": "what is this?", "answer": b"\xff\xfe no text"},
        {"question": "and this?", "answer": b"a cat"},
    ]
    path = parquet(tmp_path / "d.parquet", rows)

    examples, dropped, _ = transformed(reader="parquet", rule="question_answer", paths=[path])

    assert [one.positives for one in examples] == [("a cat",)]
    assert [(one.reason, one.part) for one in dropped] == [("blank_positive", False), ("not_text", True)]
    assert base64.b64decode(json.loads(dropped[0].record)["answer"]["base64"]) == b"\xff\xfe no text"
