"""The JSON object in what a model says: around it may stand thoughts, prose, fences and tokens of a chat format. Pure.

An object counts as whole where its braces close. One that was cut off is never completed, and nothing inside it
is an answer.
Inside it, line breaks in strings, trailing commas, ``\\'`` and single backslashes (of a regular expression, say) are
read as they are meant.
"""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import json5

from qzhou.synthesis.empty_words import is_placeholder

# what follows the last of these is the answer; the opening tag of a thought often stands in the prompt
_END_OF_THOUGHTS = re.compile(
    r"</(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning|reflection)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
    r"|<\|channel\|>final(?:\s*<\|constrain\|>\w*)?<\|message\|>",
    re.IGNORECASE,
)
_START_OF_THOUGHTS = re.compile(
    r"<(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning|reflection)>|\[THINK\]|◁think▷|<\|begin_of_thought\|>",
    re.IGNORECASE,
)
_UNKNOWN_ESCAPE = re.compile(r"\\(?:[\"\\/bfnrt']|u[0-9a-fA-F]{4})|\\")
_STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_STRING_OR_BRACE = re.compile(rf"{_STRING}|[{{}}]", re.DOTALL)
_BEGINS_AN_OBJECT = re.compile(rf"\{{\s*(?:{_STRING}|\w+)\s*:", re.DOTALL)
_LINE_BREAK = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
SHOWN_CHARS = 60
MOST_BRACES = 64  # that may open an object: a model that says nothing else says no answer


def object_with(fields: Collection[str], content: str) -> dict[str, Any]:
    """The object in an answer that has these fields.

    Raises:
        ValueError: There is none, it is not whole, or there are two that differ.
    """
    answer = _behind_thoughts(content)
    found = list(_objects(answer))
    named = [one for each in found if (one := _with_fields(each, fields)) is not None]
    # a model may repeat the form before it fills it in
    filled = [one for one in named if not any(is_placeholder(str(one[field])) for field in fields)]
    fitting = filled or named
    different = {json.dumps({field: one[field] for field in fields}, sort_keys=True) for one in fitting}
    if len(different) > 1:
        raise ValueError(f"it holds {len(different)} answers that differ")
    if fitting:
        return fitting[0]
    if found:
        return found[-1]
    start = answer.find("{")
    if start < 0:
        raise ValueError(f"it holds no JSON object: {answer.strip()[:SHOWN_CHARS]!r}")
    raise ValueError(f"its JSON object is not whole: it ends with {answer.rstrip()[-SHOWN_CHARS:]!r}")


def without_thoughts(content: str) -> str:
    """What stands behind a model's thoughts, of which nothing is an answer; all of it where there are none."""
    return _START_OF_THOUGHTS.split(_END_OF_THOUGHTS.split(content)[-1])[0]


def _behind_thoughts(content: str) -> str:
    """The answer without thoughts; a tag inside an object that begins before it is a word of the answer."""
    tags = [*_START_OF_THOUGHTS.finditer(content), *_END_OF_THOUGHTS.finditer(content)]
    start = content.find("{")
    end = _end_of(content, start) if tags and start >= 0 else 0
    if end and all(start < tag.start() < end for tag in tags) and _loaded(content[start:end]) is not None:
        return content
    return without_thoughts(content)


def is_object(text: str) -> bool:
    """Whether a text is one JSON object."""
    return _end_of(text, 0) == len(text) and _loaded(text) is not None


def _with_fields(value: dict[str, Any], fields: Collection[str]) -> dict[str, Any] | None:
    """An object with these fields, whatever their case, or the only object inside that has them; None if none has."""
    lower = {name.casefold(): inner for name, inner in value.items()}
    if all(field in lower for field in fields):
        return {field: lower[field] for field in fields}
    inside = [one for one in value.values() if isinstance(one, dict)]
    return _with_fields(inside[0], fields) if len(value) == len(inside) == 1 else None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The objects in a text, the outermost ones, in order."""
    start = text.find("{")
    for _ in range(MOST_BRACES):
        if start < 0:
            return
        end = _end_of(text, start)
        if not end and _BEGINS_AN_OBJECT.match(text, start):
            return  # cut off
        value = _loaded(text[start:end]) if end else None
        if value is not None:
            yield value
        start = text.find("{", end if value is not None else start + 1)


def _end_of(text: str, start: int) -> int:
    """Where the object ends that opens at ``start``; 0 if it does not."""
    depth = 0
    for match in _STRING_OR_BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    return 0


def _loaded(text: str) -> dict[str, Any] | None:
    """A JSON object; None for what is none."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        escaped = _STRING_OR_BRACE.sub(_escaped, text)
        try:
            value = json5.loads(escaped)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _escaped(match: re.Match[str]) -> str:
    """A string as JSON wants it: line breaks, and backslashes that begin no escape, as in ``\\d+``."""
    if len(match[0]) == 1:
        return match[0]
    text = _UNKNOWN_ESCAPE.sub(lambda one: one[0] if len(one[0]) > 1 else "\\\\", match[0])
    return re.sub(r"[\n\r\t]", lambda one: _LINE_BREAK[one[0]], text)
