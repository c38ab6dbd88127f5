"""One process at a time works on a run; a second one is told who does, and nothing of either is harmed.

On a filesystem (a disk, NFS, EFS, Lustre) the lease is a lock that ends with its process, however that ends. Object
stores have no locks: there the holder writes a new beat every few seconds, and whoever comes watches for longer than
that. No clocks are compared.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from filelock import FileLock, Timeout

from qzhou.data.storage import Folder
from qzhou.errors import StorageError, first_line
from qzhou.telemetry.events import log_event

HOLDER, LOCK = "at_work.json", "at_work.lock"
BEAT_S = 5.0
WATCHED_S = 2.5 * BEAT_S  # without a new beat: the holder is gone
UNTIL_KILLED_S = 10.0  # that Ray's workers, which run trials, end after their driver was killed
# that a machine is gone, and its locks with it: NFS gives clients 90 s to come back
UNTIL_NFS_KNOWS_S = 120.0


@contextmanager
def at_work(run: Folder, stage: str) -> Iterator[None]:
    """Hold the run for the block.

    Args:
        run: The run's folder.
        stage: What is worked on, for whoever comes meanwhile.

    Raises:
        StorageError: Another process holds it.
    """
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}"
    holder = {"stage": stage, "host": socket.gethostname(), "pid": os.getpid(), "since": since}
    with _locked(run, holder) if run.is_local else _beating(run, holder):
        yield


@contextmanager
def _locked(run: Folder, holder: dict[str, Any]) -> Iterator[None]:
    lock = FileLock(f"{run.path}/{LOCK}")
    try:
        _acquire(lock, run, holder)
    except Timeout:
        raise _held(run) from None
    except (OSError, NotImplementedError) as error:
        log_event(
            f"{run.uri} knows no locks ({first_line(error)}): nothing keeps a second process away",
            "run_without_lock",
        )
    try:
        run.write_json(HOLDER, holder)
        yield
    finally:
        _forget(run)
        lock.release()


def _acquire(lock: FileLock, run: Folder, holder: dict[str, Any]) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        here = _who(run).get("host", holder["host"]) == holder["host"]
        where = "another process" if here else "another machine"
        log_event(
            f"{where} was at work on this run; waiting a moment in case it is gone", "run_watched"
        )
        lock.acquire(timeout=UNTIL_KILLED_S if here else UNTIL_NFS_KNOWS_S)


@contextmanager
def _beating(run: Folder, holder: dict[str, Any]) -> Iterator[None]:
    if run.exists(HOLDER):
        log_event(
            "another process was at work on this run; looking whether it still is", "run_watched"
        )
        seen = run.read_bytes(HOLDER)
        time.sleep(WATCHED_S)
        if run.exists(HOLDER) and run.read_bytes(HOLDER) != seen:
            raise _held(run)
    over = threading.Event()

    def beat() -> None:
        while not over.is_set():
            with suppress(StorageError):  # the work itself says what is wrong with the storage
                run.write_json(HOLDER, holder | {"beat": uuid.uuid4().hex})
            over.wait(BEAT_S)

    heart = threading.Thread(target=beat, name="lease", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        _forget(run)


def _forget(run: Folder) -> None:
    with suppress(OSError):  # somebody has removed the folder
        run.remove(HOLDER)


def _who(run: Folder) -> dict[str, Any]:
    """What the holder has left of itself; it may be gone by now."""
    return run.read_json(HOLDER) if run.exists(HOLDER) else {}


def _held(run: Folder) -> StorageError:
    who = _who(run)
    known = (
        f" ({who['stage']}, process {who['pid']} on {who['host']} since {who['since']})"
        if who
        else ""
    )
    return StorageError(
        f"another process is at work on {run.uri}{known}, and two would disturb each other. Wait until it is done, "
        "stop it, or give this run a name of its own with --run.name."
    )
