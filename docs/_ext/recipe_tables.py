"""The reference of all settings as Markdown, read from the pydantic models: nothing of it is written twice.

Types, ranges and choices come from each model's JSON schema, defaults and descriptions from its fields, and what is
refused from the messages that its validators raise.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from qzhou.config.describe import default_of, is_experimental, kind_of, section_of, tables_of, unit_of
from qzhou.config.section import Section

CHECKED_BY = {"field_validator", "model_validator"}


@dataclass(frozen=True)
class Table:
    """A model and the TOML tables that it describes, e.g. ``training.stage1`` and ``training.stage2``."""

    model: type[Section]
    places: tuple[str, ...]

    @property
    def heading(self) -> str:
        return ", ".join(f"`{place}`" for place in self.places)

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.places[0]).strip("-")

    def heading_of(self, name: str) -> str:
        """The dotted name of one setting."""
        return f"{self.places[0].strip('[]')}.{name}"


def tables(root: type[Section]) -> list[Table]:
    """A model's tables in the order of the file; one that stands in several places comes once, with all of them."""
    found: dict[type[Section], list[str]] = {}
    for model, place, listed in tables_of(root):
        found.setdefault(model, []).append(f"[[{place}]]" if listed else f"[{place}]")
    return [Table(model, tuple(places)) for model, places in found.items()]


def reference(root: type[Section]) -> str:
    """Markdown: a heading, a table and what is refused, for each table of a TOML file; then what spans several."""
    parts = [part for table in tables(root) for part in _table(table)]
    across = [*refusals(root), *module_refusals(sys.modules[root.__module__])]
    if own := [name for name, field in root.model_fields.items() if not section_of(field.annotation)[0]]:
        parts = ["## At the top of the file\n", *_rows(root, own, "top"), *parts]
    parts += _experimental(root)
    return "\n".join([*parts, "## Settings that must agree\n", *_bullets(across)])


def _table(table: Table) -> Iterator[str]:
    yield f"## {table.heading}\n"
    yield (escaped(" ".join(inspect.cleandoc(table.model.__doc__ or "").split("\n\n")[0].split())) + "\n")
    yield from _rows(table.model, list(table.model.model_fields), table.anchor)
    if found := list(refusals(table.model)):
        yield "Refused:\n"
        yield from _bullets(found)


def _rows(model: type[Section], names: list[str], anchor: str) -> Iterator[str]:
    schema = model.model_json_schema()
    needed, properties = schema.get("required", []), schema["properties"]
    yield "| setting | value | what it does |\n|---|---|---|"
    for name in sorted(names, key=lambda name: name not in needed):
        field = model.model_fields[name]
        if section_of(field.annotation)[0] and not field.description:
            continue  # a table of its own, with its own heading
        kind = kind_of(properties[name], _code).replace("|", "\\|") + unit_of(name, properties[name])
        default = "**required**" if field.is_required() else default_of(field, _code)
        mark = " *(experimental)*" if is_experimental(field) else ""
        value = f"{kind}<br>{default}"
        yield f'| <a id="{anchor_of(anchor, name)}"></a>`{name}` | {value} | {escaped(field.description or "")}{mark} |'
    yield ""


def anchor_of(table: str, name: str) -> str:
    """Where a link to a setting leads, on the site and on GitHub."""
    return f"{table}-{name}".replace("_", "-")


def _code(text: str) -> str:
    return f"`{text}`"


def _experimental(root: type[Section]) -> Iterator[str]:
    """The settings that no measurement of this project shows to help yet, in one table."""
    rows = [
        f'| <a href="#{anchor_of(table.anchor, name)}"><code>{table.heading_of(name)}</code></a> '
        f"| {escaped(field.description or '')} |"
        for table in tables(root)
        for name, field in table.model.model_fields.items()
        if is_experimental(field)
    ]
    if rows:
        yield "## Experimental settings\n"
        yield "Other projects have them, and no measurement of this one shows yet that they help.\n"
        yield "| setting | what it does |\n|---|---|"
        yield from [*rows, ""]


def refusals(model: type[Section]) -> Iterator[str]:
    """The messages of a model's own validators and of those that it inherits, values left out."""
    for one in reversed(model.__mro__):
        if issubclass(one, Section) and one is not Section:
            yield from _messages(ast.parse(textwrap.dedent(inspect.getsource(one))), validators=True)


def module_refusals(module: ModuleType) -> Iterator[str]:
    """The messages of the functions named ``..._conflicts``, which compare settings of several tables."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_conflicts"):
            yield from _messages(node, validators=False)


def _messages(tree: ast.AST, *, validators: bool) -> Iterator[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        if validators and not any(ast.unparse(one).split("(")[0] in CHECKED_BY for one in function.decorator_list):
            continue
        for node in ast.walk(function):
            raised = node.exc if isinstance(node, ast.Raise) else None
            told = (
                raised.args[0]
                if isinstance(raised, ast.Call)
                else node.value
                if isinstance(node, ast.Yield)
                else None
            )
            if isinstance(told, ast.Constant | ast.JoinedStr):
                yield template(told)


def template(told: ast.Constant | ast.JoinedStr) -> str:
    """A message as its reader knows it; a plain name stands for its value, anything else is left out."""
    if isinstance(told, ast.Constant):
        return str(told.value)
    shown = ""
    for part in told.values:
        if isinstance(part, ast.FormattedValue):
            named = isinstance(part.value, ast.Name) and part.format_spec is None and part.conversion == -1
            shown += f"<{ast.unparse(part.value)}>" if named else "…"
        elif isinstance(part, ast.Constant):
            shown += str(part.value)
    return shown


def _bullets(lines: Iterator[str] | list[str]) -> list[str]:
    return [*(f"- {escaped(line)}" for line in lines), ""]


def escaped(text: str) -> str:
    """Plain text as Markdown that shows it unchanged, in a table too."""
    return re.sub(r"([\\`*_<>\[\]{}|$])", r"\\\1", text.replace("\n", "\\n"))
