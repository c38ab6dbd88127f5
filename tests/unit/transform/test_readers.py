import bz2
import gzip
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qzhou.config.dataset import Format
from qzhou.data.encodings import detected_encoding
from qzhou.errors import DataError, RecipeError
from qzhou.transform.reading.columns import RejectedRow, column_names, exploded, getter, steps_of
from qzhou.transform.reading.discovery import check_columns
from qzhou.transform.reading.encodings import detect_encodings
from qzhou.transform.reading.files import InputFile, input_files
from qzhou.transform.reading.hub import hf_dataset
from qzhou.transform.reading.parts import SPLIT_BYTES, FilePart, file_parts
from qzhou.transform.reading.readers import read_part


def form(reader, **settings):
    return Format.model_validate({"reader": reader, **settings})


def read(path, reader, custom=None, **settings):
    asked = form(reader, **settings)
    files = detect_encodings(asked, [InputFile(str(path))])
    return list(read_part(asked, FilePart(tuple(files)), custom))


def reasons(rows):
    return [row.reason for row in rows if isinstance(row, RejectedRow)]


def test_json_lines_go_on_after_a_malformed_line_and_name_its_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": 1}\n\n{"a": \n[1]\n'.encode() + b'{"a": "\xff"}\n' + '{"a": "é"}'.encode())

    rows = read(path, "jsonl")

    assert rows[0] == {"a": 1}
    assert rows[-1] == {"a": "é"}
    refused = rows[1:-1]
    assert reasons(refused) == ["not_json", "undecodable"]
    assert refused.pop(1) == {"value": [1]}
    assert [f"line {number}" in row.detail for number, row in zip((3, 5), refused, strict=True)] == [True] * 2
    assert refused[1].content == '{"a": "\\xff"}'  # nothing is replaced without a trace


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files_are_unpacked(tmp_path, suffix, pack):
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(pack(json.dumps({"text": "猫"}).encode()))

    assert read(path, "jsonl") == [{"text": "猫"}]


def test_members_of_a_zip_archive_are_files(tmp_path):
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("b/two.csv", "text\nzwei\n")
        stream.writestr("a/one.csv", "text\neins\n")
        stream.writestr("readme.txt", "not a table")

    whole = input_files(form("csv", paths=[f"zip://*.csv::{archive}"]))

    assert [file.member for file in whole] == ["a/one.csv", "b/two.csv"]
    assert list(read_part(form("csv"), FilePart(tuple(whole)))) == [{"text": "eins"}, {"text": "zwei"}]
    with pytest.raises(DataError, match=r"no member .* matches 'x'; it holds a/one.csv, b/two.csv, readme.txt"):
        input_files(form("csv", paths=[f"zip://x::{archive}"]))


