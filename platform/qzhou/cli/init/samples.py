"""How a raw file is read, found out from its first bytes and lines; and its first rows."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from qzhou.config.dataset import Format
from qzhou.data.encodings import detected_encoding
from qzhou.errors import DataError
from qzhou.transform.reading.columns import Row
from qzhou.transform.reading.files import DAMAGE, InputFile, open_bytes, unpacked_name
from qzhou.transform.reading.hub import stated_rows
from qzhou.transform.reading.parts import FilePart
from qzhou.transform.reading.readers import read_part

HEAD_BYTES = 2**18
ROWS = 400  # of a file that are looked at, evenly spread over
ROWS_READ = 20_000  # its first: files are sorted by label or score, often
HUB_ROWS = 2_000  # of a dataset of the hub, which are downloaded
DOCUMENT_BYTES = 256 * 2**20  # a JSON document is read whole to find its rows
DELIMITERS = ("\t", ",", ";", "|")
EXCEL = {".xlsx", ".xls", ".xlsm", ".ods"}
SHORTER = 0.6  # the name of a column is so much shorter than its texts
LONGEST_NAME = 60  # characters
LABELLED = re.compile(r"^([A-Z][\w:-]{1,30})[ \t]+\S")  # "LOC:city What county is ..."
SHAPES_OF_LINES = "neither JSON lines nor columns that a delimiter separates"


class NotUnderstood(Exception):  # noqa: N818 - it says so, and nothing is wrong
    """A file or folder that the recipe cannot be guessed from; the message says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How files are read, and the first rows.

    Attributes:
        settings: Keys of a dataset's format and their values; ``paths`` is not among them.
        rows: Some of them, as the reader gives them.
        total: How many there are, an estimate above ROWS_READ.
        rejected: Reason -> rows that cannot be read, of those that were looked at.
        evidence: What the settings were read from, in words.
    """

    settings: Mapping[str, Any]
    rows: Sequence[Row]
    total: int
    evidence: Sequence[str] = field(default=())
    rejected: Mapping[str, int] = field(default_factory=dict)


def sample_of(file: InputFile) -> Sample:
    """The settings that read a file, and its first rows.

    Raises:
        NotUnderstood: It has no rows that a reader gives.
    """
    try:
        settings, evidence = _settings_of(file)
        form = Format.model_validate({**settings, "paths": [file.name]})
        rows, total, rejected = _spread(read_part(form, FilePart((file,))), file.size)
    except (DataError, *DAMAGE, ValueError) as error:
        where = "" if file.name in str(error) else f"{file.name}: "
        raise NotUnderstood(f"{where}{error}") from None
    if not rows:
        raise NotUnderstood(f"{file.name}: no row can be read as {settings['reader']}")
    return Sample(settings, rows, total, evidence, rejected)


def hub_sample(uri: str) -> Sample:
    """The first rows of a dataset of the hub, ``hf://name/config:split``.

    Raises:
        NotUnderstood: It cannot be reached, or has no rows.
    """
    file, form = InputFile(uri), Format(reader="hf", paths=(uri,))
    try:
        rows, total, rejected = _spread(islice(read_part(form, FilePart((file,), 0, 1)), HUB_ROWS), 0)
        total = stated_rows(file) or total
    except (DataError, *DAMAGE, ValueError) as error:
        raise NotUnderstood(str(error)) from None
    if not rows:
        raise NotUnderstood(f"{uri} has no rows")
    return Sample({"reader": "hf"}, rows, total, ["a dataset of the hub"], rejected)


def aligned_sample(files: Sequence[InputFile]) -> Sample:
    """The first rows of files whose lines belong together."""
    form = Format(reader="aligned_text", paths=tuple(file.name for file in files))
    rows, total, rejected = _spread(read_part(form, FilePart(tuple(files))), files[0].size)
    evidence = [f"{len(files)} files with as many lines each"]
    return Sample({"reader": "aligned_text"}, rows, total, evidence, rejected)


def _spread(rows: Iterator[Any], size: int) -> tuple[list[Row], int, Counter[str]]:
    """Some rows of a file of so many bytes, about how many there are, and why others cannot be read."""
    found: list[Row] = []
    rejected: Counter[str] = Counter()
    for row in islice(rows, ROWS_READ):
        if isinstance(row, dict):
            found.append(row)
        else:
            rejected[row.reason] += 1
    total = len(found)
    if total + rejected.total() == ROWS_READ:
        total = max(total, int(size * total / sum(len(str(row)) for row in found)))
    if len(found) > ROWS:
        found = [found[number * len(found) // ROWS] for number in range(ROWS)]
    return found, total, rejected


def line_count(file: InputFile) -> int:
    """Lines of a text file."""
    with open_bytes(file) as stream:
        return sum(1 for _ in stream)


def _settings_of(file: InputFile) -> tuple[dict[str, Any], list[str]]:
    suffix = PurePosixPath(unpacked_name(file)).suffix.lower()
    if suffix == ".parquet":
        return {"reader": "parquet"}, ["its name"]
    if suffix in EXCEL:
        raise NotUnderstood(f"{file.name} is a file of Excel: save its sheet as CSV")
    with open_bytes(file) as stream:
        head = stream.read(HEAD_BYTES)
    encoding = detected_encoding(head)
    text = head.decode(encoding, "ignore").lstrip("\ufeff")
    settings: dict[str, Any] = {} if encoding in {"utf-8", "ascii"} else {"encoding": encoding}
    evidence = [f"encoding {encoding}"]
    lines = text.splitlines()
    is_cut = len(head) == HEAD_BYTES
    if is_cut and len(lines) > 1:
        lines.pop()
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise NotUnderstood(f"{file.name} is empty")
    if text.lstrip().startswith("<"):
        raise NotUnderstood(f"{file.name} is XML, which needs a reader of your own (docs/data.md)")
    if text.lstrip().startswith(("{", "[")):
        if all(map(_is_json, lines[:20])) and (len(lines) > 1 or suffix != ".json"):
            return settings | {"reader": "jsonl"}, [*evidence, "a JSON object a line"]
        try:
            records = _records_of(file, encoding)
        except ValueError:
            if is_cut and len(lines) == 1:  # an object a line, of which the first is longer than what was looked at
                return settings | {"reader": "jsonl"}, [*evidence, "a JSON object a line"]
            raise
        return settings | {"reader": "json", "records": records}, [
            *evidence,
            f"one JSON document, rows at {records}",
        ]
    return _columns_of(file, lines, settings, evidence)


def _columns_of(
    file: InputFile, lines: Sequence[str], settings: dict[str, Any], evidence: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Lines of cells: at a delimiter, or a label before each text."""
    labels = [match[1] for line in lines if (match := LABELLED.match(line))]
    found = _delimiter_of(lines)
    if found is None or (found[0] != "\t" and len(labels) == len(lines) and ":" in labels[0]):
        if len(labels) > 0.98 * len(lines) > 10 and len(set(labels)) < 0.2 * len(labels):
            return settings | {"reader": "text", "delimiter": " ", "max_columns": 2}, [
                *evidence,
                f"a label before each text ({labels[0]})",
            ]
        raise NotUnderstood(f"{file.name}: {SHAPES_OF_LINES}")
    delimiter, width = found
    is_tsv = PurePosixPath(unpacked_name(file)).suffix.lower() == ".tsv"
    reads: dict[str, Any] = {"reader": "csv"}
    if delimiter != "," and not (is_tsv and delimiter == "\t"):
        reads["delimiter"] = delimiter
    rows = list(csv.reader(lines, delimiter=delimiter))
    header = _has_header(rows)
    twice = [name for name, count in Counter(filter(None, map(str.strip, rows[0]))).items() if count > 1]
    if header and twice:
        raise NotUnderstood(f"{file.name} has two columns named '{twice[0]}': rename one of them")
    reads["header"] = header
    if delimiter == "\t" and not _quotes_cells(lines):
        reads["quote"] = ""
    shown = {"\t": "a tab"}.get(delimiter, repr(delimiter))
    first = f"names in the first line: {lines[0][:60]}" if header else "no names in the first line"
    return settings | reads, [*evidence, f"{width} columns at {shown}", first]


