"""Rows of CSV and TSV files. Quoted fields may hold line breaks; tabs split ``.tsv``, and there a record is a line.

A record that is no CSV is refused whole. It ends before the next records that are CSV and
have as many cells as the header, or, where that says nothing, where its quotes are even in number.
"""

import csv
import io
import re
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

from qzhou.config.dataset import Format
from qzhou.errors import DataError
from qzhou.transform.reading.columns import RejectedRow, Row, column_names
from qzhou.transform.reading.encodings import encoding_of, refuse_wide_mark
from qzhou.transform.reading.files import InputFile, open_bytes

LOOKED_AHEAD = 1_000  # lines after a broken record
SURE_RECORDS = 3  # so many in a row that look like records are some
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
        for line, cells in _Records(form, file, lines, names).read():
            place = f"{file.name}, line {line}"
            if isinstance(cells, RejectedRow):
                yield cells
            elif cells and not names and _has_header(form):
                names += _checked_header(cells, place)
            elif cells:
                names += [] if names else [str(position) for position in range(len(cells))]
                yield _row(names, cells, place, encoding)


class _Records:
    """The records of a file; ``names`` will hold its columns once they are known."""

    def __init__(self, form: Format, file: InputFile, lines: Iterable[str], names: Sequence[str]) -> None:
        self._file, self._lines, self._names = file, iter(lines), names
        self._delimiter, self._quote = _delimiter(form, file), _quote(form, file)
        quoting = {"quotechar": self._quote} if self._quote else {"quoting": csv.QUOTE_NONE, "quotechar": None}
        self._dialect: dict[str, Any] = {
            "strict": True,
            "delimiter": self._delimiter,
            "escapechar": form.escape or None,
            **quoting,
        }
        self._unquotes = form.quote is None and self._delimiter == "\t"
        self._ahead = deque[str]()  # lines that were looked at and not yet read
        self._record: list[str] = []  # the lines of a record: a refusal shows them unchanged

    def read(self) -> Iterator[tuple[int, list[str] | RejectedRow]]:
        """(its first line, cells of a record or its refusal)."""
        table = csv.reader(self._source(), **self._dialect)
        line = 1
        while True:
            self._record.clear()
            try:
                cells = next(table)
                yield line, list(map(_unquoted, cells)) if self._unquotes else cells
            except StopIteration:
                return
            except csv.Error as error:
                ended = "unexpected end of data" in str(error)
                if not self._find_end(is_last=ended) and len(self._record) > 1:
                    raise EOFError(f"a quote that opens in line {line} is never closed") from None
                detail = f"{self._file.name}, line {line}: {error} (up to line {line + len(self._record) - 1})"
                yield line, RejectedRow("not_csv", detail, _escaped("".join(self._record)))
                # it may have seen the end of the file
                table = csv.reader(self._source(), **self._dialect)
            line += len(self._record)

    def _source(self) -> Iterator[str]:
        while (line := self._next()) is not None:
            self._record.append(line)
            yield line

    def _next(self) -> str | None:
        return self._ahead.popleft() if self._ahead else next(self._lines, None)

    def _find_end(self, *, is_last: bool) -> bool:
        """Give a broken record the lines that belong to it, and no others; False where no end is seen.

        ``is_last`` is true where the file ended inside a quote, which may mean that it was cut.
        """
        if not is_last:
            self._ahead += islice(self._lines, max(0, LOOKED_AHEAD - len(self._ahead)))
        read, lines = len(self._record), [*self._record, *self._ahead]
        quotes = 0
        for end in (*range(1, min(read, LOOKED_AHEAD)), *range(read, min(len(lines), read + LOOKED_AHEAD) + 1)):
            if end >= read and self._quote:
                added = lines[:end] if end == read else lines[end - 1 : end]
                quotes += "".join(added).count(self._quote)
            is_whole = end >= read and not is_last and quotes % 2 == 0
            least = SURE_RECORDS if is_last else 1
            if is_whole or self._are_records(lines[end : end + LOOKED_AHEAD], least=least):
                self._record, self._ahead = lines[:end], deque(lines[end:])
                return True
        return False

    def _are_records(self, lines: Sequence[str], *, least: int = 1) -> bool:
        """Whether lines begin with records of as many cells as there are columns, with quotes in pairs.

        A single column says nothing.
        """
        if len(self._names) < 2:
            return False
        read: list[str] = []
        source = (read.append(line) or line for line in lines)  # type: ignore[func-returns-value]
        found = 0
        try:
            for record in islice(csv.reader(source, **self._dialect), SURE_RECORDS):
                if len(record) != len(self._names) or "".join(read).count(self._quote) % 2:
                    return False
                found += 1
        except csv.Error:
            return False
        return found >= least


def _delimiter(form: Format, file: InputFile) -> str:
    inner = re.sub(r"\.(gz|bz2|xz|zst)$", "", (file.member or file.uri).lower())
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
