"""Raw files: where they are and how they are opened.

Local paths and globs, everything pyarrow or fsspec opens (``s3://``, ``gs://``,
``hdfs://``, ...), and members of zip and tar archives. What is compressed is unpacked while
reading.
"""

import bz2
import fnmatch
import glob
import gzip
import io
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs

from qzhou.config.dataset import Format
from qzhou.errors import DataError, first_line

REMOTE_READ_BYTES = 4 * 2**20  # what one request to an object store brings
UNPACKED_RATIO = 4  # text shrinks to about a quarter
WIDE_ENCODINGS = ("utf-16", "utf-32")  # their line ends are not one byte
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
PACKED_SUFFIXES = (*COMPRESSED, ".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst")
ARCHIVE = re.compile(r".+\.(zip|tar|tgz|tbz2|txz|tzst|tar\.(gz|bz2|xz|zst))", re.IGNORECASE)
TAR_BLOCK = 512  # bytes; an archive ends with blocks of zeros
# What reading a broken file raises.
DAMAGE = (
    EOFError, OSError, zlib.error, zipfile.BadZipFile, pa.ArrowInvalid, lzma.LZMAError, tarfile.TarError,
)  # fmt: skip

# what an unpacker or reader says of a file of another kind -> what it is
OTHER_KIND = {
    "Not a gzipped file": "ends with .gz and is not packed by gzip: correct its name",
    "Invalid data stream": "ends with .bz2 and is not packed by bzip2: correct its name",
    "Input format not supported by decoder": "ends with .xz and is not packed by xz: correct its name",
    "Parquet magic bytes not found": "is no Parquet file: set 'reader' to what it is",
}
_PARTITION = re.compile(r"(?:^|/)([\w-]+)=([^/]*)(?=/)")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A raw file, or a member of an archive; ``changed`` tells its versions apart.

    ``encoding`` is what was found in it, where the recipe says ``detect``.
    """

    uri: str
    size: int = 0
    changed: str = ""
    member: str = ""
    encoding: str = ""

    @property
    def name(self) -> str:
        """The name in messages; a member's is in fsspec's notation."""
        kind = "zip" if self.uri.lower().endswith(".zip") else "tar"
        return f"{kind}://{self.member}::{self.uri}" if self.member else self.uri

    @property
    def partition(self) -> dict[str, str | None]:
        """The columns in the names of its folders, as Hive and Spark write them: ``language=en/part-0.parquet``."""
        found = _PARTITION.findall(f"{self.uri}/{self.member}" if self.member else self.uri)
        return {name: None if value == NO_VALUE else unquote(value) for name, value in found}

    @property
    def is_packed(self) -> bool:
        """Whether it is compressed, or a member of an archive."""
        return bool(self.member) or self.uri.lower().endswith(PACKED_SUFFIXES)


def input_files(form: Format) -> list[InputFile]:
    """The files that a format's paths name, sorted within each path, each once.

    Raises:
        DataError: A path matches nothing or is unreachable; names it and the way out.
    """
    if form.reader == "hf":
        return [InputFile(_expanded(path)) for path in form.paths]
    found: dict[InputFile, None] = {}
    for pattern in form.paths:
        place = _expanded(pattern)
        address = re.fullmatch(r"(zip|tar)://(?P<members>.+?)::(?P<archive>.+)", place, re.DOTALL)
        archive = address["archive"] if address else place
        if form.reader == "documents" and not address and _is_folder(archive):
            matches = _files_below(archive)
        else:
            matches = [one for alternative in _alternatives(archive) for one in _matches(alternative)]
        if not matches:
            raise DataError(_no_match(pattern, archive))
        if address or ARCHIVE.fullmatch(archive):
            chosen = address["members"] if address else "*"
            matches = [one for file in matches for one in _members(file, chosen, form.on_corrupt_file)]
        found |= dict.fromkeys(matches)
    return list(found)


def _files_below(folder: str) -> list[InputFile]:
    """The files in a folder and its folders, hidden ones and links to folders left out."""
    if "://" in folder:
        return [one for one in _matches(f"{folder.rstrip('/')}/**") if "/." not in one.uri.removeprefix(folder)]
    root = Path(_absolute(_unescaped(folder)))
    found = (
        one for one in root.rglob("*") if not any(part.startswith(".") for part in one.relative_to(root).parts)
    )
    return [local_file(one) for one in sorted(found) if one.is_file()]


def _unescaped(path: str) -> str:
    """A path that stands for itself: what ``glob.escape`` made of it, undone."""
    return re.sub(r"\[([*?\[])\]", r"\1", path)


def _is_folder(place: str) -> bool:
    """Whether a place names neither a pattern nor a file by its ending."""
    if "://" not in place:
        return Path(_unescaped(place)).expanduser().is_dir()
    return not re.search(r"[*?\[{]", place) and not PurePosixPath(place).suffix


def path_below(form: Format, file: InputFile) -> str:
    """A file's path below the folder that the format's paths name: the same on every machine."""
    whole = "/".join(filter(None, (file.uri, file.member)))
    roots = (re.split(r"[*?\[{]", _absolute(_expanded(path)))[0] for path in form.paths)
    below = [whole.removeprefix(root).lstrip("/") for root in roots if whole.startswith(root)]
    # of a file that is named itself, its name remains
    shortest = min(below, key=len, default="") or PurePosixPath(whole).name
    return shortest.encode("utf-8", "replace").decode()


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def unpacked_name(file: InputFile) -> str:
    """The name that says what a file holds once it is unpacked."""
    path = PurePosixPath(file.member or file.uri)
    return path.stem if path.suffix.lower() in COMPRESSED else path.name


def local_file(path: Path) -> InputFile:
    """A local file with its size and the time of its last change."""
    stat = path.stat()
    return InputFile(str(path), stat.st_size, str(stat.st_mtime_ns))


def _alternatives(pattern: str) -> list[str]:
    """The patterns that one with ``{csv,tsv}`` stands for, as a shell expands it."""
    braces = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [one for choice in braces[1].split(",") for one in _alternatives(before + choice + after)]


def _no_match(pattern: str, archive: str) -> str:
    if "://" not in archive and Path(archive).expanduser().is_dir():
        return f"'{pattern}' is a folder; name its files, e.g. '{pattern.rstrip('/')}/*.jsonl'."
    return (
        f"no file matches '{pattern}' (working directory {Path.cwd()}). "
        "Correct 'paths', or run from the folder that the path starts at."
    )


def unpacked_bytes(file: InputFile) -> int:
    """About how much text a file holds."""
    return file.size * (UNPACKED_RATIO if file.is_packed else 1)


def open_bytes(file: InputFile) -> BinaryIO:
    """The unpacked content of a file.

    Raises:
        DataError: The file has gone.
        One of DAMAGE: While reading.
    """
    stream = open_raw(file)
    if "://" in file.uri:
        stream = _ReadAhead(cast(io.RawIOBase, stream), REMOTE_READ_BYTES)
    name = file.uri
    # An archive whose list of members is broken has no member, and raises here.
    if file.member or ARCHIVE.fullmatch(name):
        name = file.member
        stream = _open_archive(file.uri, stream).open(name)
    return _unpacked(name, stream)


def _unpacked(name: str, stream: BinaryIO) -> BinaryIO:
    """What a stream holds, unpacked as its name says."""
    name = name.lower()
    if name.endswith((".gz", ".tgz")):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    if name.endswith((".bz2", ".tbz2")):
        return cast(BinaryIO, bz2.BZ2File(stream))
    if name.endswith((".xz", ".txz")):
        return cast(BinaryIO, lzma.LZMAFile(stream))
    if name.endswith((".zst", ".tzst")):
        # pyarrow's, which says where a file ends inside a frame
        unpacked = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, unpacked)))
    return stream


class _Tar:
    """A tar archive, packed or not, with the methods of a zip archive that are used here."""

    def __init__(self, stream: BinaryIO) -> None:
        # as a stream, since some packed ones cannot go back
        self._stream = _Tail(stream)
        self._archive = tarfile.open(fileobj=cast(BinaryIO, self._stream), mode="r|")  # noqa: SIM115 - the caller closes

    def sizes(self) -> dict[str, int]:
        """Member -> its size, as if it were packed.

        Raises:
            tarfile.TarError: It has no end, or two members of one name, of which only one could be read.
        """
        found: dict[str, int] = {}
        for one in self._archive:
            if one.isfile() and _plain(one.name) in found:
                raise tarfile.ReadError(f"it holds '{one.name}' twice")
            if one.isfile():
                found[_plain(one.name)] = one.size // UNPACKED_RATIO
        if not self._stream.ends_with_zeros():
            raise tarfile.ReadError("it ends before its end mark")
        return found

    def open(self, name: str) -> BinaryIO:
        """A member's content."""
        member = next(one for one in self._archive if _plain(one.name) == name)
        return cast(BinaryIO, self._archive.extractfile(member))


