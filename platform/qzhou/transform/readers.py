"""Readers of raw files: JSON lines, CSV and Parquet to plain rows, one at a time.

A row that cannot be read is refused with its place, and reading goes on. A file that is missing, or
does not have the columns which the recipe names, stops the run before any work is done.
"""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from qzhou.errors import DataError

PEEKED_ROWS = 100

_UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape leaves of bytes that are not UTF-8

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """A raw row or file that cannot be read: why, where, and what stood there."""

    reason: str
    detail: str
    content: str


def input_files(dataset: str, patterns: Sequence[str]) -> list[str]:
    """The files that the patterns name, sorted within each pattern, each once.

    Raises:
        DataError: A pattern matches nothing; names the dataset, the pattern and the working directory.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        start = str(Path(pattern).expanduser().absolute())  # workers may have another working directory
        matches = sorted(path for path in glob.glob(start, recursive=True) if Path(path).is_file())  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            raise DataError(
                f"dataset '{dataset}': no file matches '{pattern}' (working directory {Path.cwd()}). "
                "Correct 'paths', or run from the folder that the path starts at."
            )
        found |= dict.fromkeys(matches)
    return list(found)


def read_rows(reader: str, path: str, *, header: bool = True) -> Iterator[Row | Refused]:
    """The rows of one file, in its order; ``.gz`` is unpacked while reading.

    Args:
        reader: ``jsonl``, ``csv`` or ``parquet``.
        path: A local file.
        header: CSV: whether the first line names the columns; otherwise they are ``"0"``, ``"1"``, ...

    Raises:
        DataError: The file as a whole is not what the reader expects.
    """
    if reader == "jsonl":
        return _read_jsonl(path)
    if reader == "csv":
        return _read_csv(path, header)
    assert reader == "parquet", reader
    return _read_parquet(path)


def check_columns(dataset: str, path: str, wanted: Iterable[str], rows: Iterable[Row | Refused]) -> None:
    """Refuse a file whose first rows lack a column that the recipe names.

    Raises:
        DataError: Names the dataset, the file, the column, and the nearest column that exists.
    """
    present = {column: None for row in islice(rows, PEEKED_ROWS) if isinstance(row, dict) for column in row}
    missing = [column for column in wanted if column not in present]
    if not present or not missing:
        return
    close = difflib.get_close_matches(missing[0], list(present), n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise DataError(
        f"dataset '{dataset}': {path} has no column '{missing[0]}'; {hint}It has: {', '.join(present)}. "
        "Set 'columns' (field of the rule -> column) or 'split_by' accordingly."
    )


def _read_jsonl(path: str) -> Iterator[Row | Refused]:
    with _open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                yield Refused("not_json", f"{path}, line {number}: {error}", line.decode("utf-8", "replace"))
                continue
            if isinstance(row, dict):
                yield row
            else:
                yield Refused("not_an_object", f"{path}, line {number}: {type(row).__name__}", str(row))


def _read_csv(path: str, header: bool) -> Iterator[Row | Refused]:
    """Quoted fields may hold line breaks; ``.tsv`` files are split at tabs."""
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if path.removesuffix(".gz").endswith(".tsv") else ","
    with _open_bytes(path) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        table = csv.reader(lines, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            place = f"{path}, line {table.line_num + 1}"
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as error:  # the reader goes on with the next line
                yield Refused("not_csv", f"{place}: {error} (up to line {table.line_num})", "")
                continue
            if names is None and cells:
                names = cells if header else [str(position) for position in range(len(cells))]
                if header:
                    continue
            if cells and names is not None:
                yield _csv_row(names, cells, place)


def _csv_row(names: Sequence[str], cells: Sequence[str], place: str) -> Row | Refused:
    content = ",".join(cells)
    if not content.isascii() and _UNDECODED.search(content):
        return Refused("not_utf8", f"{place}: not UTF-8", content)
    if len(cells) != len(names):
        return Refused("wrong_cell_count", f"{place}: {len(cells)} cells, and {len(names)} columns", content)
    return dict(zip(names, cells, strict=True))


def _read_parquet(path: str) -> Iterator[Row | Refused]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None
    with file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _open_bytes(path: str) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.endswith(".gz") else Path(path).open("rb")
