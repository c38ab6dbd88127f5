"""One copy for all ranks of a node: whole, of what is there now, and there as long as somebody reads it."""

import errno
import socket
from pathlib import Path

import pyarrow as pa
import pytest

from qzhou.data.storage import Folder
from qzhou.errors import DataError, StorageError
from qzhou.training.node_copies import copied_once, folder_of_node, remove


@pytest.fixture
def remote():
    """A folder that is not on this machine."""
    folder = Folder(pa.fs._MockFileSystem(), "bucket/run", "mock://")
    folder.create()
    return folder


def test_a_copy_is_made_once_and_removed_by_one_rank_alone(remote, tmp_path):
    remote.write_bytes("weights", b"one")
    place = tmp_path / "cache" / "stage1-a"

    with folder_of_node(remote, place, removes=True) as first:
        with folder_of_node(remote, place, removes=False) as second:
            assert first == second
            remote.write_bytes("weights", b"other")
        assert (first / "weights").read_bytes() == b"one"
    assert not first.exists()
    assert first.name == f"stage1-a@{socket.gethostname()}", "nodes may share the folder"


def test_after_an_error_the_copy_stays_for_the_next_attempt(remote, tmp_path):
    remote.write_bytes("weights", b"one")
    with pytest.raises(ZeroDivisionError), folder_of_node(remote, tmp_path / "stage1-a", removes=True) as place:
        raise ZeroDivisionError

    assert (place / "weights").exists()


def test_copies_of_an_earlier_making_are_removed_and_those_of_other_kinds_stay(remote, tmp_path):
    remote.write_bytes("weights", b"one")
    node = socket.gethostname()
    for name in (f"stage1-old@{node}", f"checkpoint-old@{node}", "stage1-old@another-node"):
        (tmp_path / name).mkdir()

    with folder_of_node(remote, tmp_path / "stage1-new", removes=False):
        left = {one.name for one in tmp_path.iterdir() if one.is_dir()}

    assert left == {f"stage1-new@{node}", f"checkpoint-old@{node}", "stage1-old@another-node"}


def test_what_a_kill_left_of_a_removed_copy_is_not_taken_for_one(tmp_path, monkeypatch):
    place = tmp_path / "stage1-a"
    place.mkdir()
    (place / "weights").write_bytes(b"half")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before a file is gone

    remove(place)

    assert not place.exists()


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [(errno.ENOSPC, DataError, "HF_DATASETS_CACHE"), (errno.EACCES, DataError, "HF_DATASETS_CACHE"),
     (errno.ETIMEDOUT, StorageError, "cannot be copied"), (None, StorageError, "cannot be copied")],
)  # fmt: skip
def test_a_full_disk_is_the_users_and_a_store_that_was_away_may_come_back(tmp_path, remote, number, kind, said):
    """Training that is told of the first is not tried again."""

    def copy(target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(number, "reason") if number else OSError("AWS Error NETWORK_CONNECTION")

    with pytest.raises(kind, match=said) as caught:
        copied_once(remote, tmp_path / "copy", copy)
    assert type(caught.value) is kind
    assert not list(tmp_path.glob("copy.writing"))
