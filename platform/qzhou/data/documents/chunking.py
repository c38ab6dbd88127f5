"""Long documents cut into chunks: by headings first, then paragraphs, lines, sentences, words.

The same text, size and tokenizer always give the same chunks. Where a chunk begins decides
under which headings it stands.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qzhou.data.documents.extract import FENCE, HEADING, plain

FULL_SHARE = 0.6  # a chunk that is so full ends at the next good place
CHARS_PER_TOKEN = 4  # where no tokenizer is at hand
WORDS_OF_A_NAME = 5  # a heading of fewer is asked for with the heading above it
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n{2,}")
PATH_CHARS = 100  # of the headings above a chunk, which count beside its tokens
LONGEST_RUN = 1_000  # characters
LONG_RUN = re.compile(rf"[^\s.,;!?。，、；！？]{{{LONGEST_RUN},}}")
LONGEST_SENTENCE = 200  # characters; a longer one is no query
SHORTEST_SENTENCE = 12


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document.

    Attributes:
        number: In its document, from 0.
        headings: The headings that it stands under, the document's title first.
        text: Markdown, with the headings that it begins with.
        query: What its heading, or where it has none its first sentence, asks for; "" if neither would be a query.
        body: The text without what ``query`` was taken from.
    """

    number: int
    headings: tuple[str, ...]
    text: str
    query: str
    body: str

    @property
    def in_context(self) -> str:
        """The text with the headings that it stands under, for encoders and readers."""
        own = set(map(plain, HEADING.findall(self.text)))
        above = [_short(one) for one in self.headings if one not in own]
        while len(above) > 2 and len(" > ".join(above)) > PATH_CHARS:
            del above[1]  # the title and the innermost ones say most
        return "\n\n".join(filter(None, [" > ".join(above), self.text]))


def _short(heading: str) -> str:
    most = PATH_CHARS // 2
    return heading if len(heading) <= most else f"{heading[:most]}..."


def chunks(
    text: str, title: str, *, tokens: int, overlap: int = 0, count: Callable[[str], int] | None = None
) -> list[Chunk]:
    """The chunks of a document.

    Args:
        text: Markdown.
        title: Of the document.
        tokens: The largest size of a chunk.
        overlap: Tokens that a chunk may repeat of the one before it.
        count: Tokens of a text; default: a quarter of its characters.
    """
    from semantic_text_splitter import MarkdownSplitter

    size = count or (lambda piece: -(-len(piece) // CHARS_PER_TOKEN))
    capacity = (max(overlap + 1, int(tokens * FULL_SHARE)), tokens)
    splitter = MarkdownSplitter.from_callback(size, capacity, overlap=overlap)
    outline = _Outline(text, title)
    found: list[Chunk] = []
    seen: set[tuple[str, ...]] = set()
    pieces = (
        (start + place, piece) for start, block in _blocks(text) for place, piece in splitter.chunk_indices(block)
    )
    for place, piece in pieces:
        below = _below_headings(piece)
        if not below:  # headings alone, which the next chunk stands under
            continue
        headings = outline.at(place + len(piece) - len(below))
        query, body = _query(below, headings, is_new=headings not in seen)
        seen.add(headings)
        found.append(Chunk(len(found), headings, piece, query, body))
    return found


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """The text where it begins, cut inside runs without any end of a word, over which the splitter takes minutes."""
    cuts = {0, len(text)}
    for run in LONG_RUN.finditer(text):
        cuts.update(range(run.start(), run.end(), LONGEST_RUN))
    for start, end in pairwise(sorted(cuts)):
        yield start, text[start:end]


class _Outline:
    """The headings of a Markdown text, and under which of them a place is."""

    def __init__(self, text: str, title: str) -> None:
        fences = [(match.start(), match.end()) for match in FENCE.finditer(text)]
        self._places: list[int] = []
        self._paths: list[tuple[str, ...]] = []
        path: list[tuple[int, str]] = []
        for match in HEADING.finditer(text):
            if any(start <= match.start() < end for start, end in fences):
                continue
            level, name = len(match[0]) - len(match[0].lstrip("#")), plain(match[1])
            path = [one for one in path if one[0] < level] + [(level, name)]
            self._places.append(match.start())
            names = [name for _, name in path]
            self._paths.append(tuple(dict.fromkeys([*([title] if title else []), *names])))
        self._title = (title,) if title else ()

    def at(self, place: int) -> tuple[str, ...]:
        """The headings above a place, outermost first; one that begins there counts."""
        number = bisect.bisect_right(self._places, place) - 1
        return self._paths[number] if number >= 0 else self._title


def _asked_for(headings: Sequence[str]) -> str:
    """The innermost heading, with those above it as far as it would be too short alone."""
    names = [headings[-1]]
    for above in reversed(headings[:-1]):
        if sum(len(name.split()) for name in names) >= WORDS_OF_A_NAME:
            break
        names.append(above)
    return ": ".join(reversed(names))


def _below_headings(piece: str) -> str:
    """A chunk without the headings that it begins with."""
    while match := HEADING.match(piece):
        piece = piece[match.end() :].lstrip()
    return piece


def _query(body: str, headings: Sequence[str], *, is_new: bool) -> tuple[str, str]:
    """What a chunk answers by its structure, and the rest of it."""
    if is_new and headings:
        return _asked_for(headings), body
    for sentence in SENTENCE_END.split(body, maxsplit=1)[:1]:
        rest = body[len(sentence) :].strip()
        shown = plain(sentence)
        is_prose = sentence[:1].isalnum() and SHORTEST_SENTENCE <= len(shown) <= LONGEST_SENTENCE
        if rest and is_prose:
            return shown, rest
    return "", body
