"""The lock of a run: one process at a time works on it.

On a filesystem (a disk, NFS, EFS, Lustre) it is a file lock, which ends with its process.
Object stores have no locks. There the process that works on the run writes a heartbeat with
its name, and a second process watches for longer than one interval before it takes over.
Who takes over writes its name, waits, and looks whether it still stands there: of several
that start together the last one stays (after Fischer's algorithm, in Lamport, "A Fast Mutual
Exclusion Algorithm", 1987). A process that was away for long finds another name at its next
heartbeat, and stops. No clocks are compared.
"""

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from filelock import FileLock, Timeout

from qzhou.data.storage import Folder
from qzhou.errors import StorageError, first_line
from qzhou.telemetry.events import log_event

OWNER, LOCK = "at_work.json", "at_work.lock"


@dataclass(frozen=True, slots=True)
class LockTimes:
    """Intervals of the lock, in seconds.

    Attributes:
        heartbeat_s: Between two heartbeats.
        silence_s: Without a new heartbeat for so long, the owner counts as dead.
        settle_s: A write of another process that has looked before ours was there has ended after this time.
        worker_exit_s: Ray's workers, which run trials, end within this time after their driver was killed.
        nfs_grace_s: An NFS server frees the locks of a dead machine within this time; it gives clients 90 s to return.
    """

    heartbeat_s: float = 5.0
    silence_s: float = 12.5
    settle_s: float = 1.0
    worker_exit_s: float = 10.0
    nfs_grace_s: float = 120.0


TIMES = LockTimes()


@contextmanager
def run_lock(run: Folder, stage: str, times: LockTimes = TIMES) -> Iterator[None]:
    """Own the run for the block.

    Args:
        run: The run's folder.
        stage: What is worked on; a second process reads it.
        times: Intervals of heartbeats and waits.

    Raises:
        StorageError: Another process owns the run.
    """
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}"
    owner = {"stage": stage, "host": socket.gethostname(), "pid": os.getpid(), "since": since}
    with _file_lock(run, owner, times) if run.is_local else _heartbeat(run, owner, times):
        yield


def is_owned(run: Folder) -> bool:
    """Whether a process works on the run now; on an object store, whether one did and has not said that it ended."""
    if not run.is_local:
        return run.exists(OWNER)
    lock = FileLock(f"{run.path}/{LOCK}")
    try:
        with lock.acquire(blocking=False):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


@contextmanager
def _file_lock(run: Folder, owner: dict[str, Any], times: LockTimes) -> Iterator[None]:
    lock = FileLock(f"{run.path}/{LOCK}")
    try:
        _acquire(lock, run, owner, times)
    except Timeout:
        raise _owned_by_another(run) from None
    except (OSError, NotImplementedError) as error:
        line = f"{run.uri} knows no locks ({first_line(error)}): nothing keeps a second process away"
        log_event(line, "run_without_lock")
    try:
        run.write_json(OWNER, owner)
        yield
    finally:
        _remove_owner(run)
        lock.release()


def _acquire(lock: FileLock, run: Folder, owner: dict[str, Any], times: LockTimes) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        here = _owner(run).get("host", owner["host"]) == owner["host"]
        where = "another process" if here else "another machine"
        log_event(f"{where} was at work on this run; waiting a moment in case it is gone", "run_watched")
        lock.acquire(timeout=times.worker_exit_s if here else times.nfs_grace_s)


@contextmanager
def _heartbeat(run: Folder, owner: dict[str, Any], times: LockTimes) -> Iterator[None]:
    if run.exists(OWNER):
        log_event("another process was at work on this run; checking whether it still is", "run_watched")
        seen = run.read_bytes(OWNER)
        time.sleep(times.silence_s)
        if run.exists(OWNER) and run.read_bytes(OWNER) != seen:
            raise _owned_by_another(run)
    claim = _Claim(run, owner)
    claim.write()
    time.sleep(times.settle_s)
    if not claim.stands:
        raise _owned_by_another(run)
    done, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not done.wait(times.heartbeat_s):
            with suppress(StorageError, OSError):  # the stage itself reports what is wrong with the storage
                if claim.stands:
                    claim.write()
                else:
                    lost.set()
                    _interrupt(run)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise _owned_by_another(run, "has taken over") from None
    finally:
        done.set()
        thread.join()
        with suppress(StorageError, OSError):
            if claim.stands:
                _remove_owner(run)


def _interrupt(run: Folder) -> None:
    """End the work of this process, as Ctrl-C does; by SIGTERM where a script has started it in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # what a shell gives to `command &`
        log_event(f"error: {_owned_by_another(run, 'has taken over')}", "taken_over", level="error")
        os.kill(os.getpid(), signal.SIGTERM)
    else:  # the first one ends training with a checkpoint, a further one at once
        os.kill(os.getpid(), signal.SIGINT)


class _Claim:
    """A process's name in the owner's file of a run."""

    def __init__(self, run: Folder, owner: dict[str, Any]) -> None:
        self._run, self._owner = run, owner | {"claim": uuid.uuid4().hex}

    def write(self) -> None:
        """Write the name with a new heartbeat."""
        self._run.write_json(OWNER, self._owner | {"heartbeat": uuid.uuid4().hex})

    @property
    def stands(self) -> bool:
        """Whether no other name stands there."""
        return bool(_owner(self._run).get("claim", self._owner["claim"]) == self._owner["claim"])


def _remove_owner(run: Folder) -> None:
    with suppress(OSError):  # somebody has removed the folder
        run.remove(OWNER)


def _owner(run: Folder) -> dict[str, Any]:
    """What the owner has written about itself; empty where it is gone by now."""
    return run.read_json(OWNER) if run.exists(OWNER) else {}


def _owned_by_another(run: Folder, does: str = "is at work on") -> StorageError:
    who = _owner(run)
    known = f" ({who['stage']}, process {who['pid']} on {who['host']} since {who['since']})" if who else ""
    return StorageError(
        f"another process {does} {run.uri}{known}, and two would disturb each other. Wait until it is done, "
        "stop it, or give this run a name of its own with --run.name."
    )
