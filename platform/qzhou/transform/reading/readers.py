"""Readers of raw files: rows as plain mappings, one at a time, in the order of the file.

A row that cannot be read is rejected with its place, and reading goes on. A file that is
damaged as a whole is named and, as ``on_corrupt_file`` says, skipped or fatal. Bytes that
do not fit the encoding are never replaced.
"""

import codecs
import inspect
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from traceback import extract_tb
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from qzhou.config.dataset import Format
from qzhou.errors import DataError, QzhouError, first_line
from qzhou.transform.reading.columns import RejectedRow, Row, as_text, decoded, exploded, steps_of
from qzhou.transform.reading.csv_rows import csv_rows
from qzhou.transform.reading.documents import chunk_rows, document_rows
from qzhou.transform.reading.encodings import encoding_of
from qzhou.transform.reading.files import DAMAGE, InputFile, damage_message, open_bytes, open_raw
from qzhou.transform.reading.hub import hf_rows
from qzhou.transform.reading.lines import all_lines, lines
from qzhou.transform.reading.parts import FilePart

CustomReader = Callable[..., Iterable[Row]]
Rows = Iterator[Row | RejectedRow]
# what the parser says of a file that is whole -> what it is
NOT_JSON = {
    "trailing garbage": "holds several JSON values, one a line: set reader = 'jsonl'",
    "integer overflow": "holds an integer above 64 bits: write it as a string, or one object a line (reader = 'jsonl')",
    r"(invalid char|malformed number)[^\n]*\n[^\n]*(NaN|Infinity)\b": (
        "holds NaN or Infinity, which JSON has no word for: write null, or one object a line (reader = 'jsonl')"
    ),
}


def read_part(form: Format, part: FilePart, custom: CustomReader | None = None, backbone: str = "") -> Rows:
    """The rows of one part of the input, constants included.

    ``backbone`` is the model whose tokens measure chunks; without one they are estimated.
    ``custom`` is the function that ``reader = "module:function"`` names. It is called with
    each file, open in binary mode and unpacked, and with ``reader_options``; see
    :func:`reads_together`.

    Raises:
        DataError: A damaged file is fatal (``on_corrupt_file``), or a custom reader fails.
    """
    rows = _rows(form, part, custom)
    if form.explode:
        rows = (element for row in rows for element in _elements(form, row))
    if form.chunk_tokens:
        rows = (piece for row in rows for piece in chunk_rows(form, row, form.chunk_tokens, backbone))
    if form.constants:
        rows = (row if isinstance(row, RejectedRow) else row | form.constants for row in rows)
    return rows


def reads_together(custom: CustomReader | None) -> bool:
    """Whether a custom reader takes all files at once, by a first parameter ``streams``."""
    return custom is not None and next(iter(inspect.signature(custom).parameters), "") == "streams"


def _rows(form: Format, part: FilePart, custom: CustomReader | None) -> Rows:
    if form.reader == "hf":
        yield from map(decoded, hf_rows(part.files[0], part.start))
    elif form.reader == "aligned_text":
        yield from _guarded(form, part.files[0], _aligned_rows(form, part.files))
    elif custom is not None and reads_together(custom):
        yield from _guarded(form, part.files[0], _custom_rows(form, part.files, custom))
    else:
        for file in part.files:
            partition: Row = dict(file.partition)
            for row in _guarded(form, file, _file_rows(form, file, part, custom)):
                yield row if isinstance(row, RejectedRow) else partition | row


def _file_rows(form: Format, file: InputFile, part: FilePart, custom: CustomReader | None) -> Rows:
    """The rows of one file, or of a part of it."""
    if form.reader == "jsonl":
        return (_json_row(line, place) for line, place in lines(form, file, part))
    if form.reader == "text":
        return (_text_row(form, line, place) for line, place in lines(form, file, part))
    if form.reader == "csv":
        return csv_rows(form, file)
    if form.reader == "json":
        return _json_rows(form, file)
    if form.reader == "documents":
        return document_rows(form, file)
    if form.reader == "parquet":
        return _parquet_rows(file, part)
    assert custom is not None, form.reader
    return _custom_rows(form, [file], custom)


