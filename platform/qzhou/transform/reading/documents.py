"""Files that are documents: a row each, and long texts of any reader cut into rows of chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qzhou.config.dataset import Format
from qzhou.data.documents.chunking import chunks
from qzhou.data.documents.extract import MOST_BYTES, DocumentError, extract, first_heading, title_of_name
from qzhou.data.records import digest
from qzhou.transform.reading.columns import RejectedRow, Row, as_text
from qzhou.transform.reading.files import InputFile, open_bytes, path_below, unpacked_name


def document_rows(form: Format, file: InputFile) -> Iterator[Row | RejectedRow]:
    """One row: ``path`` below the folder that the recipe names, ``title`` and ``text`` as Markdown."""
    path = path_below(form, file)
    try:
        if file.size > MOST_BYTES:
            raise DocumentError("document_too_large", f"{file.size / 2**20:,.0f} MiB")
        with open_bytes(file) as stream:
            found = extract(unpacked_name(file), stream.read(MOST_BYTES + 1))
    except DocumentError as error:
        yield RejectedRow(error.reason, f"{path}: {error}", path)
    except OSError as error:
        yield RejectedRow("unreadable_document", f"{path}: {error.strerror or error}", path)
    else:
        yield {"path": path, "title": found.title or title_of_name(path), "text": found.text}


def chunk_rows(form: Format, row: Row | RejectedRow, tokens: int, backbone: str) -> Iterator[Row | RejectedRow]:
    """A row for each chunk of its text, with what is above it and what it may be asked for.

    ``chunk_column`` gets the chunk under its headings. New are ``document`` (the same for all
    chunks of a text), ``chunk`` (its number), ``section`` (its headings), ``query`` (its
    heading, or its first sentence) and ``body`` (the chunk without that). A row without text
    stays as it is.
    """
    if isinstance(row, RejectedRow):
        yield row
        return
    text = as_text(row.get(form.chunk_column)).strip()
    title = as_text(row.get("title")) or first_heading(text)
    pieces = (
        chunks(text, title, tokens=tokens, overlap=form.chunk_overlap, count=_counter(backbone)) if text else []
    )
    if not pieces:
        yield row
    document = digest(text)
    for one in pieces:
        yield {
            **row,
            form.chunk_column: one.in_context,
            "document": document,
            "chunk": one.number,
            "section": " > ".join(one.headings),
            "query": one.query,
            "body": one.body,
        }


def _counter(backbone: str) -> Callable[[str], int] | None:
    if not backbone:
        return None
    from qzhou.encoder.backbone import token_counter  # loads torch

    return token_counter(backbone)
