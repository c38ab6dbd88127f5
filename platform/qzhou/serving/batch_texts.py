"""The texts of ``qzhou embed``: Parquet, JSON lines or a folder of documents, read in blocks. No ray in here.

Every row knows its part of the input and its number there. A file of vectors is named by
both, and by the version of the input file. So a listing of the output says which rows are
done, and files that are added to the input later are added to the output.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from qzhou.data.byte_lines import lines_between
from qzhou.data.documents.chunking import chunks
from qzhou.data.documents.extract import EXTRACTORS, DocumentError, extract, title_of_name
from qzhou.data.records import digest
from qzhou.data.storage import Folder, batched
from qzhou.errors import DataError
from qzhou.run.models import local_model
from qzhou.telemetry.events import log_event

Kind = Literal["parquet", "jsonl", "documents"]

SUFFIXES: Mapping[Kind, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2"),
    "documents": tuple(EXTRACTORS),
}
PART, ROW, IS_LAST = "part", "row", "is_last"  # columns that are not written
ID, TEXT = "id", "text"
VECTOR, CUT = "vector", "truncated"  # the second is not written
WRITTEN = {PART, ROW, IS_LAST, ID, TEXT, VECTOR, CUT}
LAST = "-last"  # in the name of the file with the last row of a part
_FILE = re.compile(rf"(?P<part>.+)-(?P<first>\d{{9}})-(?P<count>\d{{6}})(?P<last>{LAST})?\.parquet")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is read at a time.

    Attributes:
        rows: Of a block of texts, and of a file of vectors.
        documents: Files of documents that one task reads.
        task_rows: Of a Parquet file, that one task reads, in whole row groups.
        task_bytes: Of a file of JSON lines, that one task reads.
    """

    rows: int = 2_048
    documents: int = 512
    task_rows: int = 65_536
    task_bytes: int = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Part:
    """What one task reads: files of documents, or rows ``start`` to ``end`` - 1 of a Parquet file, or bytes of lines.

    Attributes:
        name: What the names of its output begin with.
        done: Ranges of rows that are written already: first row and the one after the last.
    """

    name: str
    files: tuple[str, ...]
    start: int = 0
    end: int | None = None
    done: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class TextInput:
    """Texts and where they lie.

    Attributes:
        folder: Of the files.
        files: Name, size and version of each.
        kind: What they are.
        column: With the texts.
        id_column: With their ids; empty: file and row number.
        keep: Further columns for the output.
        sizes: Of its parts.
        chunk_tokens: Documents are cut into chunks of so many tokens; None: a document is one text.
        model: Whose tokens these are.
    """

    folder: Folder
    files: tuple[tuple[str, int, str], ...]
    kind: Kind
    column: str = "text"
    id_column: str = ""
    keep: tuple[str, ...] = ()
    sizes: Sizes = Sizes()
    chunk_tokens: int | None = None
    model: str = ""

    def chunked(self, tokens: int, model: str) -> "TextInput":
        """The same with documents cut into chunks.

        Raises:
            DataError: The input is a table.
        """
        if self.kind != "documents":
            raise DataError(f"'{self.folder.uri}' holds {self.kind}, and --chunk-tokens cuts documents.")
        return replace(self, chunk_tokens=tokens, model=model)

    @classmethod
    def find(
        cls,
        address: str,
        *,
        column: str = "text",
        id_column: str = "",
        keep: Sequence[str] = (),
        sizes: Sizes = Sizes(),
    ) -> "TextInput":
        """The files at a path or URI: one file, or all below a folder.

        Raises:
            DataError: There are none, or of several kinds.
        """
        place = Folder.open(address)
        what = place.filesystem.get_file_info(place.path).type
        if what == pa.fs.FileType.Unknown:
            raise DataError(f"'{address}' is neither a file nor a folder")
        if what == pa.fs.FileType.File:
            folder, names = place.parent, [place.name]
        else:
            visible = (name for name in place.files(recursive=True) if "/." not in f"/{name}")
            folder, names = place, list(visible)
        found = {kind: [name for name in names if name.lower().endswith(ends)] for kind, ends in SUFFIXES.items()}
        kinds: list[Kind] = [kind for kind, some in found.items() if some]
        if len(kinds) != 1:
            there = ", ".join(f"{len(found[kind])} of {kind}" for kind in kinds) or "no such file"
            ends = ", ".join(end for some in SUFFIXES.values() for end in some)
            raise DataError(
                f"'{address}' holds {there}; files of one kind can be read, by their names: {ends}. Name a file or a "
                "folder of one kind."
            )
        if kinds[0] == "documents" and (id_column or keep):
            raise DataError(f"'{address}' holds documents, which have no columns: --id and --keep are for tables.")
        for name in keep:
            if name in WRITTEN and name not in (column, id_column):
                raise DataError(f"--keep {name}: the output has a column of its own with that name.")
        infos = folder.filesystem.get_file_info([f"{folder.path}/{name}" for name in found[kinds[0]]])
        files = zip(found[kinds[0]], infos, strict=True)
        versions = tuple((name, info.size, str(info.mtime_ns)) for name, info in files)
        return cls(folder, versions, kinds[0], column, id_column, tuple(keep), sizes)

    def parts(self) -> list[Part]:
        """All parts, in the order of the files; how a file is cut depends on nothing else."""
        if self.kind == "documents":
            some = batched(self.files, self.sizes.documents)
            cut = [] if self.chunk_tokens is None else [("chunks", self.chunk_tokens, self.model)]
            return [Part(_part_name([*one, *cut]), tuple(name for name, _, _ in one)) for one in some]
        return [
            Part(f"{_part_name([file])}-{start:012d}", (file[0],), start, end)
            for file in self.files
            for start, end in (self._groups(file[0]) if self.kind == "parquet" else self._ranges(*file[:2]))
        ]

    def _groups(self, name: str) -> Iterator[tuple[int, int]]:
        """Ranges of row groups with about as many rows as a task shall read."""
        with self._opened(name) as stream:
            metadata = pq.read_metadata(stream)
        start = rows = 0
        for group in range(metadata.num_row_groups):
            rows += metadata.row_group(group).num_rows
            if rows >= self.sizes.task_rows or group + 1 == metadata.num_row_groups:
                yield start, group + 1
                start, rows = group + 1, 0

    def _ranges(self, name: str, size: int) -> Iterator[tuple[int, int | None]]:
        """Ranges of bytes of a file of lines; one that is packed is read whole."""
        most = self.sizes.task_bytes
        if not name.lower().endswith(".jsonl") or size <= most:
            yield 0, None
            return
        for start in range(0, size, most):
            yield start, min(size, start + most)

    def blocks(self, part: Part) -> Iterator[pa.Table]:
        """The rows of a part that are not done, with their places, ids and texts, and the columns to keep.

        Raises:
            DataError: A column is missing, or a line is no JSON object; names the place.
        """
        read = {"parquet": self._parquet, "jsonl": self._lines, "documents": self._documents}[self.kind]
        first, tables = 0, iter(read(part))
        table = next(tables, None)
        while table is not None:
            following = next(tables, None)
            row = np.arange(first, first + table.num_rows)
            first += table.num_rows
            left = np.ones(len(row), dtype=bool)
            for start, end in part.done:
                left &= (row < start) | (row >= end)
            if left.any():
                places = {PART: [part.name] * len(row), ROW: row, IS_LAST: (row == first - 1) & (following is None)}
                columns = {name: table.column(name) for name in table.column_names}
                yield pa.table(places | columns).filter(pa.array(left))
            table = following

    def _parquet(self, part: Part) -> Iterator[pa.Table]:
        name = part.files[0]
        wanted = list(dict.fromkeys([self.column, *([self.id_column] if self.id_column else []), *self.keep]))
        with self._opened(name) as stream, pq.ParquetFile(stream) as parquet:
            self._refuse_missing(name, wanted, parquet.schema_arrow.names)
            groups = list(range(part.start, part.end or parquet.num_row_groups))
            row = sum(parquet.metadata.row_group(group).num_rows for group in range(part.start))
            for batch in parquet.iter_batches(batch_size=self.sizes.rows, row_groups=groups, columns=wanted):
                table = pa.Table.from_batches([batch])
                ids = table.column(self.id_column) if self.id_column else None
                if ids is not None and ids.null_count:
                    first = row + ids.is_null().index(True).as_py()
                    raise DataError(f"{name}#{first} has no id: '{self.id_column}' is null (--id).")
                yield self._table(name, row, table.column(self.column), ids, table.select(list(self.keep)))
                row += table.num_rows

    def _lines(self, part: Part) -> Iterator[pa.Table]:
        name, wanted = part.files[0], [self.column, *([self.id_column] if self.id_column else []), *self.keep]
        for some in batched(self._records(name, part), self.sizes.rows):
            for place, record in some:
                self._refuse_missing(f"{name}, {place}", wanted, list(record))
            texts = pa.array([_text(record[self.column]) for _, record in some], pa.string())
            of = self.id_column
            for place, record in some:
                if of and record[of] is None:
                    raise DataError(f"{name}, {place} has no id: '{of}' is null (--id).")
            ids = pa.array([str(record[of]) if of else f"{name}#{place}" for place, record in some], pa.string())
            kept = {column: [_text(record[column]) for _, record in some] for column in self.keep}
            yield self._table(
                name, 0, texts, ids, pa.table({one: pa.array(kept[one], pa.string()) for one in kept})
            )

    def _records(self, name: str, part: Part) -> Iterator[tuple[str, dict[str, Any]]]:
        """(byte or line, object) of the lines that begin in a part."""
        packed = not name.lower().endswith(".jsonl")
        place = f"{self.folder.path}/{name}"
        files = self.folder.filesystem
        with io.BufferedReader(
            files.open_input_stream(place) if packed else files.open_input_file(place)
        ) as stream:
            for start, line in lines_between(stream, part.start, part.end):
                if line.strip():
                    yield f"byte {start}", _object(line, f"{self.folder.uri}/{name}, byte {start}")

    def _documents(self, part: Part) -> Iterator[pa.Table]:
        for some in batched(self._document_texts(part), self.sizes.rows):
            ids, texts = (pa.array(column, pa.string()) for column in zip(*some, strict=True))
            yield self._table("", 0, texts, ids, pa.table({}))

    def _document_texts(self, part: Part) -> Iterator[tuple[str, str]]:
        """(id, text) of each document, or of each of its chunks; what gives no text is said and left out."""
        count = self._counter() if self.chunk_tokens is not None else None
        for name in part.files:
            try:
                found = extract(name, self.folder.read_bytes(name))
            except DocumentError as error:
                log_event(
                    f"embed: {name} is left out: {error}", "document_left_out", level="warning", why=error.reason
                )
                continue
            if self.chunk_tokens is None:
                yield name, found.text
                continue
            title = found.title or title_of_name(name)
            for one in chunks(found.text, title, tokens=self.chunk_tokens, count=count):
                yield f"{name}#{one.number}", one.in_context

    def _counter(self) -> Callable[[str], int]:
        from qzhou.encoder.backbone import token_counter  # loads torch

        with local_model(self.model) as place:
            return token_counter(place)

    def _table(self, name: str, row: int, texts: Any, ids: Any, kept: pa.Table) -> pa.Table:
        if ids is None:
            ids = pa.array([f"{name}#{number}" for number in range(row, row + len(texts))], pa.string())
        columns = {ID: ids.cast(pa.string()), TEXT: texts.cast(pa.string())}
        return pa.table(columns | {one: kept.column(one) for one in kept.column_names if one not in columns})

    def _refuse_missing(self, place: str, wanted: Sequence[str], there: Sequence[str]) -> None:
        for column in wanted:
            if column not in there:
                flag = "--column" if column == self.column else "--id" if column == self.id_column else "--keep"
                raise DataError(f"{place} has no column '{column}' ({flag}). It has: {', '.join(there)}.")

    def _opened(self, name: str) -> Any:
        return self.folder.filesystem.open_input_file(f"{self.folder.path}/{name}")