def test_csv_cells_may_hold_line_breaks_and_quotes(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"two\nlines, ""quoted""",x\r\nplain,y\n', "utf-8")

    assert read(path, "csv") == [{"text": 'two\nlines, "quoted"', "label": "x"}, {"text": "plain", "label": "y"}]


def test_csv_without_a_header_has_numbered_columns_and_tsv_is_split_at_tabs(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('a,"b\t1\n"c\t2\n', "utf-8")

    assert read(path, "csv", columns={"text": "0"}, quote="") == [{"0": 'a,"b', "1": "1"}, {"0": '"c', "1": "2"}]


def test_a_bad_csv_line_is_refused_with_file_and_line_and_reading_goes_on(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,2,3\n"x"y,2\n\xff,2\ngood,row\n"never closed,1\n')  # in the last line

    rows = read(path, "csv")

    found = [row.reason if isinstance(row, RejectedRow) else row for row in rows]
    assert found == ["wrong_cell_count", "not_csv", "undecodable", {"a": "good", "b": "row"}, "not_csv"]
    assert rows[1].content == '"x"y,2\n'
    assert [
        f"{path}, line {number}:" in row.detail for number, row in ((2, rows[0]), (3, rows[1]), (6, rows[4]))
    ] == [True] * 3


def test_an_encoding_is_declared_or_detected_and_never_guessed_silently(tmp_path):
    latin, chinese = tmp_path / "latin.csv", tmp_path / "chinese.csv"
    latin.write_bytes("text\ncafé au lait\n".encode("latin-1"))
    chinese.write_bytes(("text\n" + "中文文本的编码可以被检测出来。" * 20 + "\n").encode("gb18030"))

    assert reasons(read(latin, "csv")) == ["undecodable"]
    assert read(latin, "csv", encoding="latin-1") == [{"text": "café au lait"}]
    assert read(chinese, "csv", encoding="detect")[0]["text"].startswith("中文文本")
    assert read(chinese, "csv", encoding="gb18030")[0]["text"].startswith("中文文本")
    utf16 = tmp_path / "wide.jsonl"
    utf16.write_bytes('{"text": "wide"}\n'.encode("utf-16"))
    assert read(utf16, "jsonl", encoding="detect") == [{"text": "wide"}]


def test_parquet_rows_keep_their_types(tmp_path):
    rows = [{"query": "q", "positives": ["a", "b"], "score": 1.5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")

    assert read(tmp_path / "rows.parquet", "parquet") == rows


def test_text_lines_are_split_at_the_delimiter_the_last_column_taking_the_rest(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_bytes("DESC:x What is é ?\nNODELIMITER\n".encode("latin-1"))

    rows = read(path, "text", delimiter=" ", max_columns=2, encoding="latin-1")

    assert rows[0] == {"0": "DESC:x", "1": "What is é ?"}
    assert rows[1].reason == "wrong_cell_count"
    path.write_text("  1   28\t0\n")
    assert read(path, "text", delimiter="") == [{"0": "1", "1": "28", "2": "0"}]


def test_aligned_files_make_one_row_a_line_and_must_be_equally_long(tmp_path):
    sides = [tmp_path / name for name in ("a.txt", "b.txt")]
    sides[0].write_text("one\n\nthree\n")
    sides[1].write_text("eins\nzwei\ndrei\n")
    part = FilePart(tuple(InputFile(str(side)) for side in sides))

    rows = list(read_part(form("aligned_text"), part))

    assert rows == [{"0": "one", "1": "eins"}, {"0": "", "1": "zwei"}, {"0": "three", "1": "drei"}]
    sides[1].write_text("eins\nzwei\n")
    with pytest.raises(DataError, match=r"b\.txt ends before line 3"):
        list(read_part(form("aligned_text"), part))


SQUAD = {
    "version": 1,
    "data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [{"id": 1, "question": "Q?"}, {"id": 2}]}]}],
}


def test_trees_are_exploded_and_inner_fields_win(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(SQUAD), "utf-8-sig")

    rows = read(path, "json", records="data[].paragraphs[].qas[]")

    assert rows == [
        {"title": "T", "context": "C", "id": 1, "question": "Q?"},
        {"title": "T", "context": "C", "id": 2},
    ]
    assert list(exploded({"id": 0, "x": [{"id": 1}]}, steps_of("x[]"))) == [{"id": 1}]
    with pytest.raises(DataError, match="holds no rows at 'rows'"):
        read(path, "json", records="rows")


def test_lists_explode_into_rows_and_unequal_ones_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"t": ["a", "b"], "l": [1, 2], "k": 0}\n{"t": ["a"], "l": [1, 2]}\n{"t": [], "l": []}\n')

    rows = read(path, "jsonl", explode=["t", "l"])

    assert rows[:2] == [{"t": "a", "l": 1, "k": 0}, {"t": "b", "l": 2, "k": 0}]
    assert reasons(rows) == ["unequal_lists", "empty_lists"]


def test_constants_are_columns_of_every_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')

    assert read(path, "jsonl", constants={"grade": 3}) == [{"a": 1, "grade": 3}]


@pytest.mark.parametrize(
    ("name", "content", "reader"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 200_000, mtime=0)[:-500], "jsonl"),
        ("followed.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0) + b"no gzip", "jsonl"),
        ("cut.csv.bz2", bz2.compress(b"a\n1\n" * 500_000)[:-500], "csv"),
        ("no.parquet", b"text", "parquet"),
        ("cut.json", b'[{"a": 1}, {"a": 2}, {"a"', "json"),
        ("open.csv", b'a,b\n1,2\n3,"cut,\nhere', "csv"),
    ],
)
def test_a_damaged_file_is_named_and_by_choice_skipped(tmp_path, name, content, reader):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError, match=rf'{name} is damaged or truncated after .* on_corrupt_file = "skip"'):
        read(path, reader)
    rows = read(path, reader, on_corrupt_file="skip")
    assert reasons(rows)[-1] == "corrupt_file"
    assert all(isinstance(row, dict) for row in rows[:-1])


@pytest.mark.parametrize(
    ("name", "content", "reader", "said"),
    [
        ("plain.jsonl.gz", b'{"a": 1}\n', "jsonl", "ends with .gz and is not packed by gzip: correct its name"),
        ("plain.jsonl.bz2", b'{"a": 1}\n', "jsonl", "ends with .bz2 and is not packed by bzip2"),
        ("plain.jsonl.xz", b'{"a": 1}\n', "jsonl", "ends with .xz and is not packed by xz"),
        (
            "packed.jsonl",
            gzip.compress(b'{"a": 1}\n', mtime=0),
            "jsonl",
            "is packed by gzip: give it a name that ends with .gz",
        ),
        ("rows.jsonl", b'{"a": 1}\n{"a": 2}\n', "parquet", "is no Parquet file: set 'reader' to what it is"),
    ],
)
def test_a_file_of_another_kind_is_not_called_damaged(tmp_path, name, content, reader, said):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError, match=rf"{name} {said}") as caught:
        read(path, reader)

    assert "damaged" not in str(caught.value)


def test_a_reader_of_ones_own_gets_the_unpacked_stream_and_its_options(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a b\n"))

    def words(stream, key):
        for line in stream:
            yield from ({key: word.decode()} for word in line.split())
        yield 1

    def broken(stream):
        yield {"a": stream.read(1)}
        raise KeyError("missing")

    rows = read(path, "mine:words", words, reader_options={"key": "w"})
    assert rows[:2] == [{"w": "a"}, {"w": "b"}]
    assert reasons(rows) == ["not_an_object"]
    with pytest.raises(
        DataError,
        match=r"reader 'mine:broken' failed on .*x\.gz: KeyError: 'missing' \(line \d+ of test_readers.py",
    ):
        read(path, "mine:broken", broken)


def test_a_reader_of_ones_own_may_take_all_files_at_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"{name} 1\n{name} 2\n")

    def crossed(streams):
        for lines in zip(*map(list, streams), strict=True):
            yield dict(enumerate(line.decode().strip() for line in lines))

    def broken(streams):
        for stream in streams:
            yield {"a": stream.read()}
        raise KeyError("missing")

    files = [InputFile(str(tmp_path / name)) for name in ("a", "b")]
    (part,) = file_parts(form("mine:crossed"), files, together=True)

    assert list(read_part(form("mine:crossed"), part, crossed)) == [
        {"0": "a 1", "1": "b 1"},
        {"0": "a 2", "1": "b 2"},
    ]
    with pytest.raises(DataError, match=r"failed on .*/b: KeyError: 'missing' \(line \d+ of"):
        list(read_part(form("mine:broken"), part, broken))


def test_a_dataset_of_the_hub_is_read_through_datasets(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    file = InputFile(f"hf://{tmp_path}:train")

    (part,) = file_parts(form("hf"), [file])

    assert [row["text"] for row in read_part(form("hf"), part)] == ["a", "b"]
    for address, said in ((f"hf://{tmp_path}:nowhere", "cannot be loaded"), ("hf://x", "hf://name/config:split")):
        with pytest.raises(DataError, match=said):
            hf_dataset(InputFile(address))


def test_globs_give_every_file_once_in_order(tmp_path):
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).write_text("")

    found = input_files(form("csv", paths=[f"{tmp_path}/*.csv", f"{tmp_path}/a.csv"]))

    assert [file.uri for file in found] == [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"]


def test_other_filesystems_are_globbed_and_read(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        memory.pipe(f"/bucket/{name}", b'{"name": "%s"}\n' % name.encode())
    (tmp_path / "x.jsonl").write_text('{"name": "x"}\n')

    for pattern, names in (
        ("memory://bucket/*.jsonl", ["a.jsonl", "b.jsonl"]),
        (f"file://{tmp_path}/*.jsonl", ["x"]),
    ):
        found = input_files(form("jsonl", paths=[pattern]))
        assert [row["name"] for row in read_part(form("jsonl"), FilePart(tuple(found)))] == names
        assert all(file.size for file in found)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.zip"])
def test_what_lies_on_an_object_store_is_read_in_large_pieces(tmp_path, monkeypatch, name):
    from fsspec.implementations.arrow import ArrowFile

    lines = [f'{{"name": "{number}"}}' if "jsonl" in name else str(number) for number in range(60000)]
    content = "\n".join(lines if "jsonl" in name else ["name", *lines]).encode()
    if name == "rows.zip":
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows.csv", content)
    else:
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    asked = []

    def counted(method):
        def ask(self, *args):
            before = self.stream.tell()
            answer = getattr(self.stream, method)(*args)
            asked.append(self.stream.tell() - before)
            return answer

        return ask

    found = input_files(form("jsonl" if "jsonl" in name else "csv", paths=[f"file://{tmp_path}/{name}"]))
    for method in ("read", "readinto"):
        monkeypatch.setattr(ArrowFile, method, counted(method))
    read = list(read_part(form("jsonl" if "jsonl" in name else "csv"), FilePart(tuple(found))))

    assert len(read) == 60000
    assert sum(asked) >= (tmp_path / name).stat().st_size
    assert sum(size > 0 for size in asked) < 10, "each is a request"


def test_an_environment_variable_that_is_not_set_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    (tmp_path / "a.csv").write_text("")

    assert len(input_files(form("csv", paths=["$MY_DATA/a.csv", "${MY_DATA}/a.csv"]))) == 1
    with pytest.raises(
        DataError, match=r"needs the environment variable NO_DATA, which is not set.*export NO_DATA="
    ):
        input_files(form("csv", paths=["$NO_DATA/a.csv"]))


def test_a_pattern_that_matches_nothing_is_named_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError) as raised:
        input_files(form("csv", paths=["nowhere/*.csv"]))

    for part in ("'nowhere/*.csv'", str(tmp_path)):
        assert part in str(raised.value)


@pytest.mark.parametrize("size", [7, 100, 1000, 4096])
@pytest.mark.parametrize("end", ["\n", ""])
def test_a_large_file_is_cut_at_lines_and_every_line_is_read_once(tmp_path, size, end):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"n": n, "text": "é" * (n % 50)}) for n in range(200)) + end, "utf-8")
    length = path.stat().st_size
    file = InputFile(str(path), length)
    tasks = [FilePart((file,), start, min(start + size, length)) for start in range(0, length, size)]

    rows = [row for task in tasks for row in read_part(form("jsonl"), task)]

    assert [row["n"] for row in rows] == list(range(200))


