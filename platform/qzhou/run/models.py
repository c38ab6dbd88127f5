"""Where a model's files are, and which: no torch, to skip an unchanged stage at once."""

import hashlib
import importlib.util
import re
from pathlib import Path

from qzhou.data.records import digest
from qzhou.errors import ModelError

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
MODEL_NAME_HELP = (
    "Name a folder with config.json, a hub id like 'Qwen/Qwen2.5-7B-Instruct', or package:<import name>/<folder>."
)
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
        if not folder.exists() and HUB_ID.fullmatch(spec):
            return spec
    if not (folder / "config.json").exists():
        what = "has no config.json" if folder.exists() else "does not exist"
        raise ModelError(f"the model '{spec}': the folder {folder} {what}. {MODEL_NAME_HELP}")
    return str(folder)


def resolve_all(*specs: str) -> None:
    """Make sure of the models that are named; empty names are left out.

    Raises:
        ModelError: One leads nowhere.
    """
    for spec in filter(None, specs):
        resolve(spec)


def weights_fingerprint(spec: str) -> str:
    """Changes when a model's files do, wherever they lie; for what is no folder, its name.

    Of large files some thousand bytes here and there are read: training changes every
    weight.

    Raises:
        ModelError: There is no such model.
    """
    if "://" in spec:
        return spec
    place = resolve(spec)
    if place == spec and not Path(place).exists():
        return spec
    files = sorted(path for path in Path(place).rglob("*") if path.is_file())
    return digest([[path.relative_to(place).as_posix(), path.stat().st_size, _sampled(path)] for path in files])


def _sampled(path: Path) -> str:
    """Digest of a file's content, or of evenly spaced parts of it."""
    found, size = hashlib.blake2b(digest_size=16), path.stat().st_size
    step = max(PART_BYTES, size // PARTS)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            found.update(file.read(PART_BYTES))
    return found.hexdigest()
