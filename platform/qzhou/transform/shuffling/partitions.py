"""Tables cut into numbered partitions, all in one file: what a shuffle writes and reads.

An Arrow file holds one record batch per partition, so that a reader fetches its partition
of many files without reading the rest, and a shuffle of S inputs into P partitions makes S
files, not S x P.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from qzhou.data.storage import Folder


def write_partitions(
    folder: Folder, name: str, table: pa.Table, partition: Sequence[int] | np.ndarray, count: int
) -> None:
    """Write a table's rows by partition, each in their order; the file is whole or absent.

    ``partition`` is the number of each row's partition, from 0 to ``count`` - 1.
    """
    numbers = np.asarray(partition, dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    whole = table.take(pa.array(order)).combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    ends = np.searchsorted(numbers[order], np.arange(count + 1))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        empty = pa.RecordBatch.from_pylist([], schema=table.schema)
        for start, end in itertools.pairwise(ends):
            batches = whole.slice(start, end - start).to_batches()
            writer.write_batch(batches[0] if batches else empty)
    folder.write_bytes(name, sink.getvalue())


def read_partition(folder: Folder, names: Iterable[str], partition: int) -> Iterator[pa.RecordBatch]:
    """One partition of each of some files, in their order."""
    for name in names:
        with folder.filesystem.open_input_file(f"{folder.path}/{name}") as stream:
            yield pa.ipc.open_file(stream).get_batch(partition)
