"""The messages of the platform's errors as Markdown, read from the code: the page cannot fall behind."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import recipe_tables

import qzhou
from qzhou import errors

PACKAGE = Path(qzhou.__file__).parent
GROUPS = {
    "Recipe, commands and plans": ("config", "cli", "estimate", "experiments"),
    "Raw data and documents": ("transform", "data"),
    "LLM": ("synthesis",),
    "Mining": ("mining",),
    "Training": ("training",),
    "Models and export": ("encoder", "export"),
    "Evaluation": ("evaluation",),
    "Serving and embedding": ("serving",),
    "Run folder, storage and cluster": ("run", "cluster", "telemetry"),
}
STATUS = {
    name: found.exit_status
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, errors.QzhouError)
}
ANCHOR_WORDS = 6


@dataclass(frozen=True)
class Message:
    """One message: the words that stand still, and ``…`` or ``<name>`` for those of the occasion."""

    kind: str
    text: str

    @property
    def anchor(self) -> str:
        """The first words that are always the same."""
        words = re.findall(r"[a-z][a-z0-9_]*", re.sub(r"<\w+>|…", " ", self.text).lower())
        return "-".join(words[:ANCHOR_WORDS])


def reference() -> str:
    """A table for each group of packages: message, and the exit status of a command that ends so."""
    seen: set[str] = set()
    parts = []
    for heading, packages in GROUPS.items():
        parts += [f"## {heading}", "", "| message | kind | exit status |", "|---|---|---|"]
        parts += [_row(one, seen) for one in sorted(set(messages(packages)), key=lambda one: one.text.lower())]
        parts.append("")
    return "\n".join(parts)


def _row(message: Message, seen: set[str]) -> str:
    anchor, number = message.anchor, 2
    while anchor in seen:
        anchor, number = f"{message.anchor}-{number}", number + 1
    text = recipe_tables.escaped(" ".join(message.text.split()))
    place = f'<a id="{anchor}"></a>' if message.anchor.count("-") else ""  # one word would not find it
    seen |= {anchor} if place else set()
    return f"| {place}{text} | {message.kind} | {STATUS[message.kind]} |"


def messages(packages: tuple[str, ...]) -> Iterator[Message]:
    """Those that the code of some packages raises, written where it does or in a function that it calls."""
    for package in packages:
        files = [ast.parse(file.read_text("utf-8")) for file in sorted((PACKAGE / package).rglob("*.py"))]
        nodes = [node for file in files for node in ast.walk(file)]
        functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
        for node in nodes:
            if isinstance(node, ast.Call) and node.args:
                kind = ast.unparse(node.func).rpartition(".")[2]
                if kind in STATUS:
                    yield from (
                        Message(kind, recipe_tables.template(text)) for text in _texts(node.args[0], functions)
                    )


def _texts(told: ast.expr, functions: dict[str, ast.FunctionDef]) -> Iterator[ast.Constant | ast.JoinedStr]:
    if isinstance(told, ast.JoinedStr) or (isinstance(told, ast.Constant) and isinstance(told.value, str)):
        yield told
    elif isinstance(told, ast.IfExp):
        for choice in (told.body, told.orelse):
            yield from _texts(choice, {})
    elif isinstance(told, ast.BinOp):
        yield from _texts(told.left, {})
    elif isinstance(told, ast.Call) and (function := functions.get(ast.unparse(told.func))):
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value:
                yield from _texts(node.value, {})