class _Tail:
    """A stream that remembers its last bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._tail = stream, b""

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._tail = (self._tail + content)[-TAR_BLOCK:] if content else self._tail
        return content

    def ends_with_zeros(self) -> bool:
        """Whether the last block is one of zeros, after the rest has been read."""
        while self.read(REMOTE_READ_BYTES):
            pass
        return len(self._tail) == TAR_BLOCK and not any(self._tail)


def _plain(name: str) -> str:
    """The name of a member without the ``./`` that some archives put before it."""
    return name.removeprefix("./")


class _Zip:
    """A zip archive."""

    def __init__(self, stream: BinaryIO) -> None:
        self._archive = zipfile.ZipFile(stream)

    def sizes(self) -> dict[str, int]:
        """Member -> its packed size."""
        if any(one.flag_bits & 1 for one in self._archive.infolist()):
            raise zipfile.BadZipFile("it is encrypted: unpack it first")
        return {one.filename: one.compress_size for one in self._archive.infolist() if not one.is_dir()}

    def open(self, name: str) -> BinaryIO:
        """A member's content."""
        return cast(BinaryIO, self._archive.open(name))


def _open_archive(uri: str, stream: BinaryIO) -> _Zip | _Tar:
    return _Zip(stream) if uri.lower().endswith(".zip") else _Tar(_unpacked(uri, stream))


