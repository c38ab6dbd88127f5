"""Pieces of shards: what the names of their marks say."""

import pyarrow as pa
import pytest

from qzhou.data.storage import Folder
from qzhou.transform.pieces import Piece, done_in, finished, origin, pieces_in

FIRST, SECOND, LAST = Piece(3, 0, 10, 12, False), Piece(3, 10, 20, 10, False), Piece(3, 20, 21, 1, True)


@pytest.mark.parametrize("piece", [FIRST, LAST, Piece(123_456_789, 0, 2**40, 2**40, True)])
def test_a_name_gives_the_piece_again(piece):
    assert Piece.named(piece.name) == piece


@pytest.mark.parametrize(
    ("marked", "whole"),
    [
        ([FIRST, SECOND, LAST], True),
        ([LAST, FIRST, SECOND], True),
        ([FIRST, SECOND], False),  # its end is missing
        ([FIRST, LAST], False),  # a piece in the middle is
        ([SECOND, LAST], False),
        ([LAST], False),
        ([Piece(3, 0, 7, 7, True)], True),
        ([Piece(4, 0, 7, 7, True)], False),  # another shard
        ([], False),
    ],
)
def test_a_shard_is_finished_from_its_first_row_to_its_last(tmp_path, marked, whole):
    marks = Folder.open(str(tmp_path))
    for piece in marked:
        marks.write_json(f"{piece.name}.json", {})

    assert (3 in finished(done_in(marks))) is whole


def test_a_table_of_two_shards_is_two_pieces():
    columns = [origin(7, 100, [1, 2], is_last=True), origin(8, 0, [5], is_last=False)]
    table = pa.concat_tables([pa.table(one) for one in columns])

    found = list(pieces_in(table))

    assert [piece for piece, _ in found] == [Piece(7, 100, 102, 3, True), Piece(8, 0, 1, 5, False)]
    assert [part.num_rows for _, part in found] == [2, 1]
    assert list(pieces_in(pa.table({}))) == []
