"""The inputs of ``qzhou embed``, cut into parts; each row is there once, whatever was written before."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qzhou.errors import DataError
from qzhou.serving.batch_texts import Sizes, TextInput, files_of, rows_of, without_what_is_done
from tests.document_files import pdf

SMALL = Sizes(rows=4, documents=2, task_rows=10, task_bytes=300)


def found_at(place, **more):
    return TextInput.find(str(place), sizes=SMALL, **more)


def write_lines(path, count, pack=bytes):
    lines = [json.dumps({"id": number, "text": f"text {number}", "lang": "en"}) for number in range(count)]
    path.write_bytes(pack("".join(f"{line}\n" for line in lines).encode()))
    return [f"text {number}" for number in range(count)]


def write_parquet(path, count):
    texts = [f"text {number}" for number in range(count)]
    pq.write_table(pa.table({"text": texts, "n": range(count)}), path, row_group_size=7)
    return texts


WRITERS = {
    "rows.jsonl": write_lines,
    "rows.jsonl.gz": lambda path, count: write_lines(path, count, gzip.compress),
    "rows.parquet": write_parquet,
}


def written(texts, parts):
    """File -> its rows, as the sink would write them."""
    blocks = [block for part in parts for block in texts.blocks(part)]
    return {name: table for block in blocks for name, table in files_of(block)}


def texts_in(files):
    return [text for table in files.values() for text in table.column("text").to_pylist()]


@pytest.mark.parametrize("name", WRITERS)
def test_all_rows_are_read_once_and_in_their_order(tmp_path, name):
    texts = WRITERS[name](tmp_path / name, 50)
    found = found_at(tmp_path / name)

    files = written(found, found.parts())

    assert texts_in(files) == texts
    assert len(found.parts()) > 1 or name.endswith(".gz")
    assert sum(map(rows_of, files)) == 50
    assert without_what_is_done(found.parts(), list(files)) == []


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_not_read_again(tmp_path, name):
    texts = WRITERS[name](tmp_path / name, 50)
    found = found_at(tmp_path / name)
    files = written(found, found.parts())
    kept = [name for number, name in enumerate(files) if number % 3]

    left = without_what_is_done(found.parts(), kept)
    again = written(found, left)

    assert not set(again) & set(kept)
    assert sorted(texts_in(again) + texts_in({name: files[name] for name in kept})) == sorted(texts)
    assert without_what_is_done(found.parts(), [*kept, *again]) == []


def test_documents_are_files_with_their_paths_as_ids(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/one.md", "two.txt", "three.TXT"):
        (tmp_path / name).write_text(f"\ufeffof {name}", "utf-8")
    found = found_at(tmp_path)

    (table,) = [pa.concat_tables(written(found, found.parts()).values())]

    assert dict(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True)) == {
        "a/one.md": "of a/one.md", "two.txt": "of two.txt", "three.TXT": "of three.TXT",
    }  # fmt: skip


def test_ids_and_further_columns_are_kept(tmp_path):
    write_lines(tmp_path / "rows.jsonl", 3)
    found = found_at(tmp_path / "rows.jsonl", id_column="id", keep=["lang"])

    (table,) = written(found, found.parts()).values()

    assert table.select(["id", "lang"]).to_pylist() == [{"id": str(number), "lang": "en"} for number in range(3)]


def test_files_may_be_added_and_none_may_change(tmp_path):
    write_lines(tmp_path / "a.jsonl", 9)
    first = found_at(tmp_path)
    files = list(written(first, first.parts()))
    write_lines(tmp_path / "b.jsonl", 5)
    added = found_at(tmp_path)

    left = without_what_is_done(added.parts(), files)

    assert {file for part in left for file in part.files} == {"b.jsonl"}
    write_lines(tmp_path / "a.jsonl", 10)
    with pytest.raises(DataError, match="which is of no file of the input as it is now"):
        without_what_is_done(found_at(tmp_path).parts(), files)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"text": "a"}', "no json"], "rows.jsonl, byte 14: Expecting value"),
        (['["a"]'], "byte 0: list, not an object"),
        (['{"body": "a"}'], "has no column 'text' .--column.. It has: body"),
    ],
)
def test_lines_that_are_no_rows_are_named(tmp_path, lines, said):
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = found_at(tmp_path)

    with pytest.raises(DataError, match=said):
        written(found, found.parts())


def test_files_of_several_kinds_or_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no such file"):
        found_at(tmp_path)
    write_lines(tmp_path / "a.jsonl", 1)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="holds 1 of jsonl, 1 of documents"):
        found_at(tmp_path)


def test_bytes_that_are_no_text_are_said_and_left_out(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(bytes(range(256)))
    (tmp_path / "b.txt").write_text("Größe über alles, und zwar später.", "latin-1")
    found = found_at(tmp_path)

    (table,) = written(found, found.parts()).values()

    assert table.column("id").to_pylist() == ["b.txt"]
    assert "embed: a.txt is left out: its bytes are text of no known encoding" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_row_without_an_id_is_named(tmp_path, name):
    rows = [{"text": "a", "key": "1"}, {"text": "b", "key": None}]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    found = found_at(tmp_path / name, id_column="key")

    with pytest.raises(DataError, match=rf"{name}(#1|, byte 26) has no id: 'key' is null \(--id\)"):
        written(found, found.parts())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("rows.jsonl", {"keep": ["vector"]}, "--keep vector: the output has a column of its own with that name"),
        ("rows.jsonl", {"keep": ["row"]}, "--keep row: the output has a column of its own"),
        ("note.txt", {"keep": ["lang"]}, "holds documents, which have no columns"),
        ("note.txt", {"id_column": "lang"}, "holds documents, which have no columns"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(tmp_path, name, options, said):
    (tmp_path / name).write_text('{"text": "a"}')

    with pytest.raises(DataError, match=said):
        found_at(tmp_path / name, **options)


def test_a_column_that_is_the_text_or_the_id_may_be_asked_for_besides(tmp_path):
    write_lines(tmp_path / "rows.jsonl", 3)

    found = found_at(tmp_path / "rows.jsonl", id_column="id", keep=["id", "text"])

    (table,) = written(found, found.parts()).values()
    assert table.column_names == ["id", "text"]


def test_hidden_files_and_pipes_are_no_texts(tmp_path):
    for name in ("a.txt", ".hidden.txt", ".git/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    os.mkfifo(tmp_path / "pipe")

    assert [name for name, _, _ in found_at(tmp_path).files] == ["a.txt"]
    with pytest.raises(DataError, match="is neither a file nor a folder"):
        found_at(tmp_path / "pipe")


def test_documents_of_every_kind_are_read_and_cut(tmp_path, tiny_bert, capsys):
    sections = [f"## Part {n}\n\nThe part {n} of the kettle is below part {n + 1}." for n in range(6)]
    manual = "\n\n".join(["# Kettle", *sections])
    (tmp_path / "kettle.md").write_text(manual)
    (tmp_path / "radio.html").write_text("<title>Radio</title><main><p>Turn the knob.</p></main>")
    (tmp_path / "iron.pdf").write_bytes(pdf("Let it cool."))
    (tmp_path / "scan.pdf").write_bytes(pdf(""))
    whole, cut = found_at(tmp_path), found_at(tmp_path).chunked(16, str(tiny_bert))

    tables = [pa.concat_tables(written(found, found.parts()).values()) for found in (whole, cut)]

    texts = [dict(zip(one.column("id").to_pylist(), one.column("text").to_pylist(), strict=True)) for one in tables]
    assert texts[0] == {"kettle.md": manual, "radio.html": "Turn the knob.", "iron.pdf": "Let it cool."}
    assert len(texts[1]) > len(texts[0])
    assert texts[1]["radio.html#0"] == "Radio\n\nTurn the knob."
    assert all(
        text.startswith("Kettle") or "# Kettle" in text for name, text in texts[1].items() if "kettle" in name
    )
    assert "embed: scan.pdf is left out: no text in it" in capsys.readouterr().out
    assert not {part.name for part in whole.parts()} & {part.name for part in cut.parts()}


def test_only_documents_are_cut(tmp_path):
    write_lines(tmp_path / "rows.jsonl", 3)
    with pytest.raises(DataError, match="holds jsonl, and --chunk-tokens cuts documents"):
        found_at(tmp_path / "rows.jsonl").chunked(10, "unused")
