"""One process at a time works on a run."""

import contextlib
import datetime
import os
import subprocess
import sys
import textwrap
import threading

import pyarrow.fs
import pytest

from qzhou.data.storage import Folder
from qzhou.errors import StorageError
from qzhou.run import lock
from qzhou.run.lock import HOLDER, at_work
from qzhou.run.run import Run

HOLD = """
    import sys
    from qzhou.run.lock import at_work
    from qzhou.data.storage import Folder
    with at_work(Folder.open(sys.argv[1]), "mining"):
        print("held", flush=True)
        sys.stdin.read()
"""


@contextlib.contextmanager
def holding(folder):
    """A process that holds the folder until it is killed."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), folder.path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_who_works_on_the_run_and_goes_on_when_that_is_gone(
    make_recipe, monkeypatch
):
    monkeypatch.setattr(lock, "UNTIL_KILLED_S", 0.2)
    run = Run.open(make_recipe())

    def work():
        return run.stage("mining", lambda _: {"rows": 1}, settings={}, inputs={}, rooms=("mining",))

    with holding(run.folder) as process:
        with pytest.raises(
            StorageError,
            match=rf"at work on {run.folder.uri} \(mine, process {process.pid} on .*name",
        ):
            work()
        assert not run.folder.exists("mining"), "nothing was touched"
        process.kill()
        process.wait()

        assert work().outputs == {"rows": 1}
    assert not run.folder.exists(HOLDER)


@pytest.fixture
def bucket(monkeypatch):
    """A folder that is not on this machine's disk, and beats that are quick."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    monkeypatch.setattr(lock, "WATCHED_S", 0.3)
    files = pyarrow.fs._MockFileSystem(datetime.datetime(2026, 1, 1))
    return Folder(files, "bucket/run", "mock://")


def test_an_object_store_tells_a_holder_that_lives_from_one_that_is_gone(bucket):
    with at_work(bucket, "mining"):
        beaten = threading.Event()
        while not bucket.exists(HOLDER):
            beaten.wait(0.01)
        with (
            pytest.raises(StorageError, match=f"process {os.getpid()}"),
            at_work(bucket, "training"),
        ):
            pytest.fail("two at work")
    assert not bucket.exists(HOLDER)

    bucket.write_json(HOLDER, {"stage": "mining", "beat": "of somebody who was killed"})
    with at_work(bucket, "training"):
        pass
    assert not bucket.exists(HOLDER)


def test_a_beat_that_fails_does_not_end_the_work(bucket, monkeypatch):
    def refuse(*_):
        raise StorageError("no connection")

    monkeypatch.setattr(Folder, "write_json", refuse)
    with at_work(bucket, "mining"):
        pass


def test_what_another_machine_holds_is_waited_for_before_it_is_refused(
    make_recipe, monkeypatch, capsys
):
    """It may be gone, and its lock not yet."""
    folder = Run.open(make_recipe()).folder
    monkeypatch.setattr(lock, "UNTIL_NFS_KNOWS_S", 0.2)
    with holding(folder):
        folder.write_json(HOLDER, folder.read_json(HOLDER) | {"host": "another"})
        with pytest.raises(StorageError, match="on another since"), at_work(folder, "training"):
            pytest.fail("two at work")
    assert "another machine was at work" in capsys.readouterr().out


def test_a_filesystem_without_locks_is_worked_on_all_the_same(make_recipe, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    with at_work(Run.open(make_recipe()).folder, "training"):
        pass
    assert "knows no locks ([Errno 37] No locks available)" in capsys.readouterr().out
