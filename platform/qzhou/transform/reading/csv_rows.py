"""Rows of CSV and TSV files. Quoted fields may hold line breaks; tabs split ``.tsv``."""

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from qzhou.config.dataset import Format
from qzhou.errors import DataError
from qzhou.transform.reading.columns import RejectedRow, Row, column_names
from qzhou.transform.reading.encodings import encoding_of
from qzhou.transform.reading.files import InputFile, open_bytes

_UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape leaves of bytes that do not fit


def csv_rows(form: Format, file: InputFile) -> Iterator[Row | RejectedRow]:
    """Column -> cell for each record.

    Raises:
        DataError: Two columns of the header have the same name.
        EOFError: A quote is never closed.
    """
    csv.field_size_limit(sys.maxsize)
    encoding = encoding_of(form, file)
    with open_bytes(file) as stream:
        signed = "utf-8-sig" if encoding == "utf-8" else encoding
        lines = io.TextIOWrapper(stream, encoding=signed, errors="surrogateescape", newline="")
        record: list[str] = []  # the lines of a record: a refusal shows them unchanged

        def remembered() -> Iterator[str]:
            for line in lines:
                record.append(line)
                yield line

        table = csv.reader(remembered(), strict=True, **_dialect(form, file))
        names: list[str] = []
        while True:
            line = table.line_num + 1
            place = f"{file.name}, line {line}"
            record.clear()
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as error:  # the reader goes on with the next line
                content = "".join(record)
                if "unexpected end of data" in str(error) and content.count("\n") > 1:
                    raise EOFError(f"a quote that opens in line {line} is never closed") from None
                yield RejectedRow("not_csv", f"{place}: {error} (up to line {table.line_num})", _escaped(content))
                continue
            if not cells:
                continue
            if not names and _has_header(form):
                names = _checked_header(cells, place)
                continue
            names = names or [str(position) for position in range(len(cells))]
            yield _row(names, cells, place, encoding)


def _dialect(form: Format, file: InputFile) -> dict[str, Any]:
    inner = re.sub(r"\.(gz|bz2)$", "", file.member or file.uri)
    delimiter = form.delimiter or ("\t" if inner.endswith((".tsv", ".tab")) else ",")
    quoting = {"quotechar": form.quote} if form.quote else {"quoting": csv.QUOTE_NONE, "quotechar": None}
    return {"delimiter": delimiter, **quoting}


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
