"""A new folder for a result, and the way of a finished one to its place."""

import uuid
from pathlib import Path

from qzhou.data.storage import TEMPORARY_PREFIX, Folder
from qzhou.errors import StorageError
from qzhou.run.run import UPLOADED


def publish(finished: Path, target: Folder) -> None:
    """Copy a finished folder to its place, where it appears whole or not at all."""
    staging = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    staging.upload(finished)
    target.delete()
    staging.move_to(target)


def new_folder(into: str, *, flag: str, create: bool) -> Folder:
    """The folder of a result, which is empty and can be written: found out before hours of work.

    Args:
        into: As the user named it.
        flag: Where.
        create: Whether it is made.

    Raises:
        StorageError: It holds something, cannot be written, or would be lost with the job.
    """
    if UPLOADED in Path.cwd().parts and not Path(into).is_absolute() and "://" not in into:
        raise StorageError(
            f"{flag} is '{into}', a path below the copy of the project that `ray job submit --working-dir` made for "
            "this job, and goes with it. Name an absolute path or a URI (s3://...)."
        )
    target = Folder.open(into)
    if target.files(recursive=True):
        raise StorageError(
            f"{flag} is '{target.uri}', and there are files in it. Name a new folder, or empty this one."
        )
    try:
        return target.create() if create else target
    except StorageError as error:
        reason = str(error).split(". Set ")[0]
        raise StorageError(f"{flag}: {reason}. Name a folder that can be written.") from None
