"""The lines of text files. Bytes outside the encoding are refused, never replaced."""

import codecs
import io
from collections.abc import Iterator

from qzhou.config.dataset import Format
from qzhou.data.byte_lines import lines_between
from qzhou.errors import DataError
from qzhou.transform.reading.columns import RejectedRow
from qzhou.transform.reading.encodings import encoding_of, refuse_wide_mark
from qzhou.transform.reading.files import WIDE_ENCODINGS, InputFile, open_bytes
from qzhou.transform.reading.parts import FilePart

GZIP_MARK = b"\x1f\x8b"


def lines(form: Format, file: InputFile, part: FilePart) -> Iterator[tuple[str | RejectedRow, str]]:
    """(line or its refusal, place) of the lines that are not empty.

    A line belongs to the part in which it starts. A part that starts in the middle of a
    line leaves that line to the part before.

    Raises:
        DataError: A file said to be UTF-8 has the byte order mark of another encoding.
    """
    encoding = encoding_of(form, file)
    with open_bytes(file) as stream:
        if _is_wide(encoding):
            for number, line in enumerate(io.TextIOWrapper(stream, encoding=encoding), start=1):
                if line.strip():
                    yield line.rstrip("\r\n"), f"{file.name}, line {number}"
            return
        after = f"after byte {part.start:,}, " if part.start else ""
        prefix = f"{file.name}, {after}line "
        for number, (_, raw) in enumerate(lines_between(stream, part.start, part.end), start=1):
            if number == 1 and not part.start:
                raw = _without_mark(raw, encoding, file)
            if not raw.isspace():
                yield _decoded(raw, encoding, f"{prefix}{number}"), f"{prefix}{number}"


def all_lines(form: Format, file: InputFile) -> Iterator[str | RejectedRow]:
    """All lines of a file, the empty ones included."""
    encoding = encoding_of(form, file)
    with open_bytes(file) as stream:
        if _is_wide(encoding):
            yield from (line.rstrip("\r\n") for line in io.TextIOWrapper(stream, encoding=encoding))
            return
        for number, raw in enumerate(stream, start=1):
            line = _without_mark(raw, encoding, file) if number == 1 else raw
            yield _decoded(line, encoding, f"{file.name}, line {number}")


def _is_wide(encoding: str) -> bool:
    """Whether line ends are more than a byte."""
    return codecs.lookup(encoding).name.startswith(WIDE_ENCODINGS)


def _without_mark(first: bytes, encoding: str, file: InputFile) -> bytes:
    """The first line of a file without its byte order mark."""
    refuse_wide_mark(first, encoding, file)
    if first.startswith(GZIP_MARK):
        raise DataError(f"{file.name} is packed by gzip: give it a name that ends with .gz.")
    return first.removeprefix(codecs.BOM_UTF8)


def _decoded(raw: bytes, encoding: str, place: str) -> str | RejectedRow:
    """A line without its end; or its refusal, with the wrong bytes as escapes."""
    try:
        return raw.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        escaped = raw.decode(encoding, "backslashreplace").rstrip("\r\n")
        return RejectedRow("undecodable", f"{place}: not {encoding}: {error.reason}", escaped)
