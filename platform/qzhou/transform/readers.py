"""Readers of raw files: rows as plain mappings, one at a time, in the order of the file.

A row that cannot be read is refused with its place, and reading goes on. A file that is damaged as a whole is named
and, as ``on_corrupt_file`` says, skipped or fatal. Bytes that do not fit the encoding are never replaced.
"""

from __future__ import annotations

import codecs
import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from qzhou.config.dataset import Format
from qzhou.errors import DataError, QzhouError, first_line
from qzhou.transform.columns import Row, exploded, roots, steps_of
from qzhou.transform.csv_rows import csv_rows
from qzhou.transform.inputs import (
    DAMAGE,
    InputFile,
    Split,
    damaged,
    hf_dataset,
    open_bytes,
    open_raw,
)
from qzhou.transform.lines import Refused, encoding_of, every_line, lines

PEEKED_ROWS = 100

OwnReader = Callable[..., Iterable[Row]]


def read_split(
    dataset: str, form: Format, split: Split, own: OwnReader | None = None
) -> Iterator[Row | Refused]:
    """The rows of one part of the input, constants included.

    Args:
        dataset: For messages.
        form: How the files become rows.
        split: What to read.
        own: The function that ``reader = "module:function"`` names; called with each file, open in binary mode and
            unpacked, and ``reader_options``.

    Raises:
        DataError: A file is damaged and ``on_corrupt_file`` is fatal, or a reader of the user's own fails.
    """
    rows = _read(form, split, own)
    if form.explode:
        rows = (one for row in rows for one in _elements(form, row))
    if form.constants:
        rows = (row if isinstance(row, Refused) else row | form.constants for row in rows)
    try:
        yield from rows
    except DataError as error:
        raise DataError(f"dataset '{dataset}': {error}") from None