def test_large_files_are_cut_and_small_ones_read_together():
    small = [InputFile(f"{n}.jsonl", 2**20) for n in range(20)]
    large = InputFile("large.jsonl", 100 * 2**20)
    packed = InputFile("large.jsonl.gz", 100 * 2**20)

    parts = file_parts(form("jsonl"), [*small, large, packed])

    assert [len(part.files) for part in parts[:2]] == [16, 4]
    assert [(part.start, part.end) for part in parts if part.files == (large,)] == [
        (n * SPLIT_BYTES, min((n + 1) * SPLIT_BYTES, large.size)) for n in range(7)
    ]
    assert [part.end for part in parts if part.files == (packed,)] == [None]


TEXTS = [
    ("latin-1", "question,réponse\nOù est né le président ?,Il est né à Besançon en été\n"),
    ("latin-1", "frage;antwort\nWie heißt der größte Fluss Österreichs?;Die Donau fließt durch Österreich\n"),
    ("cp1250", "pytanie,odpowiedź\nGdzie leży Łódź?,Łódź leży w środkowej Polsce, nad rzeką Łódką\n"),
    ("cp1251", "вопрос,ответ\nГде находится Москва?,Москва находится в России\n"),
    ("gb18030", "问题,答案\n法国的首都是哪里？,巴黎是法国的首都。\n"),
    ("shift_jis", "質問,答え\nフランスの首都はどこですか,パリです。\n"),
    ("euc_kr", "질문,답변\n프랑스의 수도는 어디입니까,파리입니다\n"),
]


