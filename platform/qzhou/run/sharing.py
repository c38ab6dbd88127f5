"""What runs under one storage path have in common: a stage that one has finished need not be made by another.

The settings, the inputs and the code of a stage are its fingerprint, and what it makes
follows from them, whichever run makes it. So another run's files are taken over
(:meth:`qzhou.data.storage.Folder.link_to`), and each run remains a folder that is whole by
itself: it can be read, moved and deleted as if it had made everything.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qzhou.data.storage import Folder
from qzhou.run.files import MANIFEST
from qzhou.telemetry.events import log_event

ONLY_FOR_RESUMING = ("checkpoints",)  # of no use once the stage is finished


@contextmanager
def stage_lock(run: Folder, stage: str, fingerprint: str) -> Iterator[None]:
    """Wait while another local process makes the very stage for a run beside this one.

    The lock is a file of the machine's, because object stores have none, and ends with its
    process however that ends. Runs that start on different machines in the same moment do
    not wait for each other: then both make the stage.
    """
    key = hashlib.sha256(f"{run.parent.uri} {stage} {fingerprint}".encode()).hexdigest()[:32]
    place = Path(tempfile.gettempdir()) / f"qzhou-{os.getuid()}"
    place.mkdir(exist_ok=True)
    lock = FileLock(place / f"{key}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log_event(f"{stage}: waits for another run, which makes the same", "stage_waits")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def finished_elsewhere(run: Folder, stage: str, fingerprint: str) -> Folder | None:
    """Another run under the same storage path with the stage finished; None if none has."""
    for other in _beside(run):
        place = other / stage
        if place.exists(MANIFEST) and place.read_json(MANIFEST)["fingerprint"] == fingerprint:
            return other
    return None


def reuse_stage(other: Folder, run: Folder, stage: str, *, keep: Sequence[str]) -> None:
    """Let a run have a stage that another one finished, beside what it keeps of its own, and nothing else of it."""
    place = run / stage
    for name in place.folders():
        if name not in keep:
            (place / name).delete()
    for name in place.files():
        if name not in keep:
            place.remove(name)
    (other / stage).link_to(place, last=MANIFEST, leave_out=ONLY_FOR_RESUMING)


def reuse_cache(run: Folder, stage: str, names: Sequence[str]) -> None:
    """Take along what the runs beside this one keep of a stage by content: paid answers, embeddings, scores."""
    for other in _beside(run):
        for name in names:
            (other / stage / name).link_to(run / stage / name)


def _beside(run: Folder) -> Iterator[Folder]:
    for name in run.parent.folders():
        if name != run.name:
            yield run.parent / name
