"""One process at a time works on a run."""

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import filelock
import pyarrow.fs
import pytest

from qzhou.data.storage import Folder
from qzhou.errors import StorageError
from qzhou.run.files import RECIPE
from qzhou.run.lock import OWNER, LockTimes, run_lock
from qzhou.run.run import Run, Stage

HOLD = """
    import sys
    from qzhou.run.lock import run_lock
    from qzhou.data.storage import Folder
    with run_lock(Folder.open(sys.argv[1]), "mining"):
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


QUICK = LockTimes(heartbeat_s=0.02, silence_s=0.3, settle_s=0.2, worker_exit_s=0.2, nfs_grace_s=0.2)


def test_a_second_process_is_told_who_works_on_the_run_and_goes_on_when_that_is_gone(make_recipe):
    folder = Run.open(make_recipe()).folder
    with holding(folder) as process:
        told = rf"at work on {folder.uri} \(mining, process {process.pid} on .*name"
        with pytest.raises(StorageError, match=told), run_lock(folder, "mining", QUICK):
            pytest.fail("two at work")
        process.kill()
        process.wait()

        with run_lock(folder, "mining"):
            assert folder.read_json(OWNER)["pid"] == os.getpid()
    assert not folder.exists(OWNER)


def test_a_stage_owns_its_run_while_it_works(make_recipe):
    run, seen = Run.open(make_recipe()), []

    def work(_):
        seen.append(run.folder.read_json(OWNER)["stage"])
        return {}

    run.stage(Stage(name="mining", settings={}, inputs={}, code_of=["qzhou.errors"]), work)
    assert seen == ["mining"]
    assert not run.folder.exists(OWNER)


@pytest.fixture
def bucket():
    """A folder that is not on this machine's disk."""
    files = pyarrow.fs._MockFileSystem(datetime.datetime(2026, 1, 1))
    return Folder(files, "bucket/run", "mock://")


def test_an_object_store_tells_an_owner_that_lives_from_one_that_is_gone(bucket):
    with run_lock(bucket, "mining", QUICK):
        beaten = threading.Event()
        while not bucket.exists(OWNER):
            beaten.wait(0.01)
        told = pytest.raises(StorageError, match=f"process {os.getpid()}")
        with told, run_lock(bucket, "training", QUICK):
            pytest.fail("two at work")
    assert not bucket.exists(OWNER)

    bucket.write_json(OWNER, {"stage": "mining", "heartbeat": "of somebody who was killed"})
    with run_lock(bucket, "training", QUICK):
        pass
    assert not bucket.exists(OWNER)


class Away(Folder):
    """A store that cannot be reached now and then."""

    is_away = threading.Event()

    def _check(self, error: Exception) -> None:
        if self.is_away.is_set():
            raise error

    def write_json(self, *words):
        self._check(StorageError("no connection"))
        super().write_json(*words)

    def exists(self, *words):
        self._check(OSError("no connection"))
        return super().exists(*words)


@pytest.fixture
def flaky(bucket):
    Away.is_away.clear()
    return Away(bucket.filesystem, bucket.path, bucket.scheme)


def heartbeats(folder, count):
    """Wait until there were so many."""
    seen = set()
    while len(seen) <= count:
        seen.add(folder.read_json(OWNER)["heartbeat"])
        time.sleep(0.01)


def test_heartbeats_go_on_after_the_store_was_away(bucket, flaky):
    with run_lock(flaky, "mining", QUICK):
        flaky.is_away.set()
        time.sleep(0.3)
        flaky.is_away.clear()
        heartbeats(bucket, 3)
        with pytest.raises(StorageError, match="is at work"), run_lock(bucket, "training", QUICK):
            pytest.fail("two at work")
    assert not bucket.exists(OWNER)


