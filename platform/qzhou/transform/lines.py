"""Text files: which encoding they are in, and their lines. Bytes that do not fit are refused, never replaced."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from qzhou.config.dataset import Format
from qzhou.errors import DataError
from qzhou.transform.inputs import DAMAGE, WIDE_ENCODINGS, InputFile, Split, damaged, open_bytes

DETECTED_BYTES = 8 * 2**20  # what encoding = "detect" looks at
DETECTING_THREADS = 16
TEXT_READERS = ("jsonl", "json", "csv", "text", "aligned_text")
# What files in the wild are in; among all that Python knows, Polish is taken for Icelandic and Japanese for Korean.
LEGACY_ENCODINGS = [
    "cp1252",
    "cp1250",
    "cp1251",
    "koi8_r",
    "gb18030",
    "big5",
    "shift_jis",
    "euc_jp",
    "euc_kr",
]


@dataclass(frozen=True, slots=True)
class Refused:
    """A raw row or file that cannot be read: why, where, and what stood there."""

    reason: str
    detail: str
    content: str


def with_encodings(form: Format, files: list[InputFile]) -> list[InputFile]:
    """The files with the encodings that are found in them, where the format says ``detect``.

    Raises:
        DataError: A file looks like no text at all; names it.
    """
    if form.encoding != "detect" or form.reader not in TEXT_READERS:
        return files
    with ThreadPoolExecutor(DETECTING_THREADS) as pool:
        return list(pool.map(partial(_with_encoding, form), files))


def detected_encoding(head: bytes) -> str:
    """The encoding of a text by its byte order mark, by being UTF-8, or by what charset-normalizer makes of it.

    Raises:
        DataError: It looks like no text at all.
    """
    from charset_normalizer import from_bytes

    if marked := _marked_encoding(head):
        return marked
    try:
        # a character that the end cuts is no error
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        best = from_bytes(head, cp_isolation=LEGACY_ENCODINGS).best() or from_bytes(head).best()
        if best is None:
            raise DataError(
                "its encoding cannot be detected; name it with encoding = '...'"
            ) from None
        return best.encoding
    return "utf-8"


def encoding_of(form: Format, file: InputFile) -> str:
    """The codec of a file: what was found in it, or what the format says; "utf-8" for all of its kind."""
    assert file.encoding or form.encoding != "detect", "with_encodings comes first"
    encoding = file.encoding or form.encoding
    return "utf-8" if codecs.lookup(encoding).name in {"utf-8", "utf-8-sig", "ascii"} else encoding


def lines(form: Format, file: InputFile, split: Split) -> Iterator[tuple[str | Refused, str]]:
    """(line or its refusal, place) of the lines that are not empty.

    A line belongs to the part in which it starts; a part that starts in the middle of a line leaves that to the
    part before.

    Raises:
        DataError: A file said to be UTF-8 has the byte order mark of another encoding.
    """
    encoding = encoding_of(form, file)
    with open_bytes(file) as stream:
        if codecs.lookup(encoding).name.startswith(WIDE_ENCODINGS):
            for number, line in enumerate(io.TextIOWrapper(stream, encoding=encoding), start=1):
                if line.strip():
                    yield line.rstrip("\r\n"), f"{file.name}, line {number}"
            return
        place = (
            f"{file.name}, line "
            if not split.start
            else f"{file.name}, after byte {split.start:,}, line "
        )
        position = split.start
        if split.start:
            stream.seek(split.start - 1)
            position += len(stream.readline()) - 1  # only a line end, if a line starts exactly here
        for number, raw in enumerate(stream, start=1):
            if split.end is not None and position >= split.end:
                return
            position += len(raw)
            if number == 1 and not split.start:
                raw = _unmarked(raw, encoding, file)
            if raw.isspace():
                continue
            yield _decoded(raw, encoding, f"{place}{number}"), f"{place}{number}"


def every_line(form: Format, file: InputFile) -> Iterator[str | Refused]:
    """All lines of a file, the empty ones included."""
    encoding = encoding_of(form, file)
    with open_bytes(file) as stream:
        for number, raw in enumerate(stream, start=1):
            line = _unmarked(raw, encoding, file) if number == 1 else raw
            yield _decoded(line, encoding, f"{file.name}, line {number}")


def _with_encoding(form: Format, file: InputFile) -> InputFile:
    try:
        with open_bytes(file) as stream:
            head = stream.read(DETECTED_BYTES)
        return replace(file, encoding=detected_encoding(head))
    except DAMAGE as error:
        if form.on_corrupt_file == "fatal":
            raise DataError(damaged(file, 0, error)) from None
        return replace(file, encoding="utf-8")  # reading it will say again what is wrong with it
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from None


def _marked_encoding(head: bytes) -> str:
    """The encoding that a byte order mark tells; an empty string where there is none."""
    # before UTF-16, whose mark it starts with
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8" if head.startswith(codecs.BOM_UTF8) else ""


def _unmarked(first: bytes, encoding: str, file: InputFile) -> bytes:
    """The first line of a file without its byte order mark."""
    marked = _marked_encoding(first)
    if marked.startswith(WIDE_ENCODINGS):
        raise DataError(
            f"{file.name} has the byte order mark of {marked}, and is read as {encoding}. "
            f"Set encoding = '{marked}', or 'detect'."
        )
    return first.removeprefix(codecs.BOM_UTF8)


def _decoded(raw: bytes, encoding: str, place: str) -> str | Refused:
    """A line without its end, or its refusal with every byte that does not fit shown as an escape."""
    try:
        return raw.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        shown = raw.decode(encoding, "backslashreplace").rstrip("\r\n")
        return Refused("undecodable", f"{place}: not {encoding}: {error.reason}", shown)