def _guarded(form: Format, file: InputFile, rows: Rows) -> Rows:
    """The rows; where the file turns out to be damaged, a refusal or an error."""
    read = 0
    try:
        for row in rows:
            yield row
            read += 1
    except (*DAMAGE, UnicodeDecodeError) as error:
        detail = damage_message(file, read, error)
    else:
        return
    if form.on_corrupt_file == "fatal":
        raise DataError(detail)
    yield RejectedRow("corrupt_file", detail, file.name)


def _elements(form: Format, row: Row | RejectedRow) -> Rows:
    """One row per element of the lists that ``explode`` names."""
    if isinstance(row, RejectedRow):
        yield row
        return
    lists = {name: row.get(name) for name in form.explode}
    lengths = {name: len(cells) if isinstance(cells, list) else -1 for name, cells in lists.items()}
    content = json.dumps(row, ensure_ascii=False, default=str)
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        found = [f"{name} {'no list' if size < 0 else size}" for name, size in lengths.items()]
        yield RejectedRow("unequal_lists", f"explode: {', '.join(found)}", content)
        return
    if not next(iter(lengths.values())):
        yield RejectedRow("empty_lists", "explode: no elements", content)
    for elements in zip(*lists.values(), strict=True):
        yield row | dict(zip(lists, elements, strict=True))


def _json_row(line: str | RejectedRow, place: str) -> Row | RejectedRow:
    if isinstance(line, RejectedRow):
        return line
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return RejectedRow("not_json", f"{place}: {error}", line)
    return row if isinstance(row, dict) else {"value": row}


def _text_row(form: Format, line: str | RejectedRow, place: str) -> Row | RejectedRow:
    """Columns "0", "1", ... of a line, split at the delimiter; an empty delimiter splits at runs of blanks."""
    if isinstance(line, RejectedRow):
        return line
    delimiter = "\t" if form.delimiter is None else form.delimiter
    cells = line.split(delimiter or None, -1 if form.max_columns is None else form.max_columns - 1)
    if form.max_columns is not None and len(cells) != form.max_columns:
        detail = f"{place}: {len(cells)} cells, and max_columns is {form.max_columns}"
        return RejectedRow("wrong_cell_count", detail, line)
    return {str(position): cell for position, cell in enumerate(cells)}


def _aligned_rows(form: Format, files: Sequence[InputFile]) -> Rows:
    """Line n of every file makes row n; files are columns "0", "1", ... as in ``paths``, and share their folders'."""
    sides = [all_lines(form, file) for file in files]
    shared = set.intersection(*(set(file.partition.items()) for file in files))
    partition: Row = dict(shared)
    for number, cells in enumerate(zip_longest(*sides), start=1):
        if None in cells:
            short = files[cells.index(None)].name
            raise DataError(f"aligned_text: {short} ends before line {number}, and the other files go on.")
        rejected = next((cell for cell in cells if isinstance(cell, RejectedRow)), None)
        yield rejected or partition | {str(position): cell for position, cell in enumerate(cells)}


def _json_rows(form: Format, file: InputFile) -> Rows:
    """Rows of a JSON document, read piecewise down to the first list or object of ``records`` that has many."""
    import ijson

    steps = steps_of("" if form.records == "." else form.records or "[]")
    many = next((place for place, step in enumerate(steps) if step in {"[]", "{}"}), len(steps))
    outer, inner = steps[: many + 1], steps[many + 1 :]
    prefix = ".".join([*steps[:many], *(["item"] if outer[-1:] == ("[]",) else [])])
    by_name = outer[-1:] == ("{}",)
    encoding = encoding_of(form, file)
    found = 0
    with open_bytes(file) as stream:
        # Every stream of open_bytes can be peeked into, which its type does not say.
        content: Any = stream
        if encoding != "utf-8":
            content = io.BytesIO(io.TextIOWrapper(stream, encoding=encoding).read().encode())
        elif content.peek(3).startswith(codecs.BOM_UTF8):
            content.read(3)
        try:
            read = ijson.kvitems if by_name else ijson.items
            for element in read(content, prefix, use_float=True):
                name, value = element if by_name else ("", element)
                for row in exploded(value, inner):
                    found += not isinstance(row, RejectedRow)
                    yield {"key": name, **row} if by_name and isinstance(row, dict) else row
        except ijson.IncompleteJSONError as error:
            for words, meaning in NOT_JSON.items():
                if re.search(words, str(error)):
                    raise DataError(f"{file.name} {meaning}, after {found:,} rows.") from None
            raise EOFError(f"not whole JSON: {first_line(error)}") from None
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise EOFError(f"not JSON: {first_line(error)}") from None
    if not found:
        raise DataError(
            f"{file.name} holds no rows at '{form.records or '[]'}'. Set 'records' to the path of the rows, e.g. "
            '"data[].paragraphs[].qas[]", or "{}" where each value of an object is a row, or "." where the whole '
            "document is one (with explode, for columns that are lists)."
        )


