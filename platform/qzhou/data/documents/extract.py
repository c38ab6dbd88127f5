"""The text of a document's file as Markdown, with its title.

Markdown keeps what chunks are cut by: headings, paragraphs, lists, code. HTML is reduced to
its main part: of the libraries that were tried on documentation pages, trafilatura loses
headings that carry links, and markdownify alone keeps menus.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from qzhou.data.documents.markdown import plain_markdown
from qzhou.data.encodings import DETECTED_BYTES, detected_encoding
from qzhou.errors import DataError

MOST_BYTES = 64 * 2**20  # larger files are no documents that people read
MENU_LINKS = 4  # a list of so many links is a menu, if it holds little else
MENU_SHARE = 0.8
NO_CONTENT = ("script", "style", "noscript", "template", "nav", "footer", "button", "input", "select", "svg", "img")
KEPT_ASIDES = {"admonition", "footnote", "footnote-list", "topic", "sidebar"}  # others are about other pages
MAIN = ("main", "[role=main]", "#content", "body")
PERMALINKS = "a.headerlink, a.anchor, a.toclink"
FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*\n", re.DOTALL)
TITLE = re.compile(r"^title:[ \t]*(\"[^\"\n]*\"|'[^'\n]*'|[^>|#\s][^#\n]*)", re.MULTILINE)  # in front matter
HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
FENCE = re.compile(r"^(`{3,}|~{3,}).*?(?:^\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[\w+/=]+")  # a picture as text


class DocumentError(Exception):
    """A file that gives no text; ``reason`` is a word for counts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Extracted:
    """The title of a document, "" if it has none of its own, and its text as Markdown."""

    title: str
    text: str


def is_document(name: str) -> bool:
    """Whether a file of this name can be read as a document."""
    return _suffix(name) in EXTRACTORS


def extract(name: str, content: bytes) -> Extracted:
    """The text of a file, read as its name ends.

    Raises:
        DocumentError: It is none of the known kinds, is damaged, is encrypted, or holds no text.
    """
    if _suffix(name) not in EXTRACTORS:
        known = ", ".join(sorted(EXTRACTORS))
        raise DocumentError("no_document", f"'{_suffix(name)}' is none of {known}")
    if len(content) > MOST_BYTES:
        size = f"{len(content) / 2**20:,.0f} MiB"
        raise DocumentError("document_too_large", f"{size}; documents of {MOST_BYTES // 2**20} MiB are read")
    try:
        found = EXTRACTORS[_suffix(name)](content)
    except DocumentError:
        raise
    except Exception as error:  # noqa: BLE001 - parsers meet anything here
        line = (str(error).splitlines() or [""])[0]
        raise DocumentError("damaged_document", f"{type(error).__name__}: {line}") from None
    text = _tidy(found.text)
    if not text:
        raise DocumentError("no_text", "no text in it; scanned pages need OCR first")
    return Extracted(" ".join(found.title.split()) or first_heading(text), text)


def first_heading(text: str) -> str:
    """The first heading of a Markdown text, outside of code; "" if there is none."""
    match = HEADING.search(FENCE.sub("", text))
    return plain(match[1]) if match else ""


def plain(markdown: str) -> str:
    """A line of Markdown without its marks."""
    text = re.sub(r"!?\[([^\]]*)\]\((?:[^()]|\([^()]*\))*\)", r"\1", markdown)
    text = re.sub(r"\s*\{#[^}]*\}|[¶]", "", text)
    text = re.sub(r"\\([\\`*_{}\[\]()#+.!<>-])", r"\1", text)
    return " ".join(re.sub(r"(\*\*|__|`+)", "", text).strip(" *#").split())


def title_of_name(name: str) -> str:
    """A title made of a file's name: ``release_notes-2024.md`` is "release notes 2024"."""
    return " ".join(re.split(r"[\s_-]+", PurePosixPath(name).stem)).strip()


def _suffix(name: str) -> str:
    return PurePosixPath(name.lower()).suffix


