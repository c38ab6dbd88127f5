"""Where a model's files are, and which: no torch, to skip an unchanged stage at once."""

import functools
import hashlib
import importlib.util
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit

from qzhou.data.records import digest
from qzhou.data.storage import TEMPORARY_PREFIX, Folder
from qzhou.errors import HubError, ModelError, first_line
from qzhou.run.files import MANIFEST, MODELS_OF_STAGES, ONNX

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?")
MODEL_NAME_HELP = (
    "Name a folder with config.json, a GGUF file, a hub id like 'Qwen/Qwen2.5-7B-Instruct' (or one of its revisions: "
    "'...@main'), or package:<import name>/<folder>."
)
HUB_TIMEOUT_S = 3.0
PARTS, PART_BYTES = 256, 16_384


def resolve(spec: str) -> str:
    """The folder or hub id behind a model's name.

    Raises:
        ModelError: The package or its folder is not there, or a path does not exist.
    """
    if spec.startswith("package:"):
        package, _, inside = spec.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(package) if package else None
        if found is None or not found.submodule_search_locations:
            raise ModelError(
                f"the model '{spec}' needs the Python package '{package}': pip install it first. {MODEL_NAME_HELP}"
            )
        folder = Path(found.submodule_search_locations[0]) / inside
    else:
        folder = Path(spec).expanduser()
        if not folder.exists() and HUB_ID.fullmatch(spec) and not is_gguf(spec):
            return spec
    if is_gguf(str(folder)) and folder.is_file():
        return str(folder)
    if not (folder / "config.json").exists():
        what = "has no config.json" if folder.exists() else "does not exist"
        raise ModelError(f"the model '{spec}': the folder {folder} {what}. {MODEL_NAME_HELP}")
    return str(folder)


def find_model(name: str) -> str:
    """A name's model folder, URI or hub id; for a run, the last model that it finished.

    Raises:
        ModelError: There is none.
    """
    if "://" not in name and not Path(name).expanduser().is_dir():
        return resolve(name)
    folder = Folder.open(name)
    if folder.exists("config.json"):
        return folder.uri
    for stage, inside in MODELS_OF_STAGES.items():
        if folder.exists(f"{stage}/{MANIFEST}") and folder.exists(f"{inside}/config.json"):
            return (folder / inside).uri
    raise ModelError(
        f"'{name}' is neither a model (it has no config.json) nor a run with a finished one "
        f"({', '.join(MODELS_OF_STAGES)} have no {MANIFEST}). Name a model's folder, or train first: "
        "`qzhou train RECIPE`"
    )


@contextmanager
def local_model(place: str) -> Iterator[str]:
    """A model's folder on this machine for the block, downloaded from a URI; a local folder or hub id as it is."""
    if "://" not in place:
        yield place
        return
    with Folder.open(place).local_copy() as folder:
        yield str(folder)


def is_gguf(place: str) -> bool:
    """Whether a model is one file of llama.cpp's format."""
    return place.endswith(".gguf")