@pytest.mark.parametrize(("encoding", "text"), TEXTS)
def test_legacy_encodings_are_told_apart(encoding, text):
    content = (text * 20).encode(encoding)

    assert content.decode(detected_encoding(content)) == text * 20


def test_an_encoding_that_was_found_is_on_record_and_lets_a_file_be_cut(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((json.dumps({"t": TEXTS[3][1]}, ensure_ascii=False) + "\n").encode("cp1251") * 100)
    asked = form("jsonl", encoding="detect")

    (file,) = detect_encodings(asked, [InputFile(str(path), 4 * SPLIT_BYTES)])

    assert file.encoding == "cp1251"
    assert len(file_parts(asked, [file])) == 16


def test_what_is_said_to_be_utf_8_and_starts_like_utf_16_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "wide.jsonl"
    path.write_bytes('{"text": "wide"}\n'.encode("utf-16"))

    with pytest.raises(DataError, match=r"wide.jsonl has the byte order mark of utf-16.*encoding ="):
        read(path, "jsonl")


def test_a_csv_header_that_names_a_column_twice_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label,text\na,b,c\n")

    with pytest.raises(DataError, match="line 1: the header names the column 'text' 2 times"):
        read(path, "csv")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r"is a folder; name its files, e.g. '.*/\*.jsonl'"):
        input_files(form("jsonl", paths=[str(tmp_path)]))


