"""The encoding that bytes of a text are in."""

import codecs

from qzhou.errors import DataError

DETECTED_BYTES = 8 * 2**20  # of a file that are looked at
# The encodings of files in the wild. Among all that Python knows, Polish would be taken for Icelandic, and Japanese
# for Korean.
LEGACY_ENCODINGS = [
    "cp1252", "cp1250", "cp1251", "koi8_r", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr",
]  # fmt: skip


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


def marked_encoding(head: bytes) -> str:
    """The encoding by the byte order mark; an empty string where there is none."""
    # UTF-32 is tested first, because its mark begins with that of UTF-16.
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8" if head.startswith(codecs.BOM_UTF8) else ""