def check_columns(
    dataset: str, place: str, wanted: Iterable[str], rows: Iterable[Row | Refused]
) -> None:
    """Refuse a file whose first rows lack a column that the recipe names.

    Args:
        dataset: For the message.
        place: The file, for the message.
        wanted: Column expressions.
        rows: The file's rows; only the first ``PEEKED_ROWS`` are read.

    Raises:
        DataError: Names the dataset, the file, the column, and the nearest column that exists.
    """
    present = {
        column: None for row in islice(rows, PEEKED_ROWS) if isinstance(row, dict) for column in row
    }
    missing = [
        root for one in wanted if one not in present for root in roots(one) if root not in present
    ]
    if not present or not missing:
        return
    close = difflib.get_close_matches(missing[0], list(present), n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    raise DataError(
        f"dataset '{dataset}': {place} has no column '{missing[0]}'{hint} It has: {', '.join(present)}. "
        "Set 'columns' (field of the rule -> column) or 'split_by' accordingly."
    )


def _elements(form: Format, row: Row | Refused) -> Iterator[Row | Refused]:
    """One row per element of the lists that ``explode`` names."""
    if isinstance(row, Refused):
        yield row
        return
    lists = {name: row.get(name) for name in form.explode}
    lengths = {name: len(cells) if isinstance(cells, list) else -1 for name, cells in lists.items()}
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        found = ", ".join(
            f"{name} {length if length >= 0 else 'no list'}" for name, length in lengths.items()
        )
        yield Refused(
            "unequal_lists", f"explode: {found}", json.dumps(row, ensure_ascii=False, default=str)
        )
        return
    if not next(iter(lengths.values())):
        yield Refused(
            "empty_lists", "explode: no elements", json.dumps(row, ensure_ascii=False, default=str)
        )
    for elements in zip(*lists.values(), strict=True):
        yield row | dict(zip(lists, elements, strict=True))


def _read(form: Format, split: Split, own: OwnReader | None) -> Iterator[Row | Refused]:
    if form.reader == "hf":
        yield from _read_hf(split)
        return
    if form.reader == "aligned_text":
        yield from _guarded(form, split.files[0], _read_aligned(form, split.files))
        return
    for file in split.files:
        if ":" in form.reader:
            assert own is not None, form.reader
            yield from _guarded(form, file, _read_own(form, file, own))
        elif form.reader == "parquet":
            yield from _guarded(form, file, _read_parquet(file, split))
        elif form.reader == "csv":
            yield from _guarded(form, file, csv_rows(form, file))
        elif form.reader == "json":
            yield from _guarded(form, file, _read_json(form, file))
        else:
            parse = _json_row if form.reader == "jsonl" else _text_row
            yield from _guarded(
                form, file, (parse(form, *line) for line in lines(form, file, split))
            )


def _guarded(
    form: Format, file: InputFile, rows: Iterator[Row | Refused]
) -> Iterator[Row | Refused]:
    """The rows, and what is to be done where the file turns out to be damaged."""
    read = 0
    try:
        for row in rows:
            yield row
            read += 1
    except (*DAMAGE, UnicodeDecodeError) as error:
        detail = damaged(file, read, error)
    else:
        return
    if form.on_corrupt_file == "fatal":
        raise DataError(detail)
    yield Refused("corrupt_file", detail, file.name)


def _json_row(_: Format, line: str | Refused, place: str) -> Row | Refused:
    if isinstance(line, Refused):
        return line
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Refused("not_json", f"{place}: {error}", line)
    return (
        row
        if isinstance(row, dict)
        else Refused("not_an_object", f"{place}: {type(row).__name__}", line)
    )


def _text_row(form: Format, line: str | Refused, place: str) -> Row | Refused:
    """Columns "0", "1", ... of a line, split at the delimiter; an empty delimiter splits at runs of blanks."""
    if isinstance(line, Refused):
        return line
    delimiter = "\t" if form.delimiter is None else form.delimiter
    cells = line.split(delimiter or None, -1 if form.max_columns is None else form.max_columns - 1)
    if form.max_columns is not None and len(cells) != form.max_columns:
        return Refused(
            "wrong_cell_count",
            f"{place}: {len(cells)} cells, and max_columns is {form.max_columns}",
            line,
        )
    return {str(position): cell for position, cell in enumerate(cells)}


def _read_aligned(form: Format, files: Sequence[InputFile]) -> Iterator[Row | Refused]:
    """Line n of every file makes row n; the files are columns "0", "1", ... in the order of ``paths``."""
    sides = [every_line(form, file) for file in files]
    for number, cells in enumerate(zip_longest(*sides), start=1):
        if None in cells:
            short = next(file.name for file, cell in zip(files, cells, strict=True) if cell is None)
            raise DataError(
                f"aligned_text: {short} ends before line {number}, and the other files go on."
            )
        refused = next((cell for cell in cells if isinstance(cell, Refused)), None)
        yield refused or {str(position): cell for position, cell in enumerate(cells)}


def _read_json(form: Format, file: InputFile) -> Iterator[Row | Refused]:
    """Rows of a JSON document, read piece by piece down to the first list of ``records``."""
    import ijson

    steps = steps_of(form.records or "[]")
    outer = steps[: steps.index("[]") + 1] if "[]" in steps else steps
    prefix = ".".join("item" if step == "[]" else step for step in outer)
    encoding = encoding_of(form, file)
    found = 0
    with open_bytes(file) as stream:
        if encoding == "utf-8":
            start = stream.read(3)
            content: Any = _Rest(b"" if start == codecs.BOM_UTF8 else start, stream)
        else:
            content = io.BytesIO(io.TextIOWrapper(stream, encoding=encoding).read().encode())
        try:
            for element in ijson.items(content, prefix, use_float=True):
                for row in exploded(element, steps[len(outer) :]):
                    found += 1
                    yield row
        except ijson.IncompleteJSONError as error:
            raise EOFError(f"not whole JSON: {first_line(error)}") from None
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise EOFError(f"not JSON: {first_line(error)}") from None
    if not found:
        raise DataError(
            f"{file.name} holds no rows at '{form.records or '[]'}'. Set 'records' to the path of the rows, "
            'e.g. records = "data[].paragraphs[].qas[]".'
        )


class _Rest:
    """A stream with its first bytes put back."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start, self._stream = start, stream

    def read(self, size: int = -1) -> bytes:
        if self._start and size:
            start, self._start = self._start, b""
            return start
        return self._stream.read(size)


def _read_parquet(file: InputFile, split: Split) -> Iterator[Row | Refused]:
    with open_raw(file) as stream, pq.ParquetFile(stream) as parquet:
        groups = None if split.end is None else list(range(split.start, split.end))
        for batch in parquet.iter_batches(batch_size=1024, row_groups=groups):
            yield from batch.to_pylist()


def _read_hf(split: Split) -> Iterator[Row | Refused]:
    rows = hf_dataset(split.files[0])
    shards = rows.num_shards
    yield from (rows.shard(num_shards=shards, index=split.start) if shards > 1 else rows)


def _read_own(form: Format, file: InputFile, own: OwnReader) -> Iterator[Row | Refused]:
    """Rows of a reader of the user's own; what it raises is reported with its place, without a traceback."""
    try:
        with open_bytes(file) as stream:
            for number, row in enumerate(own(stream, **form.reader_options), start=1):
                if isinstance(row, dict):
                    yield row
                else:
                    detail = f"{file.name}, row {number} of {form.reader}: {type(row).__name__}, not a dict"
                    yield Refused("not_an_object", detail, str(row))
    except (*DAMAGE, QzhouError):
        raise
    except (Exception, SystemExit) as error:  # anything may go wrong in foreign code
        trace, line = error.__traceback__, ""
        while trace is not None:
            if trace.tb_frame.f_code.co_filename != __file__:
                line = (
                    f" (line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name})"
                )
            trace = trace.tb_next
        raise DataError(
            f"reader '{form.reader}' failed on {file.name}: {type(error).__name__}: {error}{line}"
        ) from None
