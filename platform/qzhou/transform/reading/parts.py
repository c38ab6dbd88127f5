"""Files cut into parts, one for each task: large files in pieces, small files together."""

import codecs
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from qzhou.config.dataset import Format
from qzhou.transform.reading.files import WIDE_ENCODINGS, InputFile, open_raw, unpacked_bytes
from qzhou.transform.reading.hub import hf_dataset

# What one task reads at most: seconds of work, so that a killed task loses little.
SPLIT_BYTES = 16 * 2**20
PARQUET_ROWS = 50_000  # of a Parquet file, which may pack any number into a byte; twice as many at most
SMALLEST_SPLIT_BYTES = 2**20  # below, starting a task would cost more than its work
SPLITS = 16  # of a small dataset, so that all cores of one machine have work to the end


@dataclass(frozen=True, slots=True)
class FilePart:
    """What one task reads: whole files, or a part of one.

    ``start`` and ``end`` count bytes (jsonl, text), rows (parquet) or shards (hf).
    ``end`` is None for the whole of every file.
    """

    files: tuple[InputFile, ...]
    start: int = 0
    end: int | None = None


def file_parts(form: Format, files: Sequence[InputFile], *, together: bool = False) -> list[FilePart]:
    """The parts that tasks read, in file order; the same files always give the same parts.

    ``together`` says that the reader needs all files at once.
    """
    if together or form.reader == "aligned_text":
        return [FilePart(tuple(files))]
    if form.reader == "hf":
        shards = [(file, shard) for file in files for shard in range(hf_dataset(file).num_shards)]
        return [FilePart((file,), shard, shard + 1) for file, shard in shards]
    largest = min(SPLIT_BYTES, max(SMALLEST_SPLIT_BYTES, sum(map(unpacked_bytes, files)) // SPLITS))
    parts: list[FilePart] = []
    small: list[InputFile] = []
    small_bytes = 0
    for file in files:
        size = unpacked_bytes(file)
        if small and small_bytes + size > largest:
            parts.append(FilePart(tuple(small)))
            small, small_bytes = [], 0
        # the size of a Parquet file says little of its rows
        is_large = size > (SMALLEST_SPLIT_BYTES if form.reader == "parquet" else largest)
        if is_large and not file.is_packed and _can_be_cut(form, file):
            parts += _pieces(form, file, largest)
        else:
            small.append(file)
            small_bytes += size
    if small:
        parts.append(FilePart(tuple(small)))
    return parts


def _can_be_cut(form: Format, file: InputFile) -> bool:
    """Whether a part of a file can be read by itself: line ends are single bytes."""
    if form.reader == "parquet":
        return True
    wide = codecs.lookup(file.encoding or form.encoding).name.startswith(WIDE_ENCODINGS)
    return form.reader in {"jsonl", "text"} and not wide


def _pieces(form: Format, file: InputFile, largest: int) -> list[FilePart]:
    if form.reader != "parquet":
        starts = range(0, file.size, largest)
        return [FilePart((file,), start, min(start + largest, file.size)) for start in starts]
    with open_raw(file) as stream:
        try:
            metadata = pq.read_metadata(stream)
        except (pa.ArrowInvalid, OSError):
            return [FilePart((file,))]  # the reader says what is wrong with it
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    rows = min(PARQUET_ROWS, max(1, sum(groups) * largest // max(1, file.size)))
    return [FilePart((file,), start, end) for start, end in _row_ranges(groups, rows)]


def _row_ranges(groups: Sequence[int], rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of about so many rows, twice as many at most: whole row groups, or even pieces of a larger one."""
    start = end = 0
    for group in groups:
        if end > start and end - start + group > rows:
            yield start, end
            start = end
        end += group
        if group > 2 * rows:
            pieces = -(-group // rows)
            edges = [start + group * number // pieces for number in range(pieces + 1)]
            yield from itertools.pairwise(edges)
            start = end
    if end > start or not groups:
        yield start, end
