"""Normalisation of raw text: the same text always gives the same characters.

Only damage is repaired. Curly quotes and full-width punctuation stay, because people who
search type them too.
"""

import re
import unicodedata

import ftfy
from ftfy.fixes import unescape_html

# how far a cut goes back for a blank; scripts without blanks are cut where they are
WORD_SEARCH_CHARS = 100

_FTFY = ftfy.TextFixerConfig(
    uncurl_quotes=False, fix_character_width=False, normalization="NFC", explain=False, max_decode_length=100_000
)
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff]")
# ftfy has nothing to repair in texts of only these: ASCII, the commonest typographic signs, CJK, kana, hangul and their
# punctuation. This test takes a tenth of its time.
_MAY_BE_DAMAGED = re.compile(
    "[^\\x00-\\x7f\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u3000-\u9fff\uac00-\ud7a3\uff00-\uffef]"
)
_ASCII_SIGNS = dict.fromkeys((*range(9), *range(14, 32), 127)) | dict.fromkeys((9, 11, 12), " ")
_OTHER_BLANK = re.compile(r"[^\S\n ]")
_PARAGRAPH_BREAKS = re.compile(r"\n{3,}")
_ENTITY = re.compile(r"&(?:#\d|#[xX][\da-fA-F]|[A-Za-z]\w*;)")


def clean_text(text: str) -> str:
    """The text with mojibake repaired, in NFC, without entities and invisible characters, blanks collapsed.

    Lines stay lines and paragraphs stay paragraphs: runs of blanks become one, and several
    empty lines become one.

    Args:
        text: Any string, even with lone surrogates.
    """
    if not text.isascii() and _MAY_BE_DAMAGED.search(text):
        text = ftfy.fix_text(text, _FTFY)
    else:
        text = unicodedata.normalize("NFC", text)
        if "&" in text and "<" not in text and _ENTITY.search(text):  # ftfy's own rule
            unescaped = unescape_html(text)
            if unescaped != text:
                return clean_text(unescaped)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # invisible characters go, and blanks become plain
    text = text.translate(_ASCII_SIGNS) if text.isascii() else _OTHER_BLANK.sub(" ", _INVISIBLE.sub("", text))
    # Each turn halves every run of blanks; much faster than a pattern that matches every blank.
    while "  " in text:
        text = text.replace("  ", " ")
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    if "\n\n\n" in text:
        text = _PARAGRAPH_BREAKS.sub("\n\n", text)
    return text.strip()


def cut(text: str, max_chars: int) -> str:
    """A text's head, at most ``max_chars`` long, that ends with a whole word if it can."""
    if len(text) <= max_chars:
        return text
    head = text[: max_chars + 1]  # one more, to see whether the last word ends exactly here
    start = max(1, max_chars - WORD_SEARCH_CHARS)
    for position in range(max_chars, start - 1, -1):
        if head[position].isspace():
            return head[:position].rstrip()
    return text[:max_chars]
