"""Raw rows, and a recipe's column expressions: a column, a path into values, or a template.

title                      the column
answers[].text             every text of a list of objects: a list
metadata.author.name       one value, three objects deep
value[0]                   the first element of a list; [-1] is the last
negative_*                 every column of such a name, in order of their numbers: a list
{title}\\n{text}            several columns joined; a blank one leaves no blank line
{docs[].title}\\n{docs[].text}  the same for every element of a list: a list
{docs.title}\\n{docs.text}      the same where lists of one length stand side by side
"""

import base64
import fnmatch
import json
import math
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qzhou.errors import RecipeError

Row = dict[str, Any]
Getter = Callable[[Row], Any]
_INDEX = re.compile(r"\[(-?\d+)\]")
THROUGH: tuple[str, list[str]] = ("", [])  # of a path: it does not end early
ELEMENT = "\0element"  # what a template over a list calls its element: no column has such a name


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A raw row or file that cannot be read: the reason, its place, and its content."""

    reason: str
    detail: str
    content: str


def decoded(value: Any) -> Any:
    """A row, or any value in it, whose bytes are text where they are UTF-8; Spark and Hive write text as bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            return bytes(value)  # a picture, say; as the text of a rule it is blank
    if isinstance(value, dict):
        return {as_text(name): decoded(inner) for name, inner in value.items()}
    return [decoded(inner) for inner in value] if isinstance(value, list | tuple) else value


