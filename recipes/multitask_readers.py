"""Readers of these recipes for formats that no library reads.

A reader of one's own is a generator of dicts. It is named ``module:function`` in a recipe that lies beside the
module, and gets each raw file open in binary mode, unpacked, wherever it is stored.
"""

import ast
import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

SMART_FIELDS = {"T": "title", "A": "author", "W": "text", "B": "source"}
_DOCUMENT = re.compile(r"<doc>(.*?)</doc>", re.DOTALL)
_TOPIC = re.compile(r"<top>(.*?)</top>", re.DOTALL)
_ELEMENT = re.compile(r"<(\w+)>(.*?)(?=</\1>|<\w+>|\Z)", re.DOTALL)
_LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def smart(stream: BinaryIO) -> Iterator[dict[str, str]]:
    """Documents or queries of a SMART collection (CISI, CACM, MED): ``.I`` id, then ``.T``, ``.A``, ``.W`` sections."""
    row: dict[str, str] = {}
    field = ""
    for line in io.TextIOWrapper(stream, "utf-8"):
        if line.startswith(".I "):
            if row:
                yield row
            row, field = {"id": line[3:].strip(), "title": "", "text": ""}, ""
        elif re.fullmatch(r"\.[A-Z]\s*", line):
            field = SMART_FIELDS.get(line[1], "")  # .X, the citation links, has no field
            row.setdefault(field, "") if field else None
        elif field:
            row[field] += line
    if row:
        yield row


def trec_documents(stream: BinaryIO) -> Iterator[dict[str, str]]:
    """Documents in TREC's markup, which has no single root and need not be XML. ``text`` loses its repeated title."""
    for match in _DOCUMENT.finditer(stream.read().decode("utf-8")):
        row = {name: content.strip() for name, content in _ELEMENT.findall(match[1])}
        row["text"] = row.get("text", "").removeprefix(row.get("title", "")).strip()
        yield row


def trec_topics(stream: BinaryIO) -> Iterator[dict[str, str]]:
    """Topics in TREC's markup; ``ordinal`` is the place in the file, which Cranfield's judgements count by."""
    for ordinal, match in enumerate(_TOPIC.finditer(stream.read().decode("utf-8")), start=1):
        yield {"ordinal": str(ordinal)} | {name: content.strip() for name, content in _ELEMENT.findall(match[1])}


def numpy_sentences(stream: BinaryIO, column: str) -> Iterator[dict[str, str]]:
    """A CSV file of which one column holds numpy arrays of sentences as text: ``['One.'\\n 'Two.']``.

    The arrays have no commas, so that Python would glue their literals together; here a blank comes between.
    """
    for row in csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline="")):
        sentences = [str(ast.literal_eval(literal)) for literal in _LITERAL.findall(row[column])]
        yield {**row, column: " ".join(sentence.strip() for sentence in sentences)}


def squad_questions(stream: BinaryIO) -> Iterator[dict[str, str]]:
    """Questions in SQuAD's layout; ``passage`` is the number of their passage in the file, which translations share."""
    for number, passage in enumerate(_squad(stream)):
        for asked in passage["qas"]:
            yield {"id": asked["id"], "question": asked["question"], "passage": str(number), "grade": "1"}


def squad_passages(stream: BinaryIO) -> Iterator[dict[str, str]]:
    """Passages in SQuAD's layout, by their number in the file."""
    for number, passage in enumerate(_squad(stream)):
        yield {"id": str(number), "text": passage["context"]}


def _squad(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    for article in json.load(stream)["data"]:
        yield from article["paragraphs"]
