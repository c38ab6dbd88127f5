"""Readers of the documentation of installed Python packages: ``docstrings`` and ``pairs``.

Sources are parsed, never imported or executed. They give three tasks without a download: a docstring's first paragraph
asks for the rest, a docstring's class is its package, and two docstrings are as close as their modules.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.util
import json
import os
import re
import sysconfig
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from qzhou.errors import DataError
from qzhou.transform.reading.columns import RejectedRow
from qzhou.transform.rules.held_out import held_out

STDLIB = "stdlib"

# Tests document nothing; the others are not part of a package.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n")
_ROOTS: dict[tuple[str, ...], list[tuple[str, Path]]] = {}  # packages -> (package, root)

COMPOUND = (  # the nodes that hold statements
    ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.If, ast.For, ast.AsyncFor, ast.While, ast.With,
    ast.AsyncWith, ast.Try, ast.TryStar, ast.ExceptHandler, ast.Match, ast.match_case,
)  # fmt: skip
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def files(packages: Sequence[str], **_: object) -> Iterator[Path]:
    """The Python sources of installed packages, in a stable order.

    Args:
        packages: Top-level import names; ``stdlib`` is the standard library.

    Raises:
        DataError: A package is not installed, or holds no Python source.
    """
    for package in packages:
        found = [file for root in _package_roots(package) for file in _files_below(root)]
        if not found:
            raise DataError(f"packages: '{package}' holds no Python source; take it out of 'packages'.")
        yield from found


def docstrings(stream: BinaryIO, packages: Sequence[str]) -> Iterator[dict[str, str] | RejectedRow]:
    """One row per docstring of a module, its classes and functions: package, module, name, summary and body.

    ``summary`` is the first paragraph as one line, ``body`` is the rest and may be empty. A file that cannot be parsed
    gives one rejected row.
    """
    path = Path(stream.name)
    package, module = _names(path, tuple(packages))
    try:
        documented = _cached(path, stream)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield RejectedRow("not_parsed", f"{path}: {error}", str(path))
        return
    for name, summary, body in documented:
        row = {"package": package, "module": module, "name": f"{module}{name}"}
        yield row | {"summary": summary, "body": body}


def pairs(
    streams: Iterable[BinaryIO], packages: Sequence[str], eval_fraction: float
) -> Iterator[dict[str, str | int] | RejectedRow]:
    """Pairs of summaries with ``shared_path``, the number of leading module components they share.

    Args:
        streams: All sources.
        packages: As for :func:`files`.
        eval_fraction: The dataset's own, with ``split_by = "module"``: no pair crosses the split.
    """
    rows = [row for stream in streams for row in docstrings(stream, packages)]
    yield from (row for row in rows if isinstance(row, RejectedRow))
    documented = [row for row in rows if not isinstance(row, RejectedRow)]
    yield from draw_pairs(documented, partial(held_out, fraction=eval_fraction))


def draw_pairs(
    rows: Sequence[Mapping[str, str]], is_held_out: Callable[[str], bool]
) -> Iterator[dict[str, str | int]]:
    """Pairs of summaries with ``shared_path``, each unordered pair once.

    Each summary meets one partner of its module, one of its package and one from anywhere, so that far and near pairs
    are equally common. Partners follow from a hash, and never come from the other side of the split.

    Args:
        rows: Rows of :func:`docstrings`, in any order; ``body`` is not needed.
        is_held_out: Whether a module, by its name, is held out.
    """
    documented = sorted((row for row in rows if row["summary"]), key=lambda row: (row["module"], row["name"]))
    circles: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    memberships = []
    side_of = {module: is_held_out(module) for module in {row["module"] for row in documented}}
    for index, row in enumerate(documented):
        side = side_of[row["module"]]
        member_of = [
            ("module", row["module"], side), ("package", row["package"], side), ("all", "", side)
        ]  # fmt: skip
        memberships.append(member_of)
        for circle in member_of:
            circles[circle].append(index)
    seen: set[tuple[int, int]] = set()
    for index, member_of in enumerate(memberships):
        for circle in member_of:
            partner = _partner(index, documented[index], circle[0], circles[circle])
            pair = (index, partner) if index < partner else (partner, index)
            if partner != index and pair not in seen:
                seen.add(pair)
                yield _pair(documented[index], documented[partner])


def _cached(path: Path, stream: BinaryIO) -> list[tuple[str, str, str]]:
    """What :func:`_parsed` gives for a source, from ``~/.cache/qzhou`` if it is unchanged.

    Several datasets read the same sources, and parsing them is most of the work.
    """
    stat = path.stat()
    version = f"{path} {stat.st_size} {stat.st_mtime_ns}"
    name = hashlib.sha256(version.encode("utf-8", "surrogatepass")).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = folder / "qzhou" / "python_docs" / name[:2] / f"{name}.json"
    with suppress(OSError, ValueError):  # not there, or cut off
        return [(one, summary, body) for one, summary, body in json.loads(file.read_text("utf-8"))]
    with _collector_paused():
        found = _parsed(stream.read(), path)
    with suppress(OSError):  # a home that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(found), "utf-8")
        temporary.replace(file)
    return found


def _parsed(source: bytes, path: Path) -> list[tuple[str, str, str]]:
    """Name inside the module, summary and body of each docstring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes
        tree = ast.parse(source, str(path))
    texts = [(name, ast.get_docstring(node)) for name, node in _documented(tree, "")]
    return [(name, *_parts(text)) for name, text in texts if text]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Do without the cycle collector while a file is parsed.

    Syntax trees hold no cycles, yet their nodes set it off again and again. In a process with many modules loaded that
    doubles the time (measured on 1,422 files: 5.5 s with it, 2.5 s without).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _names(path: Path, packages: tuple[str, ...]) -> tuple[str, str]:
    """The package and the dotted module name of a source file."""
    if packages not in _ROOTS:
        _ROOTS[packages] = [(one, root) for one in packages for root in _package_roots(one)]
    for package, root in _ROOTS[packages]:
        if path == root:
            return package, root.stem
        if path.is_relative_to(root) and SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            parts = [] if package == STDLIB else [package]
            parts += path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts.pop()
            return package, ".".join(parts) or package
    raise DataError(f"{path} belongs to none of the packages {', '.join(packages)}.")


