"""Records to Parquet and back, on any filesystem that pyarrow opens.

A write goes to a temporary name and is renamed, so that a file which exists is whole.
Reading checks the schema against the record type.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import shutil
import tempfile
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from qzhou.errors import DataError, StorageError

Record = TypeVar("Record")
Item = TypeVar("Item")

ROWS_PER_FILE = 50_000
TEMPORARY_PREFIX = ".writing-"
# asked for at a time where files are copied; Arrow's own 1 MiB is 14,000 requests a 7B model
COPY_BYTES = 64 * 2**20
# object stores, where a folder is a marker that nobody needs and each level a request
WITHOUT_FOLDERS = ("s3", "gcs")


@dataclasses.dataclass(frozen=True, slots=True)
class Folder:
    """A folder on some filesystem; ``path`` is what that filesystem calls it."""

    filesystem: pa.fs.FileSystem
    path: str
    scheme: str = ""

    @classmethod
    def open(cls, uri: str) -> Folder:
        """Open a local path or a URI (``s3://bucket/run``, ``gs://``, ``file://``).

        Raises:
            StorageError: Unknown scheme, or the filesystem refuses the address.
        """
        if "://" not in uri:
            return cls(pa.fs.LocalFileSystem(), str(Path(uri).expanduser().absolute()))
        try:
            filesystem, path = pa.fs.FileSystem.from_uri(_with_few_requests(uri))
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError(f"run.storage '{uri}' cannot be opened: {error}") from None
        local = isinstance(filesystem, pa.fs.LocalFileSystem)
        return cls(filesystem, path, "" if local else uri.split("://")[0] + "://")

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.filesystem, f"{self.path}/{name}", self.scheme)

    @property
    def uri(self) -> str:
        """The address to show to people and to hand to Ray."""
        return self.scheme + self.path

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a filesystem of this machine."""
        return not self.scheme

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Folder:
        """The folder that holds this one."""
        return Folder(self.filesystem, self.path.rpartition("/")[0], self.scheme)

    def create(self) -> Folder:
        """Make the folder and check that it can be written; on an object store writing will tell.

        Raises:
            StorageError: It cannot; says which path and why.
        """
        if self._has_objects:
            return self
        probe = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            with self.filesystem.open_output_stream(f"{self.path}/{probe}") as stream:
                stream.write(b"")
            self.filesystem.delete_file(f"{self.path}/{probe}")
        except OSError as error:
            raise StorageError(
                f"'{self.uri}' cannot be written: {_reason(error)}. Set run.storage to a writable folder."
            ) from None
        return self

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of that name, or without a name this folder, exists."""
        return bool(self._info(name).type != pa.fs.FileType.NotFound)

    def files(self, suffix: str = "", *, recursive: bool = False) -> list[str]:
        """Sorted names of files below, relative to this folder; empty if it is missing."""
        return list(self.sizes(suffix, recursive=recursive))

    def sizes(self, suffix: str = "", *, recursive: bool = False) -> dict[str, int]:
        """The same names with the bytes of each file."""
        selector = pa.fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        found = [info for info in self.filesystem.get_file_info(selector) if info.type == pa.fs.FileType.File]
        sizes = {info.path[len(self.path.rstrip("/")) + 1 :]: info.size for info in found}
        names = sorted(name for name in sizes if name.endswith(suffix) and TEMPORARY_PREFIX not in name)
        return {name: sizes[name] for name in names}

    def folders(self) -> list[str]:
        """Names of the folders directly below, sorted."""
        selector = pa.fs.FileSelector(self.path, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == pa.fs.FileType.Directory)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            StorageError: It cannot be read.
        """
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                return bytes(stream.read())
        except OSError as error:
            raise StorageError(f"'{self.uri}/{name}' cannot be read: {_reason(error)}") from None

    def write_bytes(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file whole or not at all.

        Raises:
            StorageError: It cannot be written.
        """
        opened = self._at(name) if self._has_objects else self.writing(name)  # an object is there once it is whole
        with opened as place, self.filesystem.open_output_stream(place) as stream:
            stream.write(content)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file."""
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_bytes(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[str]:
        """A temporary path to write; gets its real name when the block ends without error.

        Raises:
            StorageError: The file cannot be written.
        """
        parent, _, base = f"{self.path}/{name}".rpartition("/")
        temporary = f"{parent}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{base}"
        try:
            with self._at(name):
                self._make(parent)
                yield temporary
                self.filesystem.move(temporary, f"{parent}/{base}")
        finally:
            if self.filesystem.get_file_info(temporary).type != pa.fs.FileType.NotFound:
                self.filesystem.delete_file(temporary)

    @contextlib.contextmanager
    def _at(self, name: str) -> Iterator[str]:
        """A file's path; errors of the filesystem say which file could not be written."""
        try:
            yield f"{self.path}/{name}"
        except OSError as error:
            raise StorageError(f"'{self.uri}/{name}' cannot be written: {_reason(error)}") from None

    def size(self, name: str) -> int:
        """Bytes of one file."""
        return int(self._info(name).size)

    def read_array(self, name: str) -> np.ndarray[Any, Any]:
        """One ``.npy`` file."""
        return np.asarray(np.load(io.BytesIO(self.read_bytes(name)), allow_pickle=False))

    def has_array(self, name: str, *, rows: int) -> bool:
        """Whether there is a whole ``.npy`` file with so many rows."""
        if not self.exists(name):
            return False
        try:
            with self.filesystem.open_input_file(f"{self.path}/{name}") as stream:
                if np.lib.format.read_magic(stream) != (1, 0):
                    return False
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                end = stream.tell() + dtype.itemsize * np.prod(shape)
                return bool(shape[:1] == (rows,) and stream.size() == end)
        except ValueError:
            return False

    def write_array(self, name: str, content: np.ndarray[Any, Any]) -> None:
        """Write one ``.npy`` file, whole or not at all."""
        buffer = io.BytesIO()
        np.save(buffer, content, allow_pickle=False)
        self.write_bytes(name, buffer.getvalue())

    def copy_to(self, other: Folder) -> None:
        """Copy this folder and everything in it; nothing happens if there is none."""
        if not self.exists():
            return
        if self.is_local:
            self._make(other.path)
            _copy(self, other)
            return
        for name in self.files(recursive=True):
            self._copy_inside(self / name, other / name)

    def link_to(self, other: Folder, *, last: str = "", leave_out: Sequence[str] = ()) -> None:
        """Put the files of this folder into another one of this filesystem; files that are there already stay.

        Hard links are used where the filesystem has them: unlike with symbolic links, each
        folder stays whole when the other is moved or deleted. An object store makes the
        copies itself. The files must never be changed in place.

        Args:
            other: The folder that gets the files.
            last: A file that comes after all others.
            leave_out: Folders directly below that stay behind.
        """
        names = [name for name in self.files(recursive=True) if name.split("/")[0] not in leave_out]
        there = set(other.files(recursive=True))
        for name in sorted(names, key=lambda name: name == last):
            if name not in there:
                self.link_file(name, other)

    def link_file(self, name: str, other: Folder) -> None:
        """The same for one file, whether or not it is there already."""
        if self.is_local:
            with other.writing(name) as temporary:
                _link_file(f"{self.path}/{name}", temporary)
        else:
            self._copy_inside(self / name, other / name)

    def _copy_inside(self, source: Folder, target: Folder) -> None:
        self._make(target.parent.path)
        try:
            self.filesystem.copy_file(source.path, target.path)
        except OSError:
            _copy(source, target)  # S3 copies at most 5 GB in one request; a larger file goes through this process

    def move_to(self, other: Folder) -> None:
        """Rename this folder; on an object store this copies and deletes."""
        self._make(other.parent.path)
        if self.is_local:
            os.rename(self.path, other.path)
            return
        self.copy_to(other)
        self.delete()

    def delete(self) -> None:
        """Remove the folder and everything in it; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path)

    def remove(self, name: str) -> None:
        """Remove one file."""
        self.filesystem.delete_file(f"{self.path}/{name}")

    def upload(self, local: Path) -> None:
        """Copy a local folder here, replacing what was here."""
        self.delete()
        self._make(self.path)
        _copy(Folder(pa.fs.LocalFileSystem(), str(local)), self)

    @contextlib.contextmanager
    def local_copy(self) -> Iterator[Path]:
        """This folder as a local path, downloaded for the block if it is remote."""
        if self.is_local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as temporary:
            self.download(Path(temporary))
            yield Path(temporary)

    def download(self, target: Path) -> None:
        """Copy this folder into one on this machine."""
        target.mkdir(parents=True, exist_ok=True)
        _copy(self, Folder(pa.fs.LocalFileSystem(), str(target)))

    @property
    def _has_objects(self) -> bool:
        return self.filesystem.type_name in WITHOUT_FOLDERS

    def _make(self, path: str) -> None:
        if not self._has_objects:
            self.filesystem.create_dir(path, recursive=True)

    def _info(self, name: str) -> pa.fs.FileInfo:
        return self.filesystem.get_file_info(f"{self.path}/{name}" if name else self.path)


# Reading annotations takes ten times as long as making a record
_hints: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def schema_of(record_type: type) -> pa.Schema:
    """The Arrow schema of a record type: one column per field."""
    hints = _hints(record_type)
    return pa.schema([_arrow_field(field.name, hints[field.name]) for field in dataclasses.fields(record_type)])


def write_records(folder: Folder, records: Iterable[Record], record_type: type[Record]) -> int:
    """Write records as numbered Parquet files, each whole or absent.

    Returns: How many records were written. No file is made for none.
    """
    written = 0
    for part, rows in enumerate(batched(records, ROWS_PER_FILE)):
        write_table(folder, f"part-{part:06d}.parquet", table_of(rows, record_type))
        written += len(rows)
    return written


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items, the last one perhaps shorter: ``itertools.batched``, which Python 3.12 brings."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def write_table(folder: Folder, name: str, table: pa.Table) -> None:
    """Write one Parquet file, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    folder.write_bytes(name, sink.getvalue())


def table_of(records: Sequence[Record], record_type: type[Record]) -> pa.Table:
    """Records as a table of :func:`schema_of` columns; several times faster than ``dataclasses.asdict``."""
    schema = schema_of(record_type)
    if not records:
        return schema.empty_table()
    return pa.Table.from_arrays(_columns(records, record_type, schema), schema=schema)


def _columns(records: Sequence[Any], record_type: type, fields: Iterable[pa.Field]) -> list[pa.Array]:
    hints = _hints(record_type)
    return [_column([getattr(one, part.name) for one in records], hints[part.name], part.type) for part in fields]


def _column(values: Sequence[Any], hint: Any, arrow_type: pa.DataType) -> pa.Array:
    """One column, its lists and nested records taken apart into columns of their own."""
    if typing.get_origin(hint) is tuple:
        ends = itertools.accumulate(map(len, values), initial=0)
        flat = list(itertools.chain.from_iterable(values))
        elements = _column(flat, typing.get_args(hint)[0], arrow_type.value_type)
        return pa.ListArray.from_arrays(pa.array(ends, type=pa.int32()), elements, type=arrow_type)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return pa.StructArray.from_arrays(_columns(values, hint, arrow_type), fields=list(arrow_type))
    return pa.array(values, type=arrow_type)


def row_count(folder: Folder, name: str) -> int:
    """Rows of one Parquet file, by its metadata."""
    with folder.filesystem.open_input_file(f"{folder.path}/{name}") as stream:
        return int(pq.read_metadata(stream).num_rows)


def count_rows(folder: Folder) -> int:
    """Rows of all Parquet files below a folder."""
    return sum(row_count(folder, name) for name in folder.files(".parquet", recursive=True))


def read_table(folder: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet file, or some of its columns."""
    with folder.filesystem.open_input_file(f"{folder.path}/{name}") as stream:
        return pq.read_table(stream, columns=columns)


def read_records(folder: Folder, record_type: type[Record], names: Sequence[str] | None = None) -> Iterator[Record]:
    """Read what :func:`write_records` wrote, in its order; nothing if there is no folder. ``names`` are some files.

    Raises:
        DataError: A file's columns are not the record's; names the file and both schemas.
    """
    schema = schema_of(record_type)
    for name in folder.files(".parquet") if names is None else names:
        with folder.filesystem.open_input_file(f"{folder.path}/{name}") as stream:
            file = pq.ParquetFile(stream)
            if not file.schema_arrow.equals(schema):
                raise DataError(
                    f"{folder.uri}/{name} does not hold {record_type.__name__} records: expected the columns\n"
                    f"{_indented(schema)}\nand found\n{_indented(file.schema_arrow)}\nRun the stage that wrote it."
                )
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield from_row(record_type, row)


def from_row(record_type: type[Record], row: dict[str, Any]) -> Record:
    """One record from a mapping of plain values, nested records included."""
    hints = _hints(record_type)
    return record_type(**{name: _from_plain(hints[name], value) for name, value in row.items()})


def _arrow_field(name: str, hint: Any) -> pa.Field:
    arguments = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    if isinstance(hint, types.UnionType) and len(arguments) == 1:
        return pa.field(name, _arrow_type(arguments[0]), nullable=True)
    return pa.field(name, _arrow_type(hint), nullable=False)


def _arrow_type(hint: Any) -> pa.DataType:
    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if hint in plain:
        return plain[hint]
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(_arrow_field("element", typing.get_args(hint)[0]))
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return pa.struct(list(schema_of(hint)))
    raise AssertionError(f"no Arrow type for {hint}")


def _from_plain(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return tuple(_from_plain(typing.get_args(hint)[0], element) for element in value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_row(hint, value)
    return value


def _with_few_requests(uri: str) -> str:
    """The URI with pyarrow's option by which a small object on S3 is one request, and not the three of a large one."""
    if not uri.startswith("s3://") or "allow_delayed_open" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


def _indented(schema: pa.Schema) -> str:
    return "\n".join(f"    {line}" for line in str(schema).splitlines())


def _copy(source: Folder, target: Folder) -> None:
    """Copy a file, or a folder and everything in it."""
    pa.fs.copy_files(
        source.path,
        target.path,
        source_filesystem=source.filesystem,
        destination_filesystem=target.filesystem,
        chunk_size=COPY_BYTES,
    )


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(source, target)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