def _parquet_rows(file: InputFile, part: FilePart) -> Rows:
    if file.is_packed:
        raise DataError(
            f"{file.name} is packed, and Parquet cannot be read from its beginning to its end: unpack it."
        )
    with open_raw(file) as stream, pq.ParquetFile(stream) as parquet:
        groups, skipped, left = _groups_of(parquet, part)
        twice = [name for name, count in Counter(parquet.schema_arrow.names).items() if count > 1]
        if twice:
            raise DataError(f"{file.name} has {len(twice)} columns of one name ('{twice[0]}'): rename one of them.")
        types = [str(column.type) for column in parquet.schema_arrow]
        holds_bytes, has_maps = (any(kind in one for one in types) for kind in ("binary", "map<"))
        for whole in parquet.iter_batches(batch_size=1024, row_groups=groups):
            batch = whole.slice(min(skipped, whole.num_rows), left)
            skipped -= min(skipped, whole.num_rows)
            left -= batch.num_rows
            for row in batch.to_pylist():
                try:
                    yield decoded(_with_maps(row) if has_maps else row) if holds_bytes or has_maps else row
                except KeyError as error:
                    yield RejectedRow("repeated_key", f"a map has {error} twice", str(row))


def _groups_of(parquet: pq.ParquetFile, part: FilePart) -> tuple[list[int], int, int]:
    """The row groups that hold a part, rows of the first that come before it, and its rows."""
    metadata = parquet.metadata
    end = metadata.num_rows if part.end is None else part.end
    groups: list[int] = []
    skipped = first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if first < end and first + rows > part.start:
            skipped = skipped if groups else part.start - first
            groups.append(group)
        first += rows
    return groups, max(0, skipped), end - part.start


def _with_maps(value: Any) -> Any:
    """A value in which Arrow's maps, lists of pairs, are objects.

    Raises:
        KeyError: A map has a key twice.
    """
    if isinstance(value, dict):
        return {name: _with_maps(inner) for name, inner in value.items()}
    if not isinstance(value, list):
        return value
    if not value or not all(isinstance(one, tuple) for one in value):
        return [_with_maps(one) for one in value]
    found: dict[str, Any] = {}
    for key, inner in value:
        name = as_text(decoded(key))
        if name in found:
            raise KeyError(name)
        found[name] = _with_maps(inner)
    return found


def _custom_rows(form: Format, files: Sequence[InputFile], custom: CustomReader) -> Rows:
    """Rows of a custom reader. Its errors are reported with file and line, no traceback."""
    place = files[0].name

    def opened() -> Generator[BinaryIO, None, None]:
        nonlocal place
        for file in files:
            place = file.name
            with open_bytes(file) as stream:
                yield stream

    streams = opened()
    try:
        argument = streams if reads_together(custom) else next(streams)
        for number, row in enumerate(custom(argument, **form.reader_options), start=1):
            if isinstance(row, dict | RejectedRow):
                yield decoded(row)
            else:
                detail = f"{place}, row {number} of {form.reader}: {type(row).__name__}, not a dict"
                yield RejectedRow("not_an_object", detail, str(row))
    except (*DAMAGE, QzhouError):
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - anything may go wrong in foreign code
        detail = f"{type(error).__name__}: {error}{_foreign_line(error)}"
        raise DataError(f"reader '{form.reader}' failed on {place}: {detail}") from None
    finally:
        streams.close()


def _foreign_line(error: BaseException) -> str:
    """The innermost line of an error's trace that is not in this file."""
    frames = [one for one in extract_tb(error.__traceback__) if one.filename != __file__]
    return f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
