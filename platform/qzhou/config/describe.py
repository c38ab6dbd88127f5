"""A setting in words: type, range, choices, unit and default, for ``--help`` and for the reference in the docs."""

import re
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from qzhou.config.section import Section

Schema = Mapping[str, Any]
Markup = Callable[[str], str]

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


def tables_of(model: type[Section], prefix: str = "") -> Iterator[tuple[type[Section], str, bool]]:
    """Every table inside a model, outer ones first: its model, dotted place, and whether it is a list of tables."""
    for name, field in model.model_fields.items():
        inner, listed = section_of(field.annotation)
        if inner:
            yield inner, prefix + name, listed
            yield from tables_of(inner, f"{prefix}{name}.")


def section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The model of a nested table, and whether there is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    for part in get_args(annotation):
        if found := section_of(part)[0]:
            return found, "tuple" in str(annotation)
    return None, False


def kinds_of(annotation: Any) -> frozenset[Any]:
    """The types of what a setting takes, without None: int for ``Literal[0, 1] | None``."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds_of(inside[0])
    if origin is Literal:
        return frozenset(map(type, inside))
    if origin in (Union, UnionType):
        return frozenset().union(*map(kinds_of, inside))
    return frozenset({annotation} - {NoneType})


def setting_names(model: type[Section], prefix: str = "") -> list[str]:
    """Every dotted setting that a command line can override."""
    names = []
    for name, field in model.model_fields.items():
        inner, listed = section_of(field.annotation)
        names += [prefix + name] if listed or not inner else setting_names(inner, f"{prefix}{name}.")
    return names


def is_experimental(field: FieldInfo) -> bool:
    """Whether no measurement of this project shows yet that the setting helps."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("experimental"))


def kind_of(schema: Schema, code: Markup = str) -> str:
    """What a value may be by its JSON schema, in words; ``code`` marks up values and patterns, for pages."""
    if "$ref" in schema:
        return "table"
    if "anyOf" in schema:
        kinds = [kind_of(one, code) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if choices := schema.get("enum"):
        return " | ".join(code(as_toml(one)) for one in choices)
    match schema.get("type"):
        case "array":
            length = f", {schema['minItems']} or more" if "minItems" in schema else ""
            return f"list of {_plural(kind_of(schema['items'], code))}{length}"
        case "object":
            inner = schema.get("additionalProperties")
            return f"table of {_plural(kind_of(inner, code))}" if isinstance(inner, dict) else "table"
        case "integer" | "number" as number:
            return f"{number}{_range(schema)}"
        case "string":
            return "text" + (f" that fits {code(schema['pattern'])}" if "pattern" in schema else "")
        case other:
            return other or "any value"


def _plural(kind: str) -> str:
    words = "text|integer|number|boolean|table"
    plurals = [re.sub(rf"^({words})\b", r"\1s", one) for one in kind.split(" or ")]
    return " or ".join(plurals).replace("s fits", "s fit")


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", {low:g} to {high:g}"
    bounds = {"≥": low, ">": schema.get("exclusiveMinimum"), "≤": high, "<": schema.get("exclusiveMaximum")}
    limits = [f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None]
    return f" {', '.join(limits)}" if limits else ""


def unit_of(name: str, schema: Schema) -> str:
    """The unit that a number's name ends in."""
    types = {one.get("type") for one in schema.get("anyOf", [schema])}
    if not types & {"integer", "number"}:
        return ""
    return next((f", {unit}" for ending, unit in UNITS.items() if name.endswith(ending)), "")


def default_of(field: FieldInfo, code: Markup = str) -> str:
    """A default as TOML; the description explains one that follows from other settings."""
    if field.is_required():
        return "required"
    if field.default_factory_takes_validated_data:
        return "computed"
    default = field.get_default(call_default_factory=True)
    return "not set" if default is None else f"default {code(as_toml(default))}"


def as_toml(value: Any) -> str:
    """A value as a recipe would have it."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"'{value}'" if '"' in value else f'"{value}"'
        case list() | tuple():
            return f"[{', '.join(map(as_toml, value))}]"
        case dict():
            pairs = ", ".join(f"{key} = {as_toml(one)}" for key, one in value.items())
            return f"{{ {pairs} }}" if value else "{}"
        case int():
            return f"{value:_}" if value >= 10_000 else str(value)
        case _:
            return str(value)
