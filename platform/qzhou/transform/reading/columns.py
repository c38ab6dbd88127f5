"""Raw rows, and a recipe's column expressions: a column, a path into values, or a template.

title                      the column
answers[].text             every text of a list of objects: a list
metadata.author.name       one value, three objects deep
{title}\\n{text}            several columns joined; a blank one leaves no blank line
"""

import math
import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qzhou.errors import RecipeError

Row = dict[str, Any]
Getter = Callable[[Row], Any]


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A raw row or file that cannot be read: the reason, its place, and its content."""

    reason: str
    detail: str
    content: str


def getter(expression: str) -> Getter:
    """A function that reads an expression's value from a row; None where there is none.

    Raises:
        RecipeError: A template's braces do not match.
    """
    if "{" in expression:
        return _template(expression)
    if "." not in expression and "[]" not in expression:
        return lambda row: row.get(expression)
    steps = steps_of(expression)
    return lambda row: row[expression] if expression in row else walk(row, steps)


def column_names(expression: str) -> list[str]:
    """The columns that an expression reads; a path is known by its first name."""
    if "{" in expression:
        return [root for _, name in _pieces(expression) if name for root in column_names(name)]
    if "[]" not in expression and "." not in expression:
        return [expression]
    return [re.split(r"\.|\[\]", expression)[0]]


def steps_of(path: str) -> tuple[str, ...]:
    """``answers[].text`` -> ("answers", "[]", "text")."""
    return tuple(re.findall(r"\[\]|[^.\[\]]+", path))


def walk(value: Any, steps: tuple[str, ...]) -> Any:
    """Follow a path; ``[]`` takes every element of a list, and nested lists are joined."""
    for position, step in enumerate(steps):
        if step == "[]":
            elements = value if isinstance(value, list) else []
            found: list[Any] = []
            for element in elements:
                inner = walk(element, steps[position + 1 :])
                found += inner if isinstance(inner, list) else [inner]
            return [one for one in found if one is not None]
        if not isinstance(value, Mapping):
            return None
        value = value.get(step)
    return value


def exploded(record: Any, steps: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows at a path's end; each inherits fields of objects around it, nearer ones win.

    ``data[].paragraphs[].qas[]`` makes of a SQuAD file one row a question, with its context
    and title.
    """
    waiting: list[tuple[Any, dict[str, Any], int]] = [(record, {}, 0)]
    while waiting:
        value, inherited, position = waiting.pop()
        if position == len(steps):
            yield inherited | (value if isinstance(value, dict) else {"value": value})
        elif steps[position] == "[]":
            elements = value if isinstance(value, list) else []
            waiting += [(element, inherited, position + 1) for element in reversed(elements)]
        elif isinstance(value, dict) and steps[position] in value:
            around = {name: inner for name, inner in value.items() if name != steps[position]}
            waiting.append((value[steps[position]], {**inherited, **around}, position + 1))


def _template(expression: str) -> Getter:
    parts = [(literal, getter(name) if name else None) for literal, name in _pieces(expression)]

    def value(row: Row) -> str:
        text = ""
        for literal, read in parts:
            if read is None:
                text += literal
            # The literal between two columns is left out where one of them is blank.
            elif found := _plain(read(row)):
                text += (literal if text else literal.lstrip()) + found
        return text.strip()

    return value


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return " ".join(map(str, value)).strip() if isinstance(value, list) else str(value).strip()


def _pieces(expression: str) -> list[tuple[str, str | None]]:
    try:
        tasks = [(literal, name) for literal, name, _, _ in string.Formatter().parse(expression)]
        if any(name is not None and not name.strip() for _, name in tasks):
            raise ValueError("{} names no column")
        return tasks
    except ValueError as error:
        raise RecipeError(f"'{expression}' is not a template: {error}; literal braces are doubled") from None
