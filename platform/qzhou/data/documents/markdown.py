"""Markdown without HTML, comments and underlined headings; code stays as it is.

A parser of CommonMark says which lines are which. Only those with HTML or an underlined heading are written anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

# elements of HTML; anything else in angle brackets is text: List<String>, <your-name>
_BLOCKS = (
    "address article aside audio blockquote br button caption center col colgroup dd details dialog div dl dt "
    "fieldset figcaption figure footer form frame h1 h2 h3 h4 h5 h6 head header hr html iframe input label legend "
    "li link main menu meta nav noscript ol option p param picture pre script section select source style summary "
    "svg table tbody td template textarea tfoot th thead title tr track ul video"
)
_INLINE = (
    "a abbr b bdo big cite code del dfn em font i img ins kbd mark q s samp small span strike strong sub sup tt u "
    "var wbr"
)
BLOCKS, INLINE = frozenset(_BLOCKS.split()), frozenset(_INLINE.split())
TAG = re.compile(r"</?([A-Za-z][\w-]*)")
# "a <b and c> d" is a tag for CommonMark; none here
WHOLE_TAG = re.compile(
    r"""</?[A-Za-z][\w-]*(?:\s+[^\s=<>"']+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>=]+)"""
    r"""|\s+(?:open|hidden|controls|autoplay|loop|muted|nowrap|checked|disabled|selected|async|defer))*\s*/?>""",
    re.IGNORECASE,
)
MAY_CHANGE = re.compile(r"<[A-Za-z/!?]|^[ >]{0,9}(?:=+|-+)[ \t]*$", re.MULTILINE)
NO_TEXT = re.compile(r"(?:\s|<[^<>]*>)*")  # nothing but tags
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
EMPTY_HEADING = re.compile(r"^#+[ \t]*$", re.MULTILINE)
UNDERLINES = {"=": 1, "-": 2}


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark")


def plain_markdown(text: str, html_to_markdown: Callable[[str], str]) -> str:
    """Markdown that says the same without HTML.

    Args:
        text: With line feeds at the ends of lines.
        html_to_markdown: What a block of HTML becomes.
    """
    if not MAY_CHANGE.search(text):  # parsing takes a second for each 100 to 500 kB
        return text
    lines = text.split("\n")
    is_rewritten = False  # the text of a heading, with the heading
    tokens = _parser().parse(text)
    for number, token in enumerate(tokens):
        if not token.map or is_rewritten:
            is_rewritten = False
            continue
        first, last = token.map
        if token.type == "html_block":
            _put(lines, first, last, _block(token.content, html_to_markdown))
        elif token.type == "heading_open" and token.markup in UNDERLINES:
            inside = tokens[number + 1]
            heading = " ".join(_without_tags(inside.content, inside.children).split())
            _put(lines, first, last, f"{'#' * UNDERLINES[token.markup]} {heading}")
            is_rewritten = True
        elif token.type == "inline" and any(one.type == "html_inline" for one in token.children):
            _put(lines, first, last, _without_tags("\n".join(lines[first:last]), token.children))
    return "\n".join(lines)


def _put(lines: list[str], first: int, last: int, text: str) -> None:
    """Write a text in place of some lines; the numbers of the others stay."""
    lines[first:last] = [text, *[""] * (last - first - 1)]


def _block(html: str, html_to_markdown: Callable[[str], str]) -> str:
    opened = html.lstrip()
    if opened.startswith("<!--"):  # and what stands in the line of its end
        before, end, after = opened.rpartition("-->")
        return (COMMENT.sub("", before + end) + after.partition("<!--")[0]).strip() if end else ""
    if opened.startswith(("<!", "<?")):
        return ""
    name = TAG.match(opened)
    if name is None or name[1].lower() not in BLOCKS | INLINE:
        return html.rstrip("\n")
    if NO_TEXT.fullmatch(html):
        return ""
    return EMPTY_HEADING.sub("", html_to_markdown(html)).strip()


def _without_tags(source: str, children: list[Any]) -> str:
    """A paragraph's source without its tags, which come in the order of the parsed pieces."""
    kept: list[str] = []
    end = 0
    for child in children:
        if child.type == "code_inline":
            # a line break in it is a blank here
            words = re.compile(r"\s+".join(map(re.escape, child.content.split())))
            found = words.search(source, end)
            if found is None:
                break
            kept.append(source[end : found.end()])
            end = found.end()
        elif child.type == "html_inline" and (start := source.find(child.content, end)) >= 0:
            after = start + len(child.content)
            put = _in_place_of(child.content, source[max(0, start - 1) : start])
            kept += [source[end:start], child.content if put is None else put]
            end = after
    return "".join([*kept, source[end:]])


def _in_place_of(tag: str, before: str) -> str | None:
    """What stands where a tag stood; None where it stays. ``before`` is the character before it."""
    if tag.startswith(("<!", "<?")):
        return ""
    name = TAG.match(tag)
    if name is None or before == "\\" or not WHOLE_TAG.fullmatch(tag):
        return None
    # Vec<i>, List<p>
    if len(name[1]) == 1 and tag == f"<{name[1]}>" and before.isalnum():
        return None
    if name[1].lower() in BLOCKS:
        return " "
    return "" if name[1].lower() in INLINE else None