def _decoded(content: bytes) -> str:
    """Bytes of a text file as text: by its mark, as UTF-8, or in the encoding that its bytes speak for."""
    try:
        encoding = detected_encoding(content[:DETECTED_BYTES])
        text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except (DataError, UnicodeDecodeError):
        raise DocumentError("unknown_encoding", "its bytes are text of no known encoding") from None
    if "\0" in text:
        raise DocumentError("no_text", "it holds zero bytes, so it is no text")
    return text


def _markdown(content: bytes) -> Extracted:
    text = _decoded(content).replace("\r\n", "\n").replace("\r", "\n")  # the parser counts either as a line
    matter = FRONT_MATTER.match(text)
    title = TITLE.search(matter[1]) if matter else None
    body = EMBEDDED.sub("", text[matter.end() :] if matter else text)
    return Extracted(title[1].strip().strip("\"'") if title else "", plain_markdown(body, _block_of_html))


def _block_of_html(html: str) -> str:
    from bs4 import BeautifulSoup

    return _html_to_markdown(BeautifulSoup(html, "html.parser"))


def _text(content: bytes) -> Extracted:
    return Extracted("", _decoded(content))


def _html(content: bytes) -> Extracted:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(content, "html.parser")
    title = soup.title.get_text() if soup.title else ""
    return Extracted(title, _html_to_markdown(soup))


def _html_to_markdown(soup: Any) -> str:
    """The main part of a page without menus."""
    from markdownify import MarkdownConverter

    for element in soup(NO_CONTENT):
        element.decompose()
    for element in soup("aside"):
        if not KEPT_ASIDES & set(element.get("class", [])):
            element.decompose()
    for element in soup.select(PERMALINKS):
        element.decompose() if len(element.get_text(strip=True)) <= 1 else element.unwrap()
    root = next((found for one in MAIN if (found := soup.select_one(one)) and found.get_text(strip=True)), soup)
    menus = [one for one in root(["ul", "ol"]) if _is_menu(one)]
    shown, hidden = len(root.get_text(strip=True)), sum(len(one.get_text(strip=True)) for one in menus)
    for element in menus if hidden < MENU_SHARE * shown else []:  # a page of links is about them
        if not element.decomposed:
            element.decompose()
    converter = MarkdownConverter(
        heading_style="ATX", strip=["a"], escape_underscores=False, escape_asterisks=False
    )
    return str(converter.convert_soup(root))


def _is_menu(element: Any) -> bool:
    links = element("a")
    linked = sum(len(link.get_text(strip=True)) for link in links)
    return len(links) >= MENU_LINKS and linked > MENU_SHARE * len(element.get_text(strip=True))


def _rst(content: bytes) -> Extracted:
    from bs4 import BeautifulSoup

    from qzhou.data.documents.rst import html_of

    title, body = html_of(_decoded(content))
    return Extracted(
        BeautifulSoup(title, "html.parser").get_text(), _html_to_markdown(BeautifulSoup(body, "html.parser"))
    )


def _docx(content: bytes) -> Extracted:
    import mammoth
    from bs4 import BeautifulSoup

    page = mammoth.convert_to_html(io.BytesIO(content)).value
    return Extracted("", _html_to_markdown(BeautifulSoup(page, "html.parser")))


def _pdf(content: bytes) -> Extracted:
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise DocumentError("encrypted_document", "it needs a password")
    title = str((reader.metadata.title if reader.metadata else "") or "")
    return Extracted(title, "\n\n".join(_joined_lines(page.extract_text() or "") for page in reader.pages))


def _joined_lines(text: str) -> str:
    """Lines of a page joined to paragraphs; a word that a hyphen cuts is whole again."""
    text = re.sub(r"(?<=[a-zß-ÿ])-\n(?=[a-zß-ÿ])", "", text)
    return re.sub(r"(?<![.!?:;\n])\n(?=[^\s•\-*\d])", " ", text)


def _tidy(text: str) -> str:
    """Composed characters, no blanks at the ends of lines, at most one empty line."""
    lines = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip()


EXTRACTORS: Mapping[str, Callable[[bytes], Extracted]] = {
    **dict.fromkeys((".md", ".markdown", ".mdx"), _markdown),
    **dict.fromkeys((".txt", ".text"), _text),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _html),
    ".rst": _rst,
    ".docx": _docx,
    ".pdf": _pdf,
}
