"""The lines of a file that begin in a range of its bytes: ranges side by side give each line once."""

from collections.abc import Iterator
from typing import BinaryIO


def lines_between(stream: BinaryIO, start: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """(its first byte, line with its end) of the lines that begin from byte ``start`` on and before ``end``."""
    position = start
    if start:
        # From one byte earlier: that is only a line end, if a line starts exactly here.
        stream.seek(start - 1)
        position += len(stream.readline()) - 1
    for line in stream:
        if end is not None and position >= end:
            return
        yield position, line
        position += len(line)
