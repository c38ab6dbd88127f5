import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qzhou.errors import DataError
from qzhou.transform.readers import Refused, check_columns, input_files, read_rows


def test_json_lines_go_on_after_a_malformed_line_and_name_its_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": 1}\n\n{"a": \n[1]\n'.encode() + b'{"a": "\xff"}\n' + '{"a": "é"}'.encode())

    rows = list(read_rows("jsonl", str(path)))

    assert rows[0] == {"a": 1}
    assert rows[-1] == {"a": "é"}
    refused = rows[1:-1]
    assert [row.reason for row in refused] == ["not_json", "not_an_object", "not_json"]
    assert [f"line {number}" in row.detail for number, row in zip((3, 4, 5), refused, strict=True)] == [True] * 3


def test_gzipped_files_are_unpacked(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write(json.dumps({"text": "猫"}))

    assert list(read_rows("jsonl", str(path))) == [{"text": "猫"}]


def test_csv_cells_may_hold_line_breaks_and_quotes(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"two\nlines, ""quoted""",x\r\nplain,y\n', "utf-8")

    assert list(read_rows("csv", str(path))) == [
        {"text": 'two\nlines, "quoted"', "label": "x"},
        {"text": "plain", "label": "y"},
    ]


def test_csv_without_a_header_has_numbered_columns_and_tsv_is_split_at_tabs(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("a,b\t1\nc\t2\n", "utf-8")

    assert list(read_rows("csv", str(path), header=False)) == [{"0": "a,b", "1": "1"}, {"0": "c", "1": "2"}]


def test_a_bad_csv_line_is_refused_with_file_and_line_and_reading_goes_on(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,2,3\n"x"y,2\n\xff,2\ngood,row\n"never closed,1\n')

    rows = list(read_rows("csv", str(path)))

    reasons = [row.reason if isinstance(row, Refused) else row for row in rows]
    assert reasons == ["wrong_cell_count", "not_csv", "not_utf8", {"a": "good", "b": "row"}, "not_csv"]
    assert [f"{path}, line {number}:" in row.detail for number, row in ((2, rows[0]), (3, rows[1]), (6, rows[4]))] == [
        True
    ] * 3


def test_parquet_rows_keep_their_types(tmp_path):
    rows = [{"query": "q", "positives": ["a", "b"], "score": 1.5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")

    assert list(read_rows("parquet", str(tmp_path / "rows.parquet"))) == rows


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_text("text")

    with pytest.raises(DataError, match=r"rows\.parquet: not a Parquet file"):
        list(read_rows("parquet", str(path)))


def test_globs_give_every_file_once_in_order(tmp_path):
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).write_text("")

    found = input_files("d", [f"{tmp_path}/*.csv", f"{tmp_path}/a.csv"])

    assert found == [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"]


def test_a_pattern_that_matches_nothing_is_named_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError) as raised:
        input_files("reviews", ["nowhere/*.csv"])

    for part in ("'reviews'", "'nowhere/*.csv'", str(tmp_path)):
        assert part in str(raised.value)


def test_a_missing_column_is_answered_with_the_nearest_one():
    with pytest.raises(DataError, match=r"no column 'sumary'; did you mean 'summary'\? It has: summary, body"):
        check_columns("docs", "rows.csv", ["body", "sumary"], [{"summary": "", "body": ""}])
