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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, get_args

from pydantic.fields import FieldInfo

from qzhou.config.dataset import Section

Schema = Mapping[str, Any]

# What the end of a name says about its unit, the longer ending first; units stand in names (CONTRIBUTING.md).
UNITS = {
    "tokens_per_minute": "tokens a minute",
    "_per_minute": "a minute",
    "max_cost": "money, in that of the prices",
    "_price": "money per million tokens",
    "_s": "seconds",
    "_gb": "GiB",
    "_mib": "MiB",
    "_tokens": "tokens",
    "_chars": "characters",
    "_words": "words",
    "_rows": "rows",
    "_steps": "optimizer steps",
}
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


def tables(root: type[Section]) -> list[Table]:
    """A model's tables in the order of the file; one that stands in several places comes once, with all of them."""
    found: dict[type[Section], list[str]] = {}
    for model, place in _walk(root, ""):
        found.setdefault(model, []).append(place)
    return [Table(model, tuple(places)) for model, places in found.items()]


def _walk(model: type[Section], prefix: str) -> Iterator[tuple[type[Section], str]]:
    for name, field in model.model_fields.items():
        inner, listed = section_of(field.annotation)
        if inner:
            place = prefix + name
            yield inner, f"[[{place}]]" if listed else f"[{place}]"
            yield from _walk(inner, f"{place}.")


def section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The model of a nested table, and whether there is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    for part in get_args(annotation):
        if found := section_of(part)[0]:
            return found, "tuple" in str(annotation)
    return None, False


def reference(root: type[Section]) -> str:
    """Markdown: a heading, a table and what is refused, for each table of a TOML file; then what spans several."""
    parts = [part for table in tables(root) for part in _table(table)]
    across = [*refusals(root), *module_refusals(sys.modules[root.__module__])]
    if own := [
        name for name, field in root.model_fields.items() if not section_of(field.annotation)[0]
    ]:
        parts = ["## At the top of the file\n", *_rows(root, own, "top"), *parts]
    return "\n".join([*parts, "## Settings that must agree\n", *_bullets(across)])


def _table(table: Table) -> Iterator[str]:
    yield f"(table-{table.anchor})="  # a setting of an outer table may have the same name
    yield f"## {table.heading}\n"
    yield (
        escaped(" ".join(inspect.cleandoc(table.model.__doc__ or "").split("\n\n")[0].split()))
        + "\n"
    )
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
        kind = kind_of(properties[name]) + unit_of(name, properties[name])
        value = f"{kind}<br>{default_of(field)}"
        place = f"{anchor}-{name}".replace("_", "-")
        yield f"| [`{name}`]{{#{place}}} | {value} | {escaped(field.description or '')} |"
    yield ""


def kind_of(schema: Schema) -> str:
    """What a value may be, in words: type, range, choices."""
    if "$ref" in schema:
        return "table"
    if "anyOf" in schema:
        return " or ".join(
            dict.fromkeys(kind_of(one) for one in schema["anyOf"] if one.get("type") != "null")
        )
    if choices := schema.get("enum"):
        return " \\| ".join(f"`{_toml(one)}`" for one in choices)
    match schema.get("type"):
        case "array":
            return f"list of {plural(kind_of(schema['items']))}{_length(schema)}"
        case "object":
            inner = schema.get("additionalProperties")
            return f"table of {plural(kind_of(inner))}" if isinstance(inner, dict) else "table"
        case "boolean":
            return "boolean"
        case "integer" | "number" as number:
            return f"{number}{_range(schema)}"
        case "string":
            return "text" + (f" that fits `{schema['pattern']}`" if "pattern" in schema else "")
        case _:
            return "any value"


def plural(kind: str) -> str:
    words = "text|integer|number|boolean|table"
    return " or ".join(re.sub(rf"^({words})\b", r"\1s", one) for one in kind.split(" or ")).replace(
        "s fits", "s fit"
    )


def _length(schema: Schema) -> str:
    return f", {schema['minItems']} or more" if "minItems" in schema else ""


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", {low:g} to {high:g}"
    bounds = {
        "≥": low,
        ">": schema.get("exclusiveMinimum"),
        "≤": high,
        "<": schema.get("exclusiveMaximum"),
    }
    told = [f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None]
    return f" {', '.join(told)}" if told else ""


def unit_of(name: str, schema: Schema) -> str:
    """The unit that a number's name ends in."""
    numbers = {one.get("type") for one in schema.get("anyOf", [schema])}
    if not numbers & {"integer", "number"}:
        return ""
    return next((f", {unit}" for ending, unit in UNITS.items() if name.endswith(ending)), "")


def default_of(field: FieldInfo) -> str:
    """A default as TOML; one that follows from other settings is told by the description."""
    if field.is_required():
        return "**required**"
    if field.default_factory_takes_validated_data:
        return "computed"
    default = field.get_default(call_default_factory=True)
    return "not set" if default is None else f"default `{_toml(default)}`"


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"'{value}'" if '"' in value else f'"{value}"'
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            return (
                "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
                if value
                else "{}"
            )
        case int():
            return f"{value:_}" if value >= 10_000 else str(value)
        case _:
            return str(value)


def refusals(model: type[Section]) -> Iterator[str]:
    """The messages of a model's own validators and of those that it inherits, values left out."""
    for one in reversed(model.__mro__):
        if issubclass(one, Section) and one is not Section:
            yield from _messages(
                ast.parse(textwrap.dedent(inspect.getsource(one))), validators=True
            )


def module_refusals(module: ModuleType) -> Iterator[str]:
    """The messages of the functions named ``..._conflicts``, which compare settings of several tables."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_conflicts"):
            yield from _messages(node, validators=False)


def _messages(tree: ast.AST, *, validators: bool) -> Iterator[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        if validators and not any(
            ast.unparse(one).split("(")[0] in CHECKED_BY for one in function.decorator_list
        ):
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
                yield _template(told)


def _template(told: ast.Constant | ast.JoinedStr) -> str:
    """A message as its reader knows it; a plain name stands for its value, anything else is left out."""
    if isinstance(told, ast.Constant):
        return str(told.value)
    shown = ""
    for part in told.values:
        if isinstance(part, ast.FormattedValue):
            named = (
                isinstance(part.value, ast.Name)
                and part.format_spec is None
                and part.conversion == -1
            )
            shown += f"<{ast.unparse(part.value)}>" if named else "…"
        elif isinstance(part, ast.Constant):
            shown += str(part.value)
    return shown


def _bullets(lines: Iterator[str] | list[str]) -> list[str]:
    return [*(f"- {escaped(line)}" for line in lines), ""]


def escaped(text: str) -> str:
    """Plain text as Markdown that shows it unchanged, in a table too."""
    return re.sub(r"([\\`*_<>\[\]{}|$])", r"\\\1", text.replace("\n", "\\n"))
