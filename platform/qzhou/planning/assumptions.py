"""What a plan takes for granted: ``units.toml``, and what the command line puts in its place."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from qzhou.errors import RecipeError

TABLE = Path(__file__).with_name("units.toml")
# name or its end
MAY_BE_ZERO = ("_s", "_price", "asked_again", "held_out_rows", "prompt_tokens", "named_task_texts")
SHARES = ("_share", "_utilisation", "scaling", "llm_efficiency", "synthesis_yield", "asked_again")

Kind = Literal["measured", "list", "assumed", "told"]


@dataclasses.dataclass(frozen=True, slots=True)
class Assumption:
    """One value and where it is from."""

    name: str
    value: float
    unit: str
    kind: Kind
    source: str


class Assumptions:
    """Values by name; remembers which were asked for, so that a plan lists those it rests on and no others."""

    def __init__(self, values: Mapping[str, Assumption]) -> None:
        self._values = dict(values)
        self._used: dict[str, None] = {}

    @classmethod
    def of(cls, told: Mapping[str, float] | None = None) -> Assumptions:
        """The table's, with some replaced.

        Raises:
            RecipeError: There is no such assumption, or the value is out of its range.
        """
        content = tomllib.loads(TABLE.read_text("utf-8"))
        values = {name: Assumption(name, **one) for name, one in content.items()}
        for name, value in (told or {}).items():
            values[name] = _told(values, name, value)
        return cls(values)

    def __getitem__(self, name: str) -> float:
        self._used.setdefault(name)
        return self._values[name].value

    @property
    def used(self) -> list[Assumption]:
        """Those that were asked for, in the order of the table."""
        return [one for name, one in self._values.items() if name in self._used]


def told_on_the_command_line(text: str) -> dict[str, float]:
    """``NAME=VALUE,NAME=VALUE``.

    Raises:
        RecipeError: A part has another form.
    """
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise RecipeError(f"command line: --assume: '{part}' is not NAME=NUMBER")
    return found


def _told(values: Mapping[str, Assumption], name: str, value: float) -> Assumption:
    if name not in values:
        near = difflib.get_close_matches(name, values, n=3, cutoff=0.4)
        meant = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(values)}"
        raise RecipeError(f"command line: --assume names '{name}', which no plan rests on; {meant}")
    lowest = 0.0 if name.endswith(MAY_BE_ZERO) else math.nextafter(0, 1)
    highest = 1.0 if name.endswith(SHARES) else math.inf
    if not lowest <= value <= highest or value == math.inf:
        limits = (
            f"{'0 or more' if not lowest else 'above 0'}{' and at most 1' if highest == 1 else ''}"
        )
        raise RecipeError(
            f"command line: --assume {name} is {value:g}; it is a number {limits} ({values[name].unit})"
        )
    return dataclasses.replace(values[name], value=value, kind="told", source="command line")
