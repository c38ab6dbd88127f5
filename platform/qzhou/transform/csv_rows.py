"""Rows of CSV and TSV files. Quoted fields may hold line breaks; ``.tsv`` files are split at tabs."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qzhou.config.dataset import Format
from qzhou.errors import DataError
from qzhou.transform.columns import Row, roots
from qzhou.transform.inputs import InputFile, open_bytes
from qzhou.transform.lines import Refused, encoding_of

_UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape leaves of bytes that do not fit


def csv_rows(form: Format, file: InputFile) -> Iterator[Row | Refused]:
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
                    raise EOFError(
                        f"a quote that opens in line {place.rpartition(' ')[2]} is never closed"
                    ) from None
                yield Refused(
                    "not_csv", f"{place}: {error} (up to line {table.line_num})", _shown(content)
                )
                continue
            remembered.taken()
            if names is None and cells:
                header = _has_header(form)
                names = (
                    _distinct(cells, place)
                    if header
                    else [str(position) for position in range(len(cells))]
                )
                if header:
                    continue
            if cells and names is not None:
                yield _row(names, cells, place, encoding)


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
    quoting = (
        {"quotechar": form.quote} if form.quote else {"quoting": csv.QUOTE_NONE, "quotechar": None}
    )
    return {"delimiter": delimiter, **quoting}


def _has_header(form: Format) -> bool:
    """Columns named by number ask for a file without a header."""
    named = [root for column in form.columns.values() for root in roots(column)]
    return (
        not (named and all(root.isdecimal() for root in named))
        if form.header is None
        else form.header
    )


def _distinct(names: list[str], place: str) -> list[str]:
    """The names of a header, where each stands once; pandas writes empty ones for its index."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(
            f"{place}: the header names the column '{twice[0]}' {names.count(twice[0])} times, and only one of them "
            "could be read. Rename the others, or set header = false and name the columns by number."
        )
    return names


def _row(names: Sequence[str], cells: Sequence[str], place: str, encoding: str) -> Row | Refused:
    content = ",".join(cells)
    if not content.isascii() and _UNDECODED.search(content):
        return Refused("undecodable", f"{place}: not {encoding}", _shown(content))
    if len(cells) != len(names):
        return Refused(
            "wrong_cell_count", f"{place}: {len(cells)} cells, and {len(names)} columns", content
        )
    return dict(zip(names, cells, strict=True))


def _shown(content: str) -> str:
    """A text with every byte that did not fit its encoding as an escape."""
    return content.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
