"""The encodings of text files."""

import codecs
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from qzhou.config.dataset import Format
from qzhou.data.encodings import DETECTED_BYTES, detected_encoding, marked_encoding
from qzhou.errors import DataError
from qzhou.transform.reading.files import DAMAGE, WIDE_ENCODINGS, InputFile, damage_message, open_bytes

DETECTING_THREADS = 16
TEXT_READERS = ("jsonl", "json", "csv", "text", "aligned_text")


def detect_encodings(form: Format, files: list[InputFile]) -> list[InputFile]:
    """The files with the encodings found in them, where the format says ``detect``.

    Raises:
        DataError: A file looks like no text at all; names it.
    """
    if form.encoding != "detect" or form.reader not in TEXT_READERS:
        return files
    with ThreadPoolExecutor(DETECTING_THREADS) as pool:
        return list(pool.map(partial(_with_encoding, form), files))


def encoding_of(form: Format, file: InputFile) -> str:
    """The codec of a file, its own or the format's; "utf-8" for all of its kind."""
    assert file.encoding or form.encoding != "detect", "detect_encodings comes first"
    encoding = file.encoding or form.encoding
    return "utf-8" if codecs.lookup(encoding).name in {"utf-8", "utf-8-sig", "ascii"} else encoding


def refuse_wide_mark(head: bytes, encoding: str, file: InputFile) -> None:
    """Refuse a file of wide characters that is read as another encoding.

    Raises:
        DataError: ``head``, the first bytes of the file, has such a byte order mark.
    """
    marked = marked_encoding(head)
    if marked.startswith(WIDE_ENCODINGS) and not codecs.lookup(encoding).name.startswith(WIDE_ENCODINGS):
        raise DataError(
            f"{file.name} has the byte order mark of {marked}, and is read as {encoding}. "
            f"Set encoding = '{marked}', or 'detect'."
        )


def _with_encoding(form: Format, file: InputFile) -> InputFile:
    try:
        with open_bytes(file) as stream:
            head = stream.read(DETECTED_BYTES)
        return replace(file, encoding=detected_encoding(head))
    except DAMAGE as error:
        if form.on_corrupt_file == "fatal":
            raise DataError(damage_message(file, 0, error)) from None
        return replace(file, encoding="utf-8")  # reading it will say again what is wrong with it
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from None
