"""Raw files: where they are, how they are opened, and how they are cut into parts for the tasks of a cluster.

Local paths and globs, everything pyarrow or fsspec opens (``s3://``, ``gs://``, ``hdfs://``, ...), and members of
zip archives. What is compressed is unpacked while reading.
"""

from __future__ import annotations

import bz2
import codecs
import fnmatch
import glob
import gzip
import io
import itertools
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from qzhou.config.dataset import Format
from qzhou.errors import DataError, first_line

# what one task reads at most: seconds of work, so that a killed task loses little
SPLIT_BYTES = 16 * 2**20
SMALLEST_SPLIT_BYTES = 2**20  # below, starting a task would cost more than its work
SPLITS = 16  # of a small dataset, so that all cores of one machine have work to the end
REMOTE_READ_BYTES = 4 * 2**20  # what one request to an object store brings
UNPACKED_RATIO = 4  # text shrinks to about a quarter
WIDE_ENCODINGS = ("utf-16", "utf-32")  # their line ends are not one byte
PACKED_SUFFIXES = (".gz", ".bz2", ".zip")
# what reading a broken file raises
DAMAGE = (EOFError, OSError, zlib.error, zipfile.BadZipFile, pa.ArrowInvalid)

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A raw file, or a member of a zip archive; ``changed`` tells its versions apart.

    ``encoding`` is what was found in it, where the recipe says ``detect``.
    """

    uri: str
    size: int = 0
    changed: str = ""
    member: str = ""
    encoding: str = ""

    @property
    def name(self) -> str:
        """How it is called in messages: fsspec's notation for members."""
        return f"zip://{self.member}::{self.uri}" if self.member else self.uri

    @property
    def is_packed(self) -> bool:
        return bool(self.member) or self.uri.endswith(PACKED_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Split:
    """What one task reads: whole files, or a part of one.

    ``start`` and ``end`` count bytes (jsonl, text), row groups (parquet) or shards (hf); ``end`` is None for the
    whole of every file.
    """

    files: tuple[InputFile, ...]
    start: int = 0
    end: int | None = None


def input_files(dataset: str, form: Format) -> list[InputFile]:
    """The files that a format's paths name, sorted within each path, each once.

    Raises:
        DataError: A path matches nothing or cannot be reached; names the dataset, the path and the way out.
    """
    if form.reader == "hf":
        return [InputFile(_expanded(dataset, path)) for path in form.paths]
    found: dict[InputFile, None] = {}
    for pattern in form.paths:
        place = _expanded(dataset, pattern)
        members, archive = re.fullmatch(r"zip://(.+?)::(.+)", place, re.DOTALL), place
        if members:
            archive = members[2]
        matches = _matches(dataset, archive)
        if not matches:
            is_folder = "://" not in archive and Path(archive).expanduser().is_dir()
            raise DataError(
                f"dataset '{dataset}': '{pattern}' is a folder; name its files, e.g. '{pattern.rstrip('/')}/*.jsonl'."
                if is_folder
                else f"dataset '{dataset}': no file matches '{pattern}' (working directory {Path.cwd()}). "
                "Correct 'paths', or run from the folder that the path starts at."
            )
        if members or archive.endswith(".zip"):
            chosen = members[1] if members else "*"
            matches = [
                one
                for file in matches
                for one in _members(dataset, file, chosen, form.on_corrupt_file)
            ]
        found |= dict.fromkeys(matches)
    return list(found)


def splits_of(form: Format, files: Sequence[InputFile]) -> list[Split]:
    """The parts that tasks read: large files in pieces, small files together; the same for the same files.

    Raises:
        DataError: A Parquet file is damaged and ``on_corrupt_file`` is fatal.
    """
    if form.reader == "aligned_text":
        return [Split(tuple(files))]
    if form.reader == "hf":
        return [
            Split((file,), shard, shard + 1) for file in files for shard in range(hf_shards(file))
        ]
    largest = min(SPLIT_BYTES, max(SMALLEST_SPLIT_BYTES, sum(map(unpacked_bytes, files)) // SPLITS))
    splits: list[Split] = []
    together: list[InputFile] = []
    for file in files:
        size = unpacked_bytes(file)
        # small files are read together
        if together and sum(map(unpacked_bytes, together)) + size > largest // 4:
            splits.append(Split(tuple(together)))
            together = []
        if size > largest and not file.is_packed and _can_be_cut(form, file):
            splits += _pieces(form, file, largest)
        else:
            together.append(file)
    return splits + ([Split(tuple(together))] if together else [])


def _can_be_cut(form: Format, file: InputFile) -> bool:
    """Whether a part of a file can be read by itself: line ends are single bytes."""
    wide = codecs.lookup(file.encoding or form.encoding).name.startswith(WIDE_ENCODINGS)
    return form.reader == "parquet" or (form.reader in {"jsonl", "text"} and not wide)


def unpacked_bytes(file: InputFile) -> int:
    """About how much text a file holds."""
    return file.size * (UNPACKED_RATIO if file.is_packed else 1)


def open_bytes(file: InputFile) -> BinaryIO:
    """The unpacked content of a file.

    Raises:
        DataError: The file has gone.
        OSError, EOFError, zlib.error, zipfile.BadZipFile: While reading: it is damaged.
    """
    stream = open_raw(file)
    if "://" in file.uri:
        stream = _ReadAhead(cast(io.RawIOBase, stream), REMOTE_READ_BYTES)
    name = file.uri
    # a whole archive is asked for where its list of members is broken
    if file.member or name.endswith(".zip"):
        stream, name = cast(BinaryIO, zipfile.ZipFile(stream).open(file.member)), file.member  # noqa: SIM115 - the caller closes
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    return cast(BinaryIO, bz2.BZ2File(stream)) if name.endswith(".bz2") else stream


class _ReadAhead(io.BufferedReader):
    """The buffer that pyarrow's streams lack: each piece is a request, and a line end would be looked for bytewise."""

    def read1(self, size: int = -1, /) -> bytes:
        self.peek(1)  # text streams ask this for 8 KiB, which would pass by an empty buffer
        return super().read1(size)


def damaged(file: InputFile, rows: int, error: Exception) -> str:
    """What to say of a file that cannot be read to its end."""
    problem = (
        f"not {error.encoding}" if isinstance(error, UnicodeDecodeError) else "damaged or truncated"
    )
    return (
        f"{file.name} is {problem} after {rows:,} rows: {str(error) or type(error).__name__}. Replace the file, or set "
        'on_corrupt_file = "skip" to keep what was read before the damage.'
    )


def open_raw(file: InputFile) -> BinaryIO:
    """The bytes as they are stored; can be sought in."""
    try:
        if "://" not in file.uri:
            return Path(file.uri).open("rb")
        filesystem, path, _ = _filesystem(file.uri)
        return cast(BinaryIO, filesystem.open(path, "rb"))
    except FileNotFoundError:
        raise DataError(
            f"{file.name} has gone since the run began; put it back, or start again."
        ) from None


def hf_dataset(file: InputFile) -> Any:
    """The streaming ``datasets`` object behind ``hf://name/config:split``; ``name`` may have an owner before it.

    Raises:
        DataError: The address is malformed, or the hub or the dataset cannot be reached.
    """
    import datasets

    address = re.fullmatch(r"hf://(?P<name>[^:]+):(?P<split>[\w.-]+)", file.uri)
    if address is None:
        raise DataError(
            f"'{file.uri}': an address on the hub is written hf://name/config:split, e.g. hf://squad:train"
        )
    reason = ""
    for name, config in _readings(address["name"]):
        try:
            return datasets.load_dataset(name, config, split=address["split"], streaming=True)
        except (
            OSError,
            ValueError,
        ) as error:  # what datasets raises for all that can be wrong with an address
            reason = reason or first_line(error)
    raise DataError(
        f"'{file.uri}' cannot be loaded: {reason}. Check name, config and split, and that the hub can be reached "
        "(HF_ENDPOINT, HF_TOKEN); or download the files and read them with reader = 'parquet' or 'jsonl'."
    )


def hf_shards(file: InputFile) -> int:
    """How many parts a dataset of the hub can be read in at the same time."""
    return int(hf_dataset(file).num_shards)


def _readings(address: str) -> list[tuple[str, str | None]]:
    """The (name, config) that an address may mean: ``a/b`` is an owner's dataset, or a dataset and its config."""
    parts = address.split("/")
    if address.startswith("/") or Path(address).is_dir() or len(parts) == 1:
        return [(address, None)]
    if len(parts) == 2:
        return [(address, None), (parts[0], parts[1])]
    return [("/".join(parts[:-1]), parts[-1])]


def _expanded(dataset: str, path: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise DataError(
                f"dataset '{dataset}': paths: '{path}' needs the environment variable {name}, which is not set. "
                f"Set it to the folder of your data: export {name}=/path/to/data"
            )
        return os.environ[name]

    return _VARIABLE.sub(value, path)


def _matches(dataset: str, pattern: str) -> list[InputFile]:
    if "://" not in pattern:
        # workers may have another working directory
        start = str(Path(pattern).expanduser().absolute())
        paths = sorted(path for path in glob.glob(start, recursive=True) if Path(path).is_file())  # noqa: PTH207 - Path.glob takes no absolute pattern
        stats = [(path, Path(path).stat()) for path in paths]
        return [InputFile(path, stat.st_size, str(stat.st_mtime_ns)) for path, stat in stats]
    try:
        filesystem, path, scheme = _filesystem(pattern)
        found = filesystem.glob(path, detail=True)
    except Exception as error:  # every filesystem has its own
        raise DataError(
            f"dataset '{dataset}': '{pattern}' cannot be listed: {first_line(error)}"
        ) from None
    return [
        InputFile(
            f"{scheme}{name}",
            int(info["size"] or 0),
            str(info.get("mtime") or info.get("ETag") or ""),
        )
        for name, info in sorted(found.items())
        if info["type"] == "file"
    ]


def _filesystem(uri: str) -> tuple[Any, str, str]:
    """An fsspec filesystem, the path on it, and the scheme to put before its paths."""
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper

    scheme = uri.split("://")[0] + "://"
    try:
        # a wildcard is no part of an address, so the filesystem is made from what precedes it
        filesystem, _ = pa.fs.FileSystem.from_uri(re.split(r"[*?\[]", uri)[0])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        filesystem, path = fsspec.core.url_to_fs(uri)
        return filesystem, path, scheme
    return ArrowFSWrapper(filesystem), uri.removeprefix(scheme), scheme


def _members(dataset: str, file: InputFile, pattern: str, on_corrupt_file: str) -> list[InputFile]:
    """The files inside a zip archive whose names match; the archive itself where it is damaged and to be skipped."""
    with open_raw(file) as stream:
        try:
            entries = zipfile.ZipFile(stream).infolist()
        except (zipfile.BadZipFile, OSError) as error:
            if on_corrupt_file == "skip":
                return [file]
            raise DataError(f"dataset '{dataset}': {damaged(file, 0, error)}") from None
    found = [
        InputFile(file.uri, entry.compress_size, file.changed, entry.filename)
        for entry in sorted(entries, key=lambda entry: entry.filename)
        if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")
    ]
    chosen = [one for one in found if fnmatch.fnmatchcase(one.member, pattern)]
    if not chosen:
        held = ", ".join(one.member for one in found[:10]) or "nothing"
        raise DataError(
            f"dataset '{dataset}': no member of {file.uri} matches '{pattern}'; it holds {held}."
        )
    return chosen


def _pieces(form: Format, file: InputFile, largest: int) -> list[Split]:
    if form.reader != "parquet":
        return [
            Split((file,), start, min(start + largest, file.size))
            for start in range(0, file.size, largest)
        ]
    with open_raw(file) as stream:
        try:
            groups = pq.ParquetFile(stream).num_row_groups
        except (pa.ArrowInvalid, OSError):
            return [Split((file,))]  # the reader says what is wrong with it
    count = min(groups, -(-file.size // largest))
    edges = [groups * number // count for number in range(count + 1)] if count else [0, 0]
    return [Split((file,), start, end) for start, end in itertools.pairwise(edges)]
