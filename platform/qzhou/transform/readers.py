"""Readers of raw files: rows as plain mappings, one at a time, in the order of the file.

A row that cannot be read is refused with its place, and reading goes on. A file that is damaged as a whole is named
and, as ``on_corrupt_file`` says, skipped or fatal. Bytes that do not fit the encoding are never replaced.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from qzhou.dataset import Format
from qzhou.errors import DataError, QzhouError, first_line
from qzhou.transform.columns import exploded, roots, steps_of
from qzhou.transform.inputs import WIDE_ENCODINGS, InputFile, Split, hf_dataset, open_bytes, open_raw

PEEKED_ROWS = 100
DETECTED_BYTES = 8 * 2**20  # what encoding = "detect" looks at
DAMAGE = (EOFError, OSError, zlib.error, zipfile.BadZipFile, pa.ArrowInvalid)

_UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape leaves of bytes that do not fit

Row = dict[str, Any]
OwnReader = Callable[..., Iterable[Row]]


@dataclass(frozen=True, slots=True)
class Refused:
    """A raw row or file that cannot be read: why, where, and what stood there."""

    reason: str
    detail: str
    content: str


def read_split(form: Format, split: Split, own: OwnReader | None = None) -> Iterator[Row | Refused]:
    """The rows of one part of the input, constants included.

    Args:
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
    return rows


