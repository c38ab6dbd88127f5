"""The encodings of text files."""

import codecs
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from qzhou.config.dataset import Format
from qzhou.errors import DataError
from qzhou.transform.reading.files import DAMAGE, WIDE_ENCODINGS, InputFile, damage_message, open_bytes

DETECTED_BYTES = 8 * 2**20  # what encoding = "detect" looks at
DETECTING_THREADS = 16
TEXT_READERS = ("jsonl", "json", "csv", "text", "aligned_text")
# The encodings of files in the wild. Among all that Python knows, Polish would be taken for Icelandic, and Japanese
# for Korean.
LEGACY_ENCODINGS = [
    "cp1252", "cp1250", "cp1251", "koi8_r", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr",
]  # fmt: skip


def detect_encodings(form: Format, files: list[InputFile]) -> list[InputFile]:
    """The files with the encodings found in them, where the format says ``detect``.

    Raises:
        DataError: A file looks like no text at all; names it.
    """
    if form.encoding != "detect" or form.reader not in TEXT_READERS:
        return files
    with ThreadPoolExecutor(DETECTING_THREADS) as pool:
        return list(pool.map(partial(_with_encoding, form), files))


def detected_encoding(head: bytes) -> str:
    """The encoding of a text: by byte order mark, by being UTF-8, or by charset-normalizer.

    Raises:
        DataError: It looks like no text at all.
    """
    from charset_normalizer import from_bytes

    if marked := marked_encoding(head):
        return marked
    try:
        # A character that the end cuts is no error.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        best = from_bytes(head, cp_isolation=LEGACY_ENCODINGS).best() or from_bytes(head).best()
        if best is None:
            raise DataError("its encoding cannot be detected; name it with encoding = '...'") from None
        return best.encoding
    return "utf-8"


def encoding_of(form: Format, file: InputFile) -> str:
    """The codec of a file, its own or the format's; "utf-8" for all of its kind."""
    assert file.encoding or form.encoding != "detect", "detect_encodings comes first"
    encoding = file.encoding or form.encoding
    return "utf-8" if codecs.lookup(encoding).name in {"utf-8", "utf-8-sig", "ascii"} else encoding


def marked_encoding(head: bytes) -> str:
    """The encoding by the byte order mark; an empty string where there is none."""
    # UTF-32 is tested first, because its mark begins with that of UTF-16.
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8" if head.startswith(codecs.BOM_UTF8) else ""


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