def model_file(place: str, name: str, *, download: bool = False) -> Path | None:
    """A file of a model; None if the model has no such file, or it was not downloaded.

    Args:
        place: A folder or a hub id (:func:`resolve`).
        name: Relative to the model's folder.
        download: Fetch it from the hub where it is not on this machine.

    Raises:
        HubError: It is on this machine only in part, and the hub cannot be asked.
        ModelError: The hub has no such model, or does not give it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    if is_gguf(place):
        return None
    if Path(place).is_dir():
        file = Path(place) / name
        return file if file.exists() else None
    repository, _, revision = place.partition("@")
    known = try_to_load_from_cache(repository, name, revision=revision or None)
    if not download or known is not None:
        # a path, or the mark of a file that the hub said it does not have
        return Path(known) if isinstance(known, str) else None
    try:
        if _hub_is_away():
            raise LocalEntryNotFoundError(f"{name} is not on this machine")
        return Path(hf_hub_download(repository, name, revision=commit_of(place) or revision or None))
    except LocalEntryNotFoundError:
        # where all was downloaded, what is missing is not there: this file is a part of every repository
        if isinstance(try_to_load_from_cache(repository, ".gitattributes", revision=revision or None), str):
            return None
        raise HubError(
            f"the model '{place}': {name} is not on this machine, and the hub cannot be asked for it.\n       "
            f"Fetch the whole model where there is a network: hf download {place.replace('@', ' --revision ')}"
        ) from None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"the model '{place}' cannot be read: {first_line(error)}. {MODEL_NAME_HELP}") from None


@functools.cache
def _hub_is_away() -> bool:
    """Whether nothing listens where the hub should be; its own client would try for 24 seconds, for each model."""
    from huggingface_hub.constants import ENDPOINT

    address = urlsplit(ENDPOINT)
    if address.scheme in urllib.request.getproxies():
        return False  # the proxy knows
    try:
        port = address.port or {"http": 80}.get(address.scheme, 443)
        socket.create_connection((str(address.hostname), port), timeout=HUB_TIMEOUT_S).close()
    except OSError:
        return True
    return False


LFS_POINTER = b"version https://git-lfs"


def why_unreadable(error: Exception, place: str) -> str:
    """What is wrong with a model's files, in one line."""
    for file in (*Path(place).rglob("*.safetensors"), *Path(place).rglob("*.bin")) if Path(place).is_dir() else ():
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                return (
                    f"{file.relative_to(place)} is a pointer of Git LFS in place of the weights: run `git lfs pull`"
                )
    if isinstance(error, EOFError):
        return "a file of its weights is empty, or ends too early"
    if isinstance(error, UnpicklingError):  # torch's own text says how to run what such a file holds
        return (
            "its weights are damaged, or a pickle that holds more than tensors, which could be code and is not run"
        )
    return first_line(error)


def commit_of(place: str) -> str:
    """The commit of a hub model's files on this machine; empty for a folder, and where there are none.

    All its files are read at this commit, until the cache of the hub is emptied.
    """
    if Path(place).exists() or is_gguf(place):
        return ""
    config = model_file(place, "config.json")
    return config.parent.name if config else ""


def repository_of(place: str) -> tuple[str, str | None]:
    """The folder, or the hub id and the revision that is read."""
    if Path(place).exists():
        return place, None
    repository, _, revision = place.partition("@")
    return repository, commit_of(place) or revision or None


def pretrained(place: str) -> dict[str, Any]:
    """What ``from_pretrained`` is told of a folder or a hub id; code that a model brings is never run."""
    name, revision = repository_of(place)
    found: dict[str, Any] = {"pretrained_model_name_or_path": name, "trust_remote_code": False}
    return found | ({"revision": revision} if revision else {})


def weights_fingerprint(spec: str) -> str:
    """Changes when a model's files do, wherever they lie; for what is no folder, its name.

    Of large files some thousand bytes here and there are read: training changes every
    weight. Its model card and its ONNX file do not count. A hub id stands with the commit
    of its files on this machine.

    Raises:
        ModelError: There is no such model.
    """
    if "://" in spec:
        return spec
    place = resolve(spec)
    if place == spec and not Path(place).exists():
        commit = commit_of(place)
        return f"{spec.partition('@')[0]}@{commit}" if commit else spec
    if is_gguf(place):
        return digest([Path(place).stat().st_size, _sampled(Path(place))])
    files = sorted(path for path in Path(place).rglob("*") if path.is_file() and path.suffix != ".md")
    files = [path for path in files if not path.name.startswith(TEMPORARY_PREFIX)]  # of a copy that was killed
    names = {path: path.relative_to(place).as_posix() for path in files}
    read = [path for path, name in names.items() if not name.startswith(f"{ONNX}/")]
    return digest([[names[path], path.stat().st_size, _sampled(path)] for path in read])


def _sampled(path: Path) -> str:
    """Digest of a file's content, or of evenly spaced parts of it."""
    found, size = hashlib.blake2b(digest_size=16), path.stat().st_size
    step = max(PART_BYTES, size // PARTS)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            found.update(file.read(PART_BYTES))
    return found.hexdigest()