def _package_roots(package: str) -> list[Path]:
    """The folders or the single file that hold a package, found without importing it."""
    if package == STDLIB:
        return [Path(sysconfig.get_paths()["stdlib"])]
    try:
        # a dotted name would import its parent
        spec = None if "." in package else importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        hint = "name its top-level package" if "." in package else f"install it (pip install {package})"
        raise DataError(f"packages: '{package}' is not installed here; {hint}, or take it out of 'packages'.")
    if spec.submodule_search_locations is not None:
        return [Path(location) for location in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _files_below(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS and "." not in name)
        for name in sorted(names):
            if name.endswith(".py"):
                yield Path(folder) / name


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[str, Documented]]:
    """Every node that can carry a docstring with its qualified name, in source order.

    Only statements are visited: expressions are most of a tree and hold no docstrings.
    """
    yield module, tree
    waiting: list[tuple[str, ast.AST]] = [(module, statement) for statement in reversed(tree.body)]
    while waiting:
        prefix, node = waiting.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            prefix = f"{prefix}.{node.name}"
            yield prefix, node
        if isinstance(node, COMPOUND):
            blocks = (getattr(node, name, ()) for name in ("body", "handlers", "orelse", "finalbody", "cases"))
            waiting += reversed([(prefix, child) for block in blocks for child in block])


def _parts(docstring: str) -> tuple[str, str]:
    """Summary and body of a docstring."""
    summary, _, body = _PARAGRAPH_END.sub("\0", docstring.strip(), count=1).partition("\0")
    return " ".join(summary.split()), textwrap.dedent(body).strip()


def _partner(index: int, row: Mapping[str, str], circle: str, members: Sequence[int]) -> int:
    """A member of the circle other than the row itself, or the row where it is alone."""
    choice = hashlib.sha256(f"{circle} {row['module']} {row['name']}".encode("utf-8", "surrogatepass")).digest()
    position = int.from_bytes(choice[:8], "big") % len(members)
    return members[position] if members[position] != index else members[(position + 1) % len(members)]


def _pair(row_a: Mapping[str, str], row_b: Mapping[str, str]) -> dict[str, str | int]:
    path_a, path_b = row_a["module"].split("."), row_b["module"].split(".")
    shared = takewhile(lambda components: components[0] == components[1], zip(path_a, path_b, strict=False))
    return {
        "summary_a": row_a["summary"],
        "summary_b": row_b["summary"],
        "shared_path": sum(1 for _ in shared),
        "module": row_a["module"],
        "name_a": row_a["name"],
        "name_b": row_b["name"],
    }
