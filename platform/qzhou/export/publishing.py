"""From a finished folder on this machine to its place."""

import uuid
from pathlib import Path

from qzhou.data.storage import TEMPORARY_PREFIX, Folder


def publish(finished: Path, target: Folder) -> None:
    """Copy a finished folder to its place, where it appears whole or not at all."""
    staging = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    staging.upload(finished)
    target.delete()
    staging.move_to(target)
