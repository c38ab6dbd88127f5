"""The version of a stage's code: what it computes, not how its source text reads.

A stage names the modules that do its work. Their import closure inside the package is
parsed, and each module is hashed as a syntax tree without what cannot change a result:
comments, layout, docstrings, log lines, the messages of errors, and the declarations of the
recipe's settings, whose values are part of the fingerprint by themselves. A corrected
sentence therefore leaves a finished stage valid, and a changed constant anywhere in the
closure does not.
"""

import ast
import functools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import qzhou
from qzhou.data.records import digest

PACKAGE = "qzhou"
ROOT = Path(qzhou.__file__).parent
# They decide where and how fast a stage runs, what it refuses and what it reports: no row, vector or weight comes
# from them.
NEUTRAL = (
    "qzhou.errors", "qzhou.telemetry", "qzhou.cluster", "qzhou.run", "qzhou.cli", "qzhou.config.loading",
    "qzhou.config.describe",
)  # fmt: skip
NEUTRAL_FILES = frozenset(("config/renamed.toml",))  # of a neutral module
DATA_FILES = frozenset((".md", ".txt", ".toml", ".j2"))  # prompts and tables beside the modules
LOG_CALLS = frozenset(("log_event", "print_block"))
Function = TypeVar("Function", ast.FunctionDef, ast.AsyncFunctionDef)
VALIDATORS = frozenset(("field_validator", "model_validator"))
TEXTS = (ast.Constant, ast.JoinedStr, ast.IfExp, ast.BinOp)  # what a message is put together of


def code_of_stage(modules: Sequence[str], *, without: Sequence[str] = (), root: Path = ROOT) -> dict[str, str]:
    """Digests of everything that a stage's code consists of.

    Args:
        modules: Dotted names of the modules that do the stage's work.
        without: Packages or modules that these import, with no part in the stage's output.
        root: Folder of the package ``qzhou``.

    Returns: Module or data file (dotted name, or path inside the package) -> 16 hex digits.

    Raises:
        ValueError: One of ``modules`` does not exist.
    """
    left_out = tuple(f"{one}." for one in (*NEUTRAL, *without))
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or f"{name}.".startswith(left_out):
            continue
        path = _source(name, root)
        if path is None:
            raise ValueError(f"{name} is no module of {PACKAGE}")
        version, imports = _read(path.read_text("utf-8"))
        found[name] = version
        waiting += [one for one in imports if _source(one, root)]
    return dict(sorted((found | _data_files(found, root)).items()))


def _source(module: str, root: Path) -> Path | None:
    """The file of a module; None where there is none of that name."""
    place = root.joinpath(*module.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@functools.cache
def _read(source: str) -> tuple[str, list[str]]:
    """Digest of a module's behaviour, and the names that it imports from the package."""
    tree = ast.parse(source)
    imports = sorted(set(_imported(tree)))
    return digest(ast.dump(_Behaviour().visit(tree))), imports


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            # `from package import name`: the name may be a module too
            yield str(node.module)
            yield from (f"{node.module}.{one.name}" for one in node.names)


class _Behaviour(ast.NodeTransformer):
    """Takes out of a syntax tree what cannot change a result."""

    def __init__(self) -> None:
        self._said: frozenset[str] = frozenset()  # in the function that is visited

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Drop docstrings and log lines."""
        if isinstance(node.value, ast.Constant) or _is_call(node.value, LOG_CALLS):
            return None
        self.generic_visit(node)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        """Drop the message of an error for people."""
        if _is_public_error(node) and isinstance(node.exc, ast.Call):
            node = ast.Raise(exc=node.exc.func, cause=None)
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign | None:
        """Drop the declaration of a recipe's setting."""
        return None if _is_call(node.value, {"Field"}) else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
        """Drop what only checks or completes the values of settings; of another function, texts that are only said."""
        if any(_is_call(one, VALIDATORS) for one in node.decorator_list):
            return None
        return self._without_texts(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        """Drop texts that are only said."""
        return self._without_texts(node)

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        """Drop a text that only log lines and errors read."""
        return None if _is_said(node, self._said) else node

    def _without_texts(self, node: Function) -> Function:
        outside, self._said = self._said, self._said | _said_in(node)
        self.generic_visit(node)
        self._said = outside
        return node


def _said_in(function: Function) -> frozenset[str]:
    """Names that a function reads for its log lines and errors alone, and for the texts that these are made of."""
    nodes = list(ast.walk(function))
    read = Counter(_names_read(nodes))
    said: frozenset[str] = frozenset()
    while True:
        lines = [one for one in nodes if _is_said(one, said)]
        logged = Counter(name for one in lines for name in _names_read(ast.walk(one)))
        more = frozenset(name for name, count in logged.items() if count == read[name])
        if more == said:
            return said
        said = more  # a text may be a part of another


def _is_said(node: ast.AST, said: Collection[str]) -> bool:
    """Whether a statement logs, raises an error for people, or puts together a text for one of these."""
    if isinstance(node, ast.Assign):
        targets = [one.id if isinstance(one, ast.Name) else "" for one in node.targets]
        return isinstance(node.value, TEXTS) and all(one in said for one in targets)
    return _is_public_error(node) or (isinstance(node, ast.Expr) and _is_call(node.value, LOG_CALLS))


def _is_public_error(node: ast.AST) -> bool:
    """Whether a statement raises an error by a name; a private one may carry data to whoever catches it."""
    error = node.exc.func if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else None
    return isinstance(error, ast.Name) and not error.id.startswith("_")


def _names_read(nodes: Iterable[ast.AST]) -> Iterator[str]:
    return (one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load))


def _is_call(node: ast.AST | None, names: Collection[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _data_files(modules: Mapping[str, str], root: Path) -> dict[str, str]:
    """Digests of the data files that lie in the packages of some modules, or in folders below without code."""
    folders = {path.parent for name in modules if (path := _source(name, root)) and path.parent != root}
    folders |= {
        inner for folder in folders for inner in folder.iterdir() if inner.is_dir() and not any(inner.glob("*.py"))
    }
    files = (path for folder in folders for path in folder.iterdir() if path.suffix in DATA_FILES)
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {name: digest(path.read_text("utf-8")) for name, path in names.items() if name not in NEUTRAL_FILES}
