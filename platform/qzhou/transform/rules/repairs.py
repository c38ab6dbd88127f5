"""Damage that only the owner of the data can recognise, repaired where a dataset's ``repairs`` names it."""

import html
import re
from collections.abc import Callable, Mapping, Sequence

from qzhou.config.dataset import Repair

_BARE_ENTITY = re.compile(r"(?:^| )(#\d{2,5}|quot|amp|lt|gt|nbsp|apos);", re.MULTILINE)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,1000}>")
_PTB = re.compile(r"-(?:LRB|RRB|LSB|RSB|LCB|RCB)-|``|(?<=\s)''")
_PTB_SIGNS = {
    "-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"',
}  # fmt: skip

_REPAIRS: Mapping[Repair, Callable[[str], str]] = {
    # `the #36;10 prize` and `he said, quot;no`: a blank stands where the ampersand was, as in AG News
    "bare_entities": lambda text: _BARE_ENTITY.sub(lambda match: html.unescape(f"&{match[1]};"), text),
    # markup goes, its text stays; entities first, because markup is often escaped
    "html_tags": lambda text: _TAG.sub(" ", html.unescape(text)),
    # a backslash that stands for a line break, as in AG News
    "backslash_breaks": lambda text: text.replace("\\", "\n"),
    # brackets and quotes of the Penn Treebank: `-LRB-` is `(`
    "ptb_brackets": lambda text: _PTB.sub(lambda match: _PTB_SIGNS[match[0]], text),
}


def repaired(text: str, repairs: Sequence[Repair]) -> str:
    """The text with known damage repaired."""
    for repair in repairs:
        text = _REPAIRS[repair](text)
    return text
