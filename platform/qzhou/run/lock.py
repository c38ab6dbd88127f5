"""The lock of a run: one process at a time works on it.

On a filesystem (a disk, NFS, EFS, Lustre) it is a file lock, which ends with its process.
Object stores have no locks. There the process that works on the run writes a heartbeat, and
a second process watches for longer than one interval before it takes over. No clocks are
compared.
"""

import os
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
        worker_exit_s: Ray's workers, which run trials, end within this time after their driver was killed.
        nfs_grace_s: An NFS server frees the locks of a dead machine within this time; it gives clients 90 s to return.
    """

    heartbeat_s: float = 5.0
    silence_s: float = 12.5
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
    done = threading.Event()

    def beat() -> None:
        while not done.is_set():
            with suppress(StorageError):  # the stage itself reports what is wrong with the storage
                run.write_json(OWNER, owner | {"heartbeat": uuid.uuid4().hex})
            done.wait(times.heartbeat_s)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _remove_owner(run)


def _remove_owner(run: Folder) -> None:
    with suppress(OSError):  # somebody has removed the folder
        run.remove(OWNER)


def _owner(run: Folder) -> dict[str, Any]:
    """What the owner has written about itself; empty where it is gone by now."""
    return run.read_json(OWNER) if run.exists(OWNER) else {}


def _owned_by_another(run: Folder) -> StorageError:
    who = _owner(run)
    known = f" ({who['stage']}, process {who['pid']} on {who['host']} since {who['since']})" if who else ""
    return StorageError(
        f"another process is at work on {run.uri}{known}, and two would disturb each other. Wait until it is done, "
        "stop it, or give this run a name of its own with --run.name."
    )