def _delimiter_of(lines: Sequence[str]) -> tuple[str, int] | None:
    """The delimiter that cuts the lines into equally many cells, and how many; None where none does."""
    best: tuple[float, int, str] | None = None
    for delimiter in DELIMITERS:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        widths = Counter(map(len, rows))
        width, count = widths.most_common(1)[0]
        share = count / len(rows)
        if width > 1 and share > 0.9 and (best is None or (round(share, 2), width) > (round(best[0], 2), best[1])):
            best = share, width, delimiter
    return (best[2], best[1]) if best else None


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: words above numbers, or shorter than texts, and none comes again."""
    first, rest = [cell.strip() for cell in rows[0]], rows[1:]
    if not rest:
        return all(map(_is_common, filter(None, first)))
    names_a_number = is_shorter = False
    for place, cell in enumerate(first):
        below = [row[place].strip() for row in rest if len(row) > place and row[place].strip()]
        if not below or not cell:
            continue
        if sum(map(_is_number, below)) > 0.9 * len(below):
            if _is_number(cell):
                return False
            names_a_number = True
        elif cell in below:
            return False
        else:
            median = sorted(map(len, below))[len(below) // 2]
            is_shorter = is_shorter or len(cell) < SHORTER * median
            if len(cell) > median and len(cell) > LONGEST_NAME:
                return False
    return names_a_number or is_shorter or any(map(_is_common, first))


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?\d+([.,]\d+)?", cell) is not None


def _is_common(cell: str) -> bool:
    return re.sub(r"[\W_]", "", cell.lower()) in COMMON_NAMES


COMMON_NAMES = {
    "id", "query", "question", "answer", "text", "label", "category", "title", "body", "score", "sentence1",
    "sentence2", "review", "content",
}  # fmt: skip


def _quotes_cells(lines: Sequence[str]) -> bool:
    """Whether cells between tabs stand in quotes."""
    cells = [cell for line in lines[:200] for cell in line.split("\t")]
    quoted = sum(cell.startswith('"') and cell.endswith('"') and len(cell) > 1 for cell in cells)
    return quoted > 0.2 * len(cells)


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _records_of(file: InputFile, encoding: str) -> str:
    """The path to the rows of a JSON document: the objects whose fields look most like those of examples.

    Raises:
        NotUnderstood: It is too large to look through, no JSON, or has no list of objects.
    """
    with open_bytes(file) as stream:
        content = stream.read(DOCUMENT_BYTES + 1)
    if len(content) > DOCUMENT_BYTES:
        raise NotUnderstood(f"{file.name}: a JSON document of over 256 MiB; give 'records' yourself")
    try:
        document = json.loads(content.decode(encoding).lstrip("\ufeff"))
    except ValueError as error:
        if str(error).startswith("Extra data"):
            raise
        raise NotUnderstood(f"{file.name} is no whole JSON document: {error}") from None
    best = max(_lists_in(document, ""), default=None)
    if best is None:
        raise NotUnderstood(f"{file.name}: a JSON document without a list of objects")
    return best[2]


def _lists_in(value: Any, path: str) -> Iterator[tuple[int, int, str]]:
    """(fields that examples have, objects, path) of each list of objects."""
    if isinstance(value, list):
        place = f"{path}[]"
        objects = [one for one in value if isinstance(one, dict)]
        if objects:
            names = {re.sub(r"[\W_]", "", name.lower()) for one in objects[:20] for name in one}
            yield len(names & (COMMON_NAMES | {"answers", "pos", "neg", "sentence"})), len(objects), place
        for one in objects[:3]:
            yield from _lists_in(one, place)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, list | dict) and re.fullmatch(r"[\w-]+", name):
                yield from _lists_in(inner, f"{path}.{name}".lstrip("."))