def files_of(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The files that a table of rows becomes, without the columns of their places."""
    parts, rows = table.column(PART).to_pylist(), table.column(ROW).to_pylist()
    is_last = table.column(IS_LAST).to_pylist()
    start = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows) and parts[end] == parts[start] and rows[end] == rows[end - 1] + 1:
            continue
        name = f"{parts[start]}-{rows[start]:09d}-{end - start:06d}{LAST if is_last[end - 1] else ''}.parquet"
        yield name, table.slice(start, end - start).drop_columns([PART, ROW, IS_LAST])
        start = end


def rows_of(name: str) -> int:
    """Rows of a file of vectors, by its name."""
    match = _FILE.fullmatch(name)
    return int(match["count"]) if match else 0


def without_what_is_done(parts: Sequence[Part], written: Sequence[str]) -> list[Part]:
    """The parts that are not finished, each with the rows of it that are.

    Raises:
        DataError: There are files of other inputs, or of versions that have changed since.
    """
    done: dict[str, list[tuple[int, int]]] = {part.name: [] for part in parts}
    rows: dict[str, int] = {}
    for name in written:
        match = _FILE.fullmatch(name)
        if match is None or match["part"] not in done:
            raise DataError(
                f"the output holds {name}, which is of no file of the input as it is now: one has changed or gone. "
                "Name a new folder, or remove what is no longer wanted."
            )
        first, count = int(match["first"]), int(match["count"])
        done[match["part"]].append((first, first + count))
        if match["last"]:
            rows[match["part"]] = first + count
    return [
        replace(part, done=tuple(done[part.name]))
        for part in parts
        if sum(end - start for start, end in done[part.name]) != rows.get(part.name, -1)
    ]


def _part_name(files: Sequence[tuple[str, int, str]]) -> str:
    stem = re.sub(r"[^\w.-]+", "_", files[0][0].rsplit("/", 1)[-1].split(".")[0])[:40]
    return f"{stem}-{digest([list(file) for file in files])[:12]}"


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{place}: {type(found).__name__}, not an object with columns")
    return found


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