def as_text(value: Any) -> str:
    """A value of a raw row as text: plain digits, decoded UTF-8 bytes, "" for the rest."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        value = decoded(value)
        return value if isinstance(value, str) else ""
    if isinstance(value, float):
        # A column of integers with a gap in it becomes floats, and the gap becomes NaN.
        if value.is_integer():
            return str(int(value))
        return "" if math.isnan(value) else str(value)
    return "" if value is None or isinstance(value, list | tuple | dict) else str(value)


def _for_json(value: Any) -> Any:
    """A value that JSON does not know; bytes that are no text stay what they are, and no text to a rule."""
    if isinstance(value, bytes) and not isinstance(decoded(value), str):
        return {"base64": base64.b64encode(value).decode()}
    return as_text(value)


# made once: `json.dumps` makes an encoder for each call, which takes longer than a short row
_as_json = json.JSONEncoder(ensure_ascii=False, default=_for_json).encode


def row_as_json(row: Mapping[str, Any]) -> str:
    """A raw row as Arrow can hold it: what JSON does not know becomes text, and a lone surrogate an escape."""
    text = _as_json(row)
    if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
        return json.dumps(row, default=as_text)
    return text


def getter(expression: str) -> Getter:
    """A function that reads an expression's value from a row; None where there is none.

    Raises:
        RecipeError: A template's braces do not match, or it joins elements of two lists.
    """
    if "{" in expression:
        return _template(expression)
    if "*" in expression:
        return lambda row: row[expression] if expression in row else _matching(row, expression)
    if "." not in expression and "[" not in expression:
        return lambda row: row.get(expression)
    steps = steps_of(expression)
    return lambda row: row[expression] if expression in row else walk(row, steps)


def _matching(row: Row, pattern: str) -> list[Any]:
    """The values of the columns that a pattern matches, lists joined; ``negative_2`` comes before ``negative_10``.

    Where some of them are numbered, only those are meant: ``negative_1_score`` is another thing.
    """
    names = fnmatch.filter(row, pattern)
    numbered = re.compile(r"\d+".join(map(re.escape, pattern.split("*"))))
    names = [name for name in names if numbered.fullmatch(name)] or names
    names.sort(key=lambda name: [int(n) for n in re.findall(r"\d+", name)] or [0])
    values = [row[name] for name in names]
    cells = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [one for one in cells if one is not None]


def column_names(expression: str) -> list[str]:
    """The columns that an expression reads, or their pattern; a path is known by its first name."""
    if "{" in expression:
        return [root for _, name in _pieces(expression) if name for root in column_names(name)]
    return [re.split(r"[.\[]", expression)[0]]


def steps_of(path: str) -> tuple[str, ...]:
    """``answers[].text`` -> ("answers", "[]", "text")."""
    return tuple(re.findall(r"\[-?\d*\]|\{\}|[^.\[\]{}]+", path))


def walk(value: Any, steps: tuple[str, ...]) -> Any:
    """Follow a path; ``[]`` takes every element of a list, and nested lists are joined; ``[0]`` takes one of them.

    An element in which the path ends early is None, so that two paths over one list stay side by side.
    """
    for position, step in enumerate(steps):
        if index := _INDEX.fullmatch(step):
            number = int(index[1])
            there = isinstance(value, list) and -len(value) <= number < len(value)
            value = value[number] if there else None
            continue
        if step == "[]":
            elements = value if isinstance(value, list) else []
            found: list[Any] = []
            for element in elements:
                inner = walk(element, steps[position + 1 :])
                found += inner if isinstance(inner, list) else [inner]
            return found
        if not isinstance(value, Mapping):
            return None
        value = value.get(step)
    return value


def path_lost(rows: Sequence[Row], expression: str) -> tuple[str, list[str]] | None:
    """Where a path ends early in all rows that have its column: the name that is missing, and those that are there.

    None where it goes through in some row, where no row says, and for what is no path.
    """
    if "{" in expression:
        lost = (path_lost(rows, name) for _, name in _pieces(expression) if name)
        return next(filter(None, lost), None)
    if "." not in expression and "[" not in expression:
        return None
    if "*" in expression:
        known = list(dict.fromkeys(name for row in rows for name in row))
        return (expression, known) if known and not fnmatch.filter(known, expression) else None
    steps = steps_of(expression)
    found = [_ends(row, steps) for row in rows if expression not in row and row.get(steps[0]) is not None]
    told = [one for one in found if one is not None]
    if not told or THROUGH in told:
        return None
    names = dict.fromkeys(name for _, known in told for name in known)
    return told[0][0], list(names)


def _ends(value: Any, steps: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """Where a path ends early: (missing name, names there); ``THROUGH`` or None where nothing says."""
    for position, step in enumerate(steps):
        if value is None or value in ({}, []):
            return None
        if step == "[]":
            if not isinstance(value, list):
                return step, []
            ends = [_ends(one, steps[position + 1 :]) for one in value]
            return THROUGH if THROUGH in ends else next((one for one in ends if one), None)
        if index := _INDEX.fullmatch(step):
            if not isinstance(value, list):
                return step, []
            number = int(index[1])
            value = value[number] if -len(value) <= number < len(value) else None
        elif not isinstance(value, Mapping):
            return step, []
        elif step not in value:
            return step, [str(name) for name in value]
        else:
            value = value[step]
    return THROUGH


def exploded(record: Any, steps: tuple[str, ...]) -> Iterator[Row | RejectedRow]:
    """The rows at a path's end; each inherits fields of objects around it, nearer ones win.

    ``data[].paragraphs[].qas[]`` makes of a SQuAD file one row a question, with its context
    and title. ``{}`` takes every value of an object, and its name is the column ``key``. What
    the path does not go through is refused.
    """
    waiting: list[tuple[Any, dict[str, Any], int]] = [(record, {}, 0)]
    while waiting:
        value, inherited, position = waiting.pop()
        if position == len(steps):
            yield inherited | (value if isinstance(value, dict) else {"value": value})
        elif steps[position] == "[]":
            # where there is one, some files have no list around it
            elements = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
            waiting += [(element, inherited, position + 1) for element in reversed(elements)]
        elif steps[position] == "{}":
            named = value.items() if isinstance(value, dict) else ()
            entries = [(one, {**inherited, "key": name}, position + 1) for name, one in named]
            waiting += reversed(entries)
        elif isinstance(value, dict) and steps[position] in value:
            around = {name: inner for name, inner in value.items() if name != steps[position]}
            waiting.append((value[steps[position]], {**inherited, **around}, position + 1))
        else:
            there = f"there are {', '.join(value)}" if isinstance(value, dict) else f"it is {type(value).__name__}"
            content = json.dumps(value, ensure_ascii=False, default=str)
            yield RejectedRow("path_ends", f"records: no '{steps[position]}' in it; {there}", content)


def _template(expression: str) -> Getter:
    pieces = _pieces(expression)
    lists = {name.partition("[]")[0] for _, name in pieces if name and "[]" in name}
    if not lists or _is_side_by_side(pieces):
        return _joined(pieces)
    if len(lists) > 1:
        raise RecipeError(
            f"'{expression}' joins elements of two lists ({', '.join(sorted(lists))}); take one of them"
        )
    (of,) = lists
    elements = steps_of(of)
    inner = _joined([(literal, _inside(name) if name else None) for literal, name in pieces])

    def values(row: Row) -> list[str]:
        found = walk(row, elements)
        return [inner({**row, ELEMENT: one}) for one in found] if isinstance(found, list) else []

    return values


def _is_side_by_side(pieces: Sequence[tuple[str, str | None]]) -> bool:
    """Whether all lists of a template are those of one object: ``{docs.title[]}`` and ``{docs.text[]}``."""
    names = [name for _, name in pieces if name and "[]" in name]
    parents = {name.removesuffix("[]").rpartition(".")[0] for name in names}
    return len(names) > 1 and all(name.endswith("[]") for name in names) and len(parents) == 1


def _inside(name: str) -> str:
    """A path below the element of a list; another column stays itself."""
    return ELEMENT + name.partition("[]")[2] if "[]" in name else name


def _joined(pieces: Sequence[tuple[str, str | None]]) -> Getter:
    parts = [(literal, getter(name) if name else None) for literal, name in pieces]

    def value(row: Row) -> str | list[str] | None:
        read = [(literal, None if get is None else get(row), get is not None) for literal, get in parts]
        sizes = {len(one) for _, one, _ in read if isinstance(one, list)}
        if sum(isinstance(one, list) for _, one, _ in read) < 2:
            return _filled([(literal, _plain(one) if is_read else None) for literal, one, is_read in read])
        if len(sizes) > 1:
            return None  # nothing says which belong together
        return [
            _filled(
                [(literal, _plain(_element(one, place)) if is_read else None) for literal, one, is_read in read]
            )
            for place in range(sizes.pop())
        ]

    return value


def _element(value: Any, place: int) -> Any:
    return value[place] if isinstance(value, list) else value


def _filled(pieces: Sequence[tuple[str, str | None]]) -> str:
    """Literals and the texts after them; None where no text belongs."""
    text = ""
    for literal, found in pieces:
        if found is None:
            text += literal
        # The literal between two columns is left out where one of them is blank.
        elif found:
            text += (literal if text else literal.lstrip()) + found
    return text.strip()


def _plain(value: Any) -> str:
    return (
        " ".join(filter(None, map(as_text, value))).strip() if isinstance(value, list) else as_text(value).strip()
    )


def _pieces(expression: str) -> list[tuple[str, str | None]]:
    try:
        tasks = [(literal, name) for literal, name, _, _ in string.Formatter().parse(expression)]
        if any(name is not None and not name.strip() for _, name in tasks):
            raise ValueError("{} names no column")
        return tasks
    except ValueError as error:
        raise RecipeError(f"'{expression}' is not a template: {error}; literal braces are doubled") from None
