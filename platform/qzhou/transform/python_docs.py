"""Reader of the documentation of installed Python packages.

Sources are parsed, never imported or executed. A docstring's first paragraph asks for its rest, its
package is a class, and two docstrings are as close as their modules are: three tasks without a download.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.util
import os
import re
import sysconfig
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from qzhou.errors import DataError
from qzhou.transform.lines import Refused

STDLIB = "stdlib"
DOCSTRING_COLUMNS = ("package", "module", "name", "summary", "body")
PAIR_COLUMNS = ("summary_a", "summary_b", "shared_path", "module", "name_a", "name_b")

# Tests document nothing; the others are not part of a package.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n")

COMPOUND = (  # the nodes that hold statements
    *(
        ast.ClassDef,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.If,
        ast.For,
        ast.AsyncFor,
        ast.While,
    ),
    *(ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.ExceptHandler, ast.Match, ast.match_case),
)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A Python file and the names it is known by."""

    package: str
    module: str
    path: str


def source_files(packages: Sequence[str]) -> list[SourceFile]:
    """The Python sources of installed packages, in a stable order.

    Args:
        packages: Top-level import names; ``stdlib`` is the standard library.

    Raises:
        DataError: A package is not installed, or holds no Python source.
    """
    found = []
    for package in packages:
        files = [file for root in _roots(package) for file in _files_below(package, root)]
        if not files:
            raise DataError(
                f"packages: '{package}' holds no Python source; take it out of 'packages'."
            )
        found += files
    return found


def docstrings(file: SourceFile) -> list[dict[str, str] | Refused]:
    """One row per docstring of the module, its classes and functions; see ``DOCSTRING_COLUMNS``.

    ``summary`` is the first paragraph as one line, ``body`` is the rest and may be empty. A file that
    cannot be parsed gives one refusal.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(Path(file.path).read_bytes(), file.path)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        return [Refused("not_parsed", f"{file.path}: {error}", file.path)]
    rows: list[dict[str, str] | Refused] = []
    for name, node in _documented(tree, file.module):
        text = ast.get_docstring(node)
        if text:
            summary, body = _parts(text)
            rows.append(
                {
                    "package": file.package,
                    "module": file.module,
                    "name": name,
                    "summary": summary,
                    "body": body,
                }
            )
    return rows


@contextmanager
def collector_paused() -> Iterator[None]:
    """Do without the cycle collector while many files are parsed.

    Syntax trees hold no cycles, yet their nodes set it off again and again; in a process with many
    modules loaded that doubles the time (measured on 1,422 files: 5.5 s with it, 2.5 s without).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def pairs(
    rows: Sequence[Mapping[str, str]], held_out: Callable[[str], bool]
) -> Iterator[dict[str, str | int]]:
    """Pairs of summaries with ``shared_path``, the number of leading module components they share.

    Each summary meets one partner of its module, one of its package and one from anywhere, so that
    far and near pairs are equally common. Partners follow from a hash, and never come from the other
    side of the split. An unordered pair appears once.

    Args:
        rows: Rows of :func:`docstrings`, in any order; ``body`` is not needed.
        held_out: Says of a module's name whether it is held out.
    """
    documented = sorted(
        (row for row in rows if row["summary"]), key=lambda row: (row["module"], row["name"])
    )
    circles: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    memberships = []
    side_of = {module: held_out(module) for module in {row["module"] for row in documented}}
    for index, row in enumerate(documented):
        side = side_of[row["module"]]
        member_of = (
            ("module", row["module"], side),
            ("package", row["package"], side),
            ("all", "", side),
        )
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


def _roots(package: str) -> list[Path]:
    """The folders or the single file that hold a package, found without importing it."""
    if package == STDLIB:
        return [Path(sysconfig.get_paths()["stdlib"])]
    try:
        # a dotted name would import its parent
        spec = None if "." in package else importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        hint = (
            "name its top-level package"
            if "." in package
            else f"install it (pip install {package})"
        )
        raise DataError(
            f"packages: '{package}' is not installed here; {hint}, or take it out of 'packages'."
        )
    if spec.submodule_search_locations is not None:
        return [Path(location) for location in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _files_below(package: str, root: Path) -> Iterator[SourceFile]:
    if root.is_file():
        yield SourceFile(package, root.stem, str(root))
        return
    prefix = () if package == STDLIB else (package,)
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if name not in SKIPPED_FOLDERS and "." not in name
        )
        inside = prefix + Path(folder).relative_to(root).parts
        for name in sorted(name for name in names if name.endswith(".py")):
            stem = name.removesuffix(".py")
            parts = inside if stem == "__init__" else (*inside, stem)
            yield SourceFile(package, ".".join(parts) or package, str(Path(folder) / name))


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
            blocks = (
                getattr(node, name, ())
                for name in ("body", "handlers", "orelse", "finalbody", "cases")
            )
            waiting += reversed([(prefix, child) for block in blocks for child in block])


def _parts(docstring: str) -> tuple[str, str]:
    """Summary and body of a docstring."""
    summary, _, body = _PARAGRAPH_END.sub("\0", docstring.strip(), count=1).partition("\0")
    return " ".join(summary.split()), textwrap.dedent(body).strip()


def _partner(index: int, row: Mapping[str, str], circle: str, members: Sequence[int]) -> int:
    """A member of the circle other than the row itself, or the row where it is alone."""
    choice = hashlib.sha256(
        f"{circle} {row['module']} {row['name']}".encode("utf-8", "surrogatepass")
    ).digest()
    position = int.from_bytes(choice[:8], "big") % len(members)
    return (
        members[position] if members[position] != index else members[(position + 1) % len(members)]
    )


def _pair(row_a: Mapping[str, str], row_b: Mapping[str, str]) -> dict[str, str | int]:
    path_a, path_b = row_a["module"].split("."), row_b["module"].split(".")
    shared = takewhile(
        lambda components: components[0] == components[1], zip(path_a, path_b, strict=False)
    )
    return {
        "summary_a": row_a["summary"],
        "summary_b": row_b["summary"],
        "shared_path": sum(1 for _ in shared),
        "module": row_a["module"],
        "name_a": row_a["name"],
        "name_b": row_b["name"],
    }