def test_who_was_away_for_so_long_that_another_took_over_stops(bucket, flaky):
    ended, times = (
        threading.Event(),
        replace(QUICK, silence_s=1.5, settle_s=1.0),
    )  # a busy machine stalls for tenths

    def take_over():
        with run_lock(bucket, "training", times):
            flaky.is_away.clear()
            ended.wait(60)

    def work():
        with run_lock(flaky, "mining", times):
            flaky.is_away.set()
            other.start()
            time.sleep(60)  # the heartbeat interrupts it

    other = threading.Thread(target=take_over)
    # a test that runs in the background of a script would ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(StorageError, match=r"another process has taken over .*\(training,"):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert bucket.read_json(OWNER)["stage"] == "training"
    ended.set()
    other.join()
    assert not bucket.exists(OWNER)


IN_THE_BACKGROUND = """
    import sys, time
    from dataclasses import replace
    from qzhou.data.storage import Folder
    from qzhou.run.lock import LockTimes, run_lock
    with run_lock(replace(Folder.open(sys.argv[1]), scheme="s3://"), "mining", LockTimes(0.1, 0.3, 0.1)):
        print("held", flush=True)
        time.sleep(600)
"""


def test_who_was_started_in_the_background_of_a_script_stops_too(tmp_path):
    """A shell has it ignore Ctrl-C."""
    command = [sys.executable, "-c", textwrap.dedent(IN_THE_BACKGROUND), str(tmp_path)]
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    process = subprocess.Popen(ignoring, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        out, err = taken_over(process, tmp_path)
    finally:
        process.kill()

    assert process.returncode == -signal.SIGTERM
    assert "another process has taken over" in out + err
    assert "(training, process 7 on h since then)" in out + err


def taken_over(process, folder):
    """What a process says to its end after another's name stands in its run."""
    other = {"stage": "training", "claim": "of another", "heartbeat": "1", "pid": 7, "host": "h", "since": "then"}
    temporary = folder / "other.json"
    temporary.write_text(json.dumps(other))
    temporary.replace(folder / OWNER)
    return process.communicate(timeout=600)


def test_what_another_has_taken_over_is_not_removed_at_the_end(bucket):
    with run_lock(bucket, "mining", replace(QUICK, heartbeat_s=60)):
        bucket.write_json(OWNER, {"stage": "training", "claim": "of another", "heartbeat": "1"})
    assert bucket.read_json(OWNER)["claim"] == "of another"


@pytest.mark.parametrize("before", [None, {"stage": "mining", "heartbeat": "of somebody who was killed"}])
def test_of_some_that_start_together_one_works(bucket, before):
    if before:
        bucket.write_json(OWNER, before)
    together = threading.Barrier(4)
    inside, refused = [], []

    def start(number):
        together.wait()
        try:
            with run_lock(bucket, "mining", QUICK):
                inside.append(number)
                while len(refused) < 3:
                    time.sleep(0.01)
        except StorageError:
            refused.append(number)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(inside) == 1
    assert len(refused) == 3


def test_a_refused_process_leaves_the_recipe_of_the_one_that_works(make_recipe):
    first, second = make_recipe(), make_recipe(run={"seed": 2})
    run = Run.open(first)
    with run_lock(run.folder, "mining", QUICK):
        Run.open(second)
        assert run.folder.read_json(RECIPE) == first.model_dump(mode="json")
    Run.open(second)
    assert run.folder.read_json(RECIPE) == second.model_dump(mode="json")


def test_what_another_machine_holds_is_waited_for_before_it_is_refused(make_recipe, capsys):
    """It may be gone, and its lock not yet."""
    folder = Run.open(make_recipe()).folder
    with holding(folder):
        folder.write_json(OWNER, folder.read_json(OWNER) | {"host": "another"})
        told = pytest.raises(StorageError, match="on another since")
        with told, run_lock(folder, "training", QUICK):
            pytest.fail("two at work")
    assert "another machine was at work" in capsys.readouterr().out


def test_a_filesystem_without_locks_is_worked_on_all_the_same(make_recipe, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with run_lock(Run.open(make_recipe()).folder, "training"):
        pass
    assert "knows no locks ([Errno 37] No locks available)" in capsys.readouterr().out
