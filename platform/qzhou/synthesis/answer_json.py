"""The JSON object in what a model says: around it may stand thoughts, prose, fences and tokens of a chat format. Pure.

An object counts as whole where its braces close. One that was cut off is never completed.
Inside it, line breaks in strings, trailing commas and ``\\'`` are read as they are meant.
"""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import json5

# what follows the last of these is the answer; the opening tag of a thought often stands in the prompt
_END_OF_THOUGHTS = re.compile(r"</think(?:ing)?>|</reasoning>|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_STRING_OR_BRACE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL)
_LINE_BREAK = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
SHOWN_CHARS = 60


def object_with(fields: Collection[str], content: str) -> dict[str, Any]:
    """The object in an answer that has these fields.

    Raises:
        ValueError: There is none, it is not whole, or there are two that differ.
    """
    answer = without_thoughts(content)
    found = list(_objects(answer))
    fitting = [one for one in found if all(field in one for field in fields)]
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
    """What stands behind a model's thoughts; all of it where there are none."""
    return _END_OF_THOUGHTS.split(content)[-1]


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The objects in a text, the outermost ones, in order."""
    start = text.find("{")
    while start >= 0:
        end = _end_of(text, start)
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
        escaped = _STRING_OR_BRACE.sub(_without_line_breaks, text)
        try:
            value = json5.loads(escaped)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _without_line_breaks(match: re.Match[str]) -> str:
    return re.sub(r"[\n\r\t]", lambda one: _LINE_BREAK[one[0]], match[0])