def check_columns(dataset: str, place: str, wanted: Iterable[str], rows: Iterable[Row | Refused]) -> None:
    """Refuse a file whose first rows lack a column that the recipe names.

    Args:
        dataset: For the message.
        place: The file, for the message.
        wanted: Column expressions.
        rows: The file's rows; only the first ``PEEKED_ROWS`` are read.

    Raises:
        DataError: Names the dataset, the file, the column, and the nearest column that exists.
    """
    present = {column: None for row in islice(rows, PEEKED_ROWS) if isinstance(row, dict) for column in row}
    missing = [root for one in wanted if one not in present for root in roots(one) if root not in present]
    if not present or not missing:
        return
    close = difflib.get_close_matches(missing[0], list(present), n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise DataError(
        f"dataset '{dataset}': {place} has no column '{missing[0]}'; {hint}It has: {', '.join(present)}. "
        "Set 'columns' (field of the rule -> column) or 'split_by' accordingly."
    )


def detected_encoding(head: bytes) -> str:
    """The encoding of a text by its byte order mark, by being UTF-8, or by what charset-normalizer makes of it.

    Raises:
        DataError: It looks like no text at all.
    """
    from charset_normalizer import from_bytes

    marks = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    for mark, encoding in marks:
        if head.startswith(mark):
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character that the end cuts is no error
    except UnicodeDecodeError:
        best = from_bytes(head).best()
        if best is None:
            raise DataError("its encoding cannot be detected; name it with encoding = '...'") from None
        return best.encoding
    return "utf-8"


def _elements(form: Format, row: Row | Refused) -> Iterator[Row | Refused]:
    """One row per element of the lists that ``explode`` names."""
    if isinstance(row, Refused):
        yield row
        return
    lists = {name: row.get(name) for name in form.explode}
    lengths = {name: len(cells) if isinstance(cells, list) else -1 for name, cells in lists.items()}
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        found = ", ".join(f"{name} {length if length >= 0 else 'no list'}" for name, length in lengths.items())
        yield Refused("unequal_lists", f"explode: {found}", json.dumps(row, ensure_ascii=False, default=str))
        return
    if not next(iter(lengths.values())):
        yield Refused("empty_lists", "explode: no elements", json.dumps(row, ensure_ascii=False, default=str))
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
            yield from _guarded(form, file, _read_csv(form, file))
        elif form.reader == "json":
            yield from _guarded(form, file, _read_json(form, file))
        else:
            parse = _json_row if form.reader == "jsonl" else _text_row
            yield from _guarded(form, file, (parse(form, *line) for line in _lines(form, file, split)))


def _guarded(form: Format, file: InputFile, rows: Iterator[Row | Refused]) -> Iterator[Row | Refused]:
    """The rows, and what is to be done where the file turns out to be damaged."""
    read = 0
    try:
        for row in rows:
            yield row
            read += 1
    except DAMAGE as error:
        detail = f"{file.name} is damaged or truncated after {read:,} rows: {str(error) or type(error).__name__}"
    except UnicodeDecodeError as error:
        detail = f"{file.name} is not {error.encoding} after {read:,} rows: {error}"
    else:
        return
    if form.on_corrupt_file == "fatal":
        raise DataError(
            f'{detail}. Replace the file, or set on_corrupt_file = "skip" to keep what was read before the damage.'
        )
    yield Refused("corrupt_file", detail, file.name)


def _encoding(form: Format, file: InputFile) -> str:
    if form.encoding != "detect":
        return "utf-8" if codecs.lookup(form.encoding).name in {"utf-8", "utf-8-sig", "ascii"} else form.encoding
    with open_bytes(file) as stream:
        head = stream.read(DETECTED_BYTES)
    try:
        return detected_encoding(head)
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from None


def _lines(form: Format, file: InputFile, split: Split) -> Iterator[tuple[str | Refused, str]]:
    """(line or its refusal, place) of the lines that are not empty.

    A line belongs to the part in which it starts; a part that starts in the middle of a line leaves that to the
    part before.
    """
    encoding = _encoding(form, file)
    with open_bytes(file) as stream:
        if codecs.lookup(encoding).name.startswith(WIDE_ENCODINGS):
            for number, line in enumerate(io.TextIOWrapper(stream, encoding=encoding), start=1):
                if line.strip():
                    yield line.rstrip("\r\n"), f"{file.name}, line {number}"
            return
        place = f"{file.name}, line " if not split.start else f"{file.name}, after byte {split.start:,}, line "
        position = split.start
        if split.start:
            stream.seek(split.start - 1)
            position += len(stream.readline()) - 1  # only a line end, if a line starts exactly here
        for number, raw in enumerate(stream, start=1):
            if split.end is not None and position >= split.end:
                return
            position += len(raw)
            if number == 1 and not split.start:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.isspace():
                continue
            yield _decoded(raw, encoding, f"{place}{number}"), f"{place}{number}"


def _decoded(raw: bytes, encoding: str, place: str) -> str | Refused:
    """A line without its end, or its refusal with every byte that does not fit shown as an escape."""
    try:
        return raw.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        shown = raw.decode(encoding, "backslashreplace").rstrip("\r\n")
        return Refused("undecodable", f"{place}: not {encoding}: {error.reason}", shown)


def _json_row(_: Format, line: str | Refused, place: str) -> Row | Refused:
    if isinstance(line, Refused):
        return line
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Refused("not_json", f"{place}: {error}", line)
    return row if isinstance(row, dict) else Refused("not_an_object", f"{place}: {type(row).__name__}", line)


def _text_row(form: Format, line: str | Refused, place: str) -> Row | Refused:
    """Columns "0", "1", ... of a line, split at the delimiter; an empty delimiter splits at runs of blanks."""
    if isinstance(line, Refused):
        return line
    delimiter = "\t" if form.delimiter is None else form.delimiter
    cells = line.split(delimiter or None, -1 if form.max_columns is None else form.max_columns - 1)
    if form.max_columns is not None and len(cells) != form.max_columns:
        return Refused("wrong_cell_count", f"{place}: {len(cells)} cells, and max_columns is {form.max_columns}", line)
    return {str(position): cell for position, cell in enumerate(cells)}


def _read_aligned(form: Format, files: Sequence[InputFile]) -> Iterator[Row | Refused]:
    """Line n of every file makes row n; the files are columns "0", "1", ... in the order of ``paths``."""
    sides = [_every_line(form, file) for file in files]
    for number, cells in enumerate(zip_longest(*sides), start=1):
        if None in cells:
            short = next(file.name for file, cell in zip(files, cells, strict=True) if cell is None)
            raise DataError(f"aligned_text: {short} ends before line {number}, and the other files go on.")
        refused = next((cell for cell in cells if isinstance(cell, Refused)), None)
        yield refused or {str(position): cell for position, cell in enumerate(cells)}


def _every_line(form: Format, file: InputFile) -> Iterator[str | Refused]:
    encoding = _encoding(form, file)
    with open_bytes(file) as stream:
        for number, raw in enumerate(stream, start=1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            yield _decoded(line, encoding, f"{file.name}, line {number}")


def _read_json(form: Format, file: InputFile) -> Iterator[Row | Refused]:
    """Rows of a JSON document, read piece by piece down to the first list of ``records``."""
    import ijson

    steps = steps_of(form.records or "[]")
    outer = steps[: steps.index("[]") + 1] if "[]" in steps else steps
    prefix = ".".join("item" if step == "[]" else step for step in outer)
    encoding = _encoding(form, file)
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


def _read_csv(form: Format, file: InputFile) -> Iterator[Row | Refused]:
    """Quoted fields may hold line breaks; ``.tsv`` files are split at tabs."""
    csv.field_size_limit(sys.maxsize)
    encoding = _encoding(form, file)
    with open_bytes(file) as stream:
        signed = "utf-8-sig" if encoding == "utf-8" else encoding
        lines = io.TextIOWrapper(stream, encoding=signed, errors="surrogateescape", newline="")
        remembered = _Remembered(lines)
        table = csv.reader(remembered, strict=True, **_dialect(form, file))
        names: list[str] | None = None
        while True:
            place = f"{file.name}, line {table.line_num + 1}"
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as error:  # the reader goes on with the next line
                content = remembered.taken()
                if "unexpected end of data" in str(error) and content.count("\n") > 1:
                    raise EOFError(f"a quote that opens in line {place.rpartition(' ')[2]} is never closed") from None
                shown = content.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                yield Refused("not_csv", f"{place}: {error} (up to line {table.line_num})", shown)
                continue
            remembered.taken()
            if names is None and cells:
                header = _has_header(form)
                names = cells if header else [str(position) for position in range(len(cells))]
                if header:
                    continue
            if cells and names is not None:
                yield _csv_row(names, cells, place, encoding)


class _Remembered:
    """Lines on their way to the CSV reader, kept until its record is whole: what it refuses is shown as it stood."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self._kept = iter(lines), list[str]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._kept.append(line)
        return line

    def taken(self) -> str:
        content = "".join(self._kept)
        self._kept.clear()
        return content


def _dialect(form: Format, file: InputFile) -> dict[str, Any]:
    inner = re.sub(r"\.(gz|bz2)$", "", file.member or file.uri)
    delimiter = form.delimiter or ("\t" if inner.endswith((".tsv", ".tab")) else ",")
    quoting = {"quotechar": form.quote} if form.quote else {"quoting": csv.QUOTE_NONE, "quotechar": None}
    return {"delimiter": delimiter, **quoting}


def _has_header(form: Format) -> bool:
    """Columns named by number ask for a file without a header."""
    named = [root for column in form.columns.values() for root in roots(column)]
    return not (named and all(root.isdecimal() for root in named)) if form.header is None else form.header


def _csv_row(names: Sequence[str], cells: Sequence[str], place: str, encoding: str) -> Row | Refused:
    content = ",".join(cells)
    if not content.isascii() and _UNDECODED.search(content):
        shown = content.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return Refused("undecodable", f"{place}: not {encoding}", shown)
    if len(cells) != len(names):
        return Refused("wrong_cell_count", f"{place}: {len(cells)} cells, and {len(names)} columns", content)
    return dict(zip(names, cells, strict=True))


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
                line = f" (line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name})"
            trace = trace.tb_next
        raise DataError(
            f"reader '{form.reader}' failed on {file.name}: {type(error).__name__}: {error}{line}"
        ) from None
