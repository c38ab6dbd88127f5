"""Shards are read and written piece by piece, and the names of marks say which pieces are done: a listing is enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from qzhou.data.storage import Folder

# What a row carries of the shard that it comes from. ``place`` counts what the shard is read as, from 0, without gaps;
# ``read`` is the number of raw rows behind it.
ORIGIN = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("place", pa.int64(), nullable=False),
        pa.field("is_last", pa.bool_(), nullable=False),
        pa.field("read", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Neighbouring rows of a shard that are written together.

    Attributes:
        shard: Its number.
        first, after: Places of the first row and of the one behind the last.
        read: Raw rows.
        is_last: Whether the shard ends here.
    """

    shard: int
    first: int
    after: int
    read: int
    is_last: bool

    @property
    def name(self) -> str:
        """The name of its mark."""
        return f"{self.shard:06d}-{self.first:010d}-{self.after:010d}-{self.read}{'-last' if self.is_last else ''}"

    @property
    def file(self) -> str:
        """How the names of its files begin."""
        return f"{self.shard:06d}-{self.first:010d}"

    @classmethod
    def named(cls, name: str) -> Piece:
        """The piece whose mark has this name."""
        shard, first, after, read, *last = name.split("-")
        return cls(int(shard), int(first), int(after), int(read), bool(last))


def origin(shard: int, start: int, read: Iterable[int] | np.ndarray, *, is_last: bool) -> dict[str, pa.Array]:
    """The columns of ORIGIN for rows from ``start`` on; ``is_last`` says that the last of them ends the shard."""
    counts = np.fromiter(read, dtype=np.int64)
    last = np.zeros(len(counts), dtype=bool)
    last[-1:] = is_last
    columns = {
        "shard": np.full(len(counts), shard, dtype=np.int32),
        "place": np.arange(start, start + len(counts), dtype=np.int64),
        "is_last": last,
        "read": counts,
    }
    return {name: pa.array(values) for name, values in columns.items()}


def pieces_in(table: pa.Table) -> Iterator[tuple[Piece, pa.Table]]:
    """The rows of each shard in a table, with what they are of it."""
    if not table.num_rows:  # what Ray Data gives then has no columns either
        return
    shards, places, last, read = (table[name].to_numpy() for name in ORIGIN.names)
    edges = np.flatnonzero(np.diff(shards)) + 1
    for start, end in zip([0, *edges], [*edges, len(shards)], strict=True):
        behind = int(places[end - 1]) + 1
        piece = Piece(
            int(shards[start]), int(places[start]), behind, int(read[start:end].sum()), bool(last[end - 1])
        )
        yield piece, table.slice(start, end - start)


def done_in(marks: Folder) -> dict[int, list[Piece]]:
    """Shard -> its pieces that are done, in order."""
    found: dict[int, list[Piece]] = {}
    for piece in sorted(Piece.named(name.removesuffix(".json")) for name in marks.files(".json")):
        found.setdefault(piece.shard, []).append(piece)
    return found


def finished(done: Mapping[int, list[Piece]]) -> set[int]:
    """The shards that are done from their first row to their last."""
    return {shard for shard, pieces in done.items() if _is_whole(pieces)}


def _is_whole(pieces: list[Piece]) -> bool:
    starts = [0, *(piece.after for piece in pieces)]
    return pieces[-1].is_last and all(piece.first == start for piece, start in zip(pieces, starts, strict=False))