def test_a_truncated_archive_is_fatal_or_skipped(tmp_path):
    archive = tmp_path / "rows.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("rows.jsonl", '{"text": "a"}\n')
    archive.write_bytes(archive.read_bytes()[:-30])
    skipped = form("jsonl", paths=[str(archive)], on_corrupt_file="skip")

    with pytest.raises(DataError, match=r"rows.zip is damaged or truncated .* set on_corrupt_file = \"skip\""):
        input_files(form("jsonl", paths=[str(archive)]))
    assert reasons(read_part(skipped, FilePart(tuple(input_files(skipped))))) == ["corrupt_file"]


@pytest.mark.parametrize("encoding", ["utf-16", "detect"])
def test_a_file_whose_line_ends_may_be_wide_is_read_whole(tmp_path, encoding):
    path = tmp_path / "wide.jsonl"
    path.write_bytes("".join(f'{{"n": {n}}}\n' for n in range(1000)).encode("utf-16"))
    wide = form("jsonl", encoding=encoding)
    file = InputFile(str(path), 4 * SPLIT_BYTES)  # said to be larger than it is

    parts = file_parts(wide, detect_encodings(wide, [file]))

    assert [row["n"] for part in parts for row in read_part(wide, part)] == list(range(1000))


def test_row_groups_of_a_large_parquet_file_are_shared_out(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"n": list(range(1000))}), path, row_group_size=100)
    file = InputFile(str(path), 4 * SPLIT_BYTES)  # said to be larger than it is

    parts = file_parts(form("parquet"), [file])

    assert len(parts) == 10  # not more than there are row groups
    assert [row["n"] for part in parts for row in read_part(form("parquet"), part)] == list(range(1000))


@pytest.mark.parametrize("groups", [[1000], [7, 990, 3], [400, 600], [1, 1, 998], [200] * 5])
def test_a_large_row_group_is_cut_and_its_rows_are_read_once(tmp_path, groups):
    """A file of a few megabytes may hold a million rows in one group."""
    path = tmp_path / "rows.parquet"
    schema, first = pa.schema([("n", pa.int64())]), 0
    with pq.ParquetWriter(path, schema) as writer:
        for rows in groups:
            writer.write_table(pa.table({"n": range(first, first + rows)}, schema=schema))
            first += rows
    file = InputFile(str(path), 64 * SPLIT_BYTES)  # said to be larger than it is

    parts = file_parts(form("parquet"), [file])

    assert [row["n"] for part in parts for row in read_part(form("parquet"), part)] == list(range(1000))
    assert max(part.end - part.start for part in parts) <= max(200, 2 * 1000 // 16)


def test_a_missing_column_is_answered_with_the_nearest_one():
    with pytest.raises(DataError, match=r"no column 'sumary'; did you mean 'summary'\? It has: summary, body"):
        check_columns("rows.csv", ["body", "sumary"], [{"summary": "", "body": ""}])
    with pytest.raises(DataError, match="no column 'bod'"):
        check_columns("rows.csv", ["{summary}\n{bod}"], [{"summary": "", "body": ""}])
    check_columns("rows.csv", ["a.b[].c", "{a.b}{d}"], [{"a": {}, "d": ""}])


def test_expressions_read_columns_paths_and_templates():
    row = {"a": {"b": [{"c": 1}, {"c": 2}, {}]}, "a.b": "dotted", "t": "Title ", "n": None, "x": "Text"}

    assert getter("t")(row) == "Title "
    assert getter("a.b")(row) == "dotted"  # a column of that name comes first
    assert getter("a.b[].c")(row) == [1, 2, None]  # in their places
    assert getter("{t}\n{x}")(row) == "Title\nText"
    assert getter("{n}\n{x}")(row) == "Text"
    assert getter("{t}\n{n}")(row) == "Title"
    assert getter("{n}{nowhere}")(row) == ""
    assert getter("{n}\n{x}")(row | {"n": float("nan")}) == "Text"
    assert column_names("{t}\n{a.b[].c}") == ["t", "a"]
    with pytest.raises(RecipeError, match="is not a template"):
        getter("{t")
