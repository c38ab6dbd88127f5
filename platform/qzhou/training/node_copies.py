"""What all ranks of a node read from storage, copied to the node once."""

import contextlib
import errno
import hashlib
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from qzhou.data.storage import Folder
from qzhou.errors import DataError, StorageError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def cache_folder(run_folder: Folder, version: str) -> Path:
    """Where this node keeps its copies: below the folder of Hugging Face datasets (HF_DATASETS_CACHE).

    Args:
        run_folder: Of the run.
        version: Of what is copied; copies of other versions are removed when the next one is made.
    """
    from datasets import config

    run = hashlib.sha256(run_folder.uri.encode()).hexdigest()[:16]
    return Path(config.HF_DATASETS_CACHE) / "qzhou" / run / version


def copied_once(source: Folder, target: Path, copy: Callable[[Path], None]) -> Path:
    """The copy at ``target``, which the first rank of the node that asks makes; the others wait.

    Args:
        source: What is copied; for errors.
        target: A file or folder, which appears when it is whole.
        copy: Writes it at the path that it is given.

    Raises:
        DataError: This node has no room for it.
        StorageError: It cannot be read.
    """
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            partial = target.with_name(f"{target.name}.writing")
            remove(partial)
            try:
                copy(partial)
            except OSError as error:
                remove(partial)
                said = f"{source.uri} cannot be copied to {target.parent}: {error}"
                if error.errno not in NO_ROOM:
                    raise StorageError(said) from None  # a store may have been away for a moment
                raise DataError(f"{said}. Set HF_DATASETS_CACHE to a folder with room on every node.") from None
            partial.replace(target)
    return target


@contextlib.contextmanager
def folder_of_node(source: Folder, target: Path, *, removes: bool) -> Iterator[Path]:
    """A folder on this machine, for the block: one copy for all ranks of the node.

    Nodes that share the place of copies, a home on NFS say, have one each: the first to end
    would take it from the others. After an error the copy stays for the next attempt.

    Args:
        source: On the run's storage; one that every node reaches by its path is taken as it is.
        target: The copy's place, without the name of the node; other copies whose names begin as it does, up to its
            first dash, are removed.
        removes: Whether this rank removes the copy at the end.
    """
    if source.is_local:
        yield Path(source.path)
        return
    node, kind = socket.gethostname(), target.name.partition("-")[0]
    target = target.with_name(f"{target.name}@{node}")
    for other in target.parent.glob(f"{kind}-*@{node}"):
        if other != target:
            remove(other)
    yield copied_once(source, target, source.download)
    if removes:
        remove(target)


def remove(path: Path) -> None:
    """Remove a file or folder; nothing happens if there is none. What is left of it after a kill has another name."""
    if path.is_dir():
        aside = path.with_name(f".removed-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another rank removes it too
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
