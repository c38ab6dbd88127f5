"""Rows that a stage's best weights are chosen by, left out of training together with all that resembles them.

A group is a text that is asked, compared or labelled, with everything that synthesis made of
it. Groups are chosen by a hash of their text, whole, and no dataset trains on a text of a
group that another one has chosen.

Shape letters in this file: N rows of a dataset, C groups that are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qzhou.data.records import Task
from qzhou.data.splitmix import splitmix64
from qzhou.data.text_digests import Bools, Digests, Ints, digests, key_digests

MOST_ROWS, FEWEST_ROWS = 200, 10  # of a dataset
SHARE = 10  # at most one row in so many is left out for a dataset's own groups
TEXTS: dict[Task, tuple[str, ...]] = {
    "retrieval": ("query",),
    "pair": ("text_a", "text_b"),
    "classification": ("text",),
}


@dataclass(frozen=True, slots=True)
class RowGroups:
    """What the rows of a dataset have in common with others.

    Attributes:
        group_N: Digest of the text that a row's group stands for.
        texts_N: Digests of each text that the row is recognised by; the first decides its group.
        is_raw_N: Whether synthesis did not make it.
    """

    group_N: Digests
    texts_N: tuple[Digests, ...]
    is_raw_N: Bools

    @classmethod
    def of(cls, table: pa.Table, task: Task) -> RowGroups:
        """The groups of a dataset's examples."""
        texts = tuple(_by_chunk(table, column) for column in TEXTS[task])
        parent = pc.struct_field(table.column("source"), "parent")
        is_raw_N = pc.equal(parent, "").to_numpy().astype(bool)
        # what was made of a row is in its group; of what is no row here, a document say, in a group of its own
        rows = pc.index_in(parent, value_set=table.column("id").combine_chunks())
        row_N = pc.fill_null(rows, -1).to_numpy().astype(np.int64)
        of_parent_N = np.where(row_N >= 0, texts[0][row_N], _digests_of(parent))
        return cls(np.where(is_raw_N, texts[0], of_parent_N), texts, is_raw_N)

    def chosen(self, seed: int) -> Ints:
        """Rows to choose weights by, ascending; none where there are too few.

        Groups come in the order of their hash as long as they fit into a tenth of the rows. Of
        a dataset with raw rows only those are taken.
        """
        groups, group_N, sizes = np.unique(self.group_N, return_inverse=True, return_counts=True)
        counted = self.is_raw_N if self.is_raw_N.any() else np.ones(len(group_N), dtype=bool)
        rows_of = np.bincount(group_N[counted], minlength=len(groups))
        left, taken = len(group_N) // SHARE, 0
        is_chosen = np.zeros(len(groups), dtype=bool)
        for number in np.argsort(splitmix64(groups ^ np.uint64(seed)), kind="stable"):
            if taken >= MOST_ROWS or not left:
                break
            if rows_of[number] and sizes[number] <= left:
                is_chosen[number] = True
                left -= int(sizes[number])
                taken += int(rows_of[number])
        rows = np.flatnonzero(is_chosen[group_N] & counted)[:MOST_ROWS]
        return rows if len(rows) >= FEWEST_ROWS else rows[:0]

    def marks(self, rows: Ints) -> Digests:
        """By what the rows of other groups resemble these: their groups and texts [C]."""
        return np.unique(np.concatenate([self.group_N[rows], *(one[rows] for one in self.texts_N)]))

    def left_out(self, marks: Digests) -> Ints:
        """The rows that resemble chosen ones, of whatever dataset; ascending."""
        alike = np.isin(self.group_N, marks)
        for one in self.texts_N:
            alike |= np.isin(one, marks)
        return np.flatnonzero(alike)


def all_left_out(datasets: Sequence[RowGroups], seed: int) -> list[tuple[Ints, Ints]]:
    """For each dataset the rows to choose by, and all rows that no dataset may train on then.

    A dataset of which nothing would be left keeps its rows, and none is chosen from it.
    """
    chosen = [one.chosen(seed) for one in datasets]
    while True:
        marks = np.unique(np.concatenate([one.marks(rows) for one, rows in zip(datasets, chosen, strict=True)]))
        out = [one.left_out(marks) for one in datasets]
        empty = [len(rows) == len(one.group_N) for one, rows in zip(datasets, out, strict=True)]
        if not any(empty):
            return list(zip(chosen, out, strict=True))
        # what empties a dataset is taken back everywhere: the next round has fewer marks
        lost = np.unique(
            np.concatenate([one.group_N for one, is_empty in zip(datasets, empty, strict=True) if is_empty])
        )
        kept = [rows[~np.isin(one.group_N[rows], lost)] for one, rows in zip(datasets, chosen, strict=True)]
        if all(len(now) == len(before) for now, before in zip(kept, chosen, strict=True)):
            return [(rows[:0], rows[:0]) for rows in chosen]
        chosen = kept


def _by_chunk(table: pa.Table, column: str) -> Digests:
    """Key digests of a column; the texts of one chunk at a time are in memory."""
    parts = [key_digests(chunk.to_pylist()) for chunk in table.column(column).chunks]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _digests_of(column: pa.ChunkedArray) -> Digests:
    parts = [digests(chunk.to_pylist()) for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.uint64), *parts])
