"""Tables cut into numbered partitions, all in one file: what a shuffle writes and reads.

An Arrow file holds one record batch per partition, so that a reader fetches its partition
of many files without reading the rest, and a shuffle of S inputs into P partitions makes S
files, not S x P. Where S x P reads would be too many, :mod:`.merging` makes fewer, larger
batches of them first.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from qzhou.data.storage import Folder

OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True, slots=True)
class PartitionRange:
    """Neighbouring partitions and the files that they are in.

    Attributes:
        first, after: From the first partition to the one behind the last.
        files: Name -> bytes, in the order in which rows are read. Each file has a batch for each of the partitions.
    """

    first: int
    after: int
    files: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def write_partitions(
    folder: Folder, name: str, table: pa.Table, partition: Sequence[int] | np.ndarray, count: int
) -> None:
    """Write a table's rows by partition, each in their order; the file is whole or absent.

    ``partition`` is the number of each row's partition, from 0 to ``count`` - 1.
    """
    numbers = np.asarray(partition, dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    whole = table.take(pa.array(order)).combine_chunks()
    ends = np.searchsorted(numbers[order], np.arange(count + 1))
    write_batches(folder, name, (whole.slice(start, end - start) for start, end in itertools.pairwise(ends)))


def write_batches(folder: Folder, name: str, tables: Iterator[pa.Table]) -> None:
    """Write a record batch for each table, at least one; the file is whole or absent."""
    first = next(tables)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, first.schema, options=OPTIONS) as writer:
        empty = pa.RecordBatch.from_pylist([], schema=first.schema)
        for table in itertools.chain([first], tables):
            batches = table.combine_chunks().to_batches()
            writer.write_batch(batches[0] if batches else empty)
    folder.write_bytes(name, sink.getvalue())


def read_partition(folder: Folder, ranges: Sequence[PartitionRange], partition: int) -> Iterator[pa.RecordBatch]:
    """One partition, as a batch of each file that has it."""
    for one in ranges:
        for name in one.files if one.first <= partition < one.after else ():
            with folder.filesystem.open_input_file(f"{folder.path}/{name}") as stream:
                yield pa.ipc.open_file(stream).get_batch(partition - one.first)
