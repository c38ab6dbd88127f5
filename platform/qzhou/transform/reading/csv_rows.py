"""Rows of CSV and TSV files. Quoted fields may hold line breaks; tabs split ``.tsv``, and there a record is a line.

A record that is no CSV is refused whole: its quotes tell where it ends, since those of a
record are even in number.
"""

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from qzhou.config.dataset import Format
from qzhou.errors import DataError
from qzhou.transform.reading.columns import RejectedRow, Row, column_names
from qzhou.transform.reading.encodings import encoding_of, refuse_wide_mark
from qzhou.transform.reading.files import InputFile, open_bytes

_UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape leaves of bytes that do not fit


def csv_rows(form: Format, file: InputFile) -> Iterator[Row | RejectedRow]:
    """Column -> cell for each record.

    Raises:
        DataError: Two columns of the header have the same name, or the file has another encoding.
        EOFError: A quote is never closed.
    """
    csv.field_size_limit(sys.maxsize)
    encoding = encoding_of(form, file)
    with open_bytes(file) as stream:
        refuse_wide_mark(cast(io.BufferedReader, stream).peek(4)[:4], encoding, file)
        signed = "utf-8-sig" if encoding == "utf-8" else encoding
        lines = io.TextIOWrapper(stream, encoding=signed, errors="surrogateescape", newline="")
        names: list[str] = []
        for line, cells in _records(form, file, lines):
            place = f"{file.name}, line {line}"
            if isinstance(cells, RejectedRow):
                yield cells
            elif cells and not names and _has_header(form):
                names = _checked_header(cells, place)
            elif cells:
                names = names or [str(position) for position in range(len(cells))]
                yield _row(names, cells, place, encoding)


def _records(form: Format, file: InputFile, lines: Iterable[str]) -> Iterator[tuple[int, list[str] | RejectedRow]]:
    """(its first line, cells of a record or its refusal)."""
    record: list[str] = []  # the lines of a record: a refusal shows them unchanged

    def remembered() -> Iterator[str]:
        for line in lines:
            record.append(line)
            yield line

    source, delimiter, quote = remembered(), _delimiter(form, file), _quote(form, file)
    quoting = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE, "quotechar": None}
    table = csv.reader(source, strict=True, delimiter=delimiter, **quoting)
    unquotes = form.quote is None and delimiter == "\t"
    line = 1
    while True:
        record.clear()
        try:
            cells = next(table)
            yield line, list(map(_unquoted, cells)) if unquotes else cells
        except StopIteration:
            return
        except csv.Error as error:
            ended = "unexpected end of data" in str(error)
            while not ended and quote and "".join(record).count(quote) % 2:
                ended = next(source, None) is None
            if ended and len(record) > 1:
                raise EOFError(f"a quote that opens in line {line} is never closed") from None
            detail = f"{file.name}, line {line}: {error} (up to line {line + len(record) - 1})"
            yield line, RejectedRow("not_csv", detail, _escaped("".join(record)))
        line += len(record)


def _delimiter(form: Format, file: InputFile) -> str:
    inner = re.sub(r"\.(gz|bz2|xz|zst)$", "", file.member or file.uri)
    return form.delimiter or ("\t" if inner.endswith((".tsv", ".tab")) else ",")


def _quote(form: Format, file: InputFile) -> str:
    """The character around cells that hold line breaks; empty for none."""
    if form.quote is not None:
        return form.quote
    return "" if _delimiter(form, file) == "\t" else '"'


def _unquoted(cell: str) -> str:
    """A cell of a line without the quotes around it, if every quote inside is doubled."""
    inner = cell[1:-1]
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else cell


def _has_header(form: Format) -> bool:
    """Whether the first line names the columns; not if they are named by number."""
    if form.header is not None:
        return form.header
    named = [root for column in form.columns.values() for root in column_names(column)]
    return not (named and all(root.isdecimal() for root in named))


def _checked_header(names: list[str], place: str) -> list[str]:
    """A header's names, none repeated but empty ones, which pandas writes for its index."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(
            f"{place}: the header names the column '{twice[0]}' {names.count(twice[0])} times, and only one of them "
            "could be read. Rename the others, or set header = false and name the columns by number."
        )
    return names


def _row(names: Sequence[str], cells: Sequence[str], place: str, encoding: str) -> Row | RejectedRow:
    content = ",".join(cells)
    if not content.isascii() and _UNDECODED.search(content):
        return RejectedRow("undecodable", f"{place}: not {encoding}", _escaped(content))
    if len(cells) != len(names):
        return RejectedRow("wrong_cell_count", f"{place}: {len(cells)} cells, and {len(names)} columns", content)
    return dict(zip(names, cells, strict=True))


def _escaped(content: str) -> str:
    """A text with every byte that did not fit its encoding as an escape."""
    return content.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