class _ReadAhead(io.BufferedReader):
    """A buffer, which pyarrow's streams lack; without it each line end costs a request."""

    def read1(self, size: int = -1, /) -> bytes:
        self.peek(1)  # text streams ask this for 8 KiB, which would pass by an empty buffer
        return super().read1(size)


def damage_message(file: InputFile, rows: int, error: Exception) -> str:
    """The message about a file that cannot be read to its end, or is not what its name or reader says."""
    for words, meaning in OTHER_KIND.items():
        if words in str(error) and not rows:  # later on, the same words mean damage
            return f"{file.name} {meaning}: {error}."
    problem = f"not {error.encoding}" if isinstance(error, UnicodeDecodeError) else "damaged or truncated"
    return (
        f"{file.name} is {problem} after {rows:,} rows: {str(error) or type(error).__name__}. Replace the file, or set "
        'on_corrupt_file = "skip" to keep what was read before the damage.'
    )


def open_raw(file: InputFile) -> BinaryIO:
    """A stream of the bytes as they are stored; it can be seeked in."""
    try:
        if "://" not in file.uri:
            return Path(file.uri).open("rb")
        filesystem, path, _ = _filesystem(file.uri)
        return cast(BinaryIO, filesystem.open(path, "rb"))
    except FileNotFoundError:
        raise DataError(f"{file.name} has gone since the run began; put it back, or start again.") from None


def _expanded(path: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise DataError(
                f"paths: '{path}' needs the environment variable {name}, which is not set. "
                f"Set it to the folder of your data: export {name}=/path/to/data"
            )
        return os.environ[name]

    return _VARIABLE.sub(value, path)


def _matches(pattern: str) -> list[InputFile]:
    if "://" not in pattern:
        # Workers may have another working directory.
        found = sorted(glob.glob(_absolute(pattern), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        return [local_file(Path(path)) for path in found if Path(path).is_file()]
    try:
        filesystem, path, scheme = _filesystem(pattern)
        listed = filesystem.glob(path, detail=True)
    except Exception as error:  # noqa: BLE001 - every filesystem has its own errors
        raise DataError(f"'{pattern}' cannot be listed: {first_line(error)}") from None
    files = {f"{scheme}{name}": info for name, info in sorted(listed.items()) if info["type"] == "file"}
    return [
        InputFile(uri, int(info["size"] or 0), str(info.get("mtime") or info.get("ETag") or ""))
        for uri, info in files.items()
    ]


def _filesystem(uri: str) -> tuple[Any, str, str]:
    """An fsspec filesystem, the path on it, and the scheme to put before its paths."""
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper

    scheme = uri.split("://")[0] + "://"
    try:
        # A wildcard is no part of an address, so the filesystem is made from what precedes it.
        filesystem, _ = pa.fs.FileSystem.from_uri(re.split(r"[*?\[]", uri)[0])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        filesystem, path = fsspec.core.url_to_fs(uri)
        return filesystem, path, scheme
    return ArrowFSWrapper(filesystem), uri.removeprefix(scheme), scheme


def _members(file: InputFile, pattern: str, on_corrupt_file: str) -> list[InputFile]:
    """An archive's members whose names match; itself where it is damaged and skipped."""
    with open_raw(file) as stream:
        try:
            sizes = _open_archive(file.uri, stream).sizes()
        except DAMAGE as error:
            if on_corrupt_file == "skip":
                return [file]
            raise DataError(damage_message(file, 0, error)) from None
    found = [
        InputFile(file.uri, size, file.changed, name)
        for name, size in sorted(sizes.items())
        if not Path(name).name.startswith("._") and not name.startswith("__MACOSX/")
    ]
    chosen = [one for one in found if fnmatch.fnmatchcase(one.member, pattern)]
    if not chosen:
        members = ", ".join(one.member for one in found[:10]) or "nothing"
        raise DataError(f"no member of {file.uri} matches '{pattern}'; it holds {members}.")
    return chosen
